"""PyTorch model of CLIP-RD: a CLIP of any two towers of transformers."""

import copy
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple, is_timm_available

from .checked_weights_clip_rd import CheckedWeights
from .configuration_clip_rd import CLIPRDConfig
from .gathering_clip_rd import gather_pairs

if TYPE_CHECKING:
    from transformers import CLIPModel

# Transformers starts batch-norm scales or convolutions of these with a standard deviation of 0.02. That is harmless
# before weights are loaded; untrained, EfficientNet-B0 then gives features of 1e-31, too small to learn from.
RESCALED_TOWERS = ("efficientnet", "mobilevit", "timm_wrapper")


@dataclass
class CLIPRDOutput(ModelOutput):
    """Output of [`CLIPRDModel`] for I images and T texts, with the names and order of CLIPOutput.

    Args:
        loss: scalar float32, if requested and I = T.
        logits_per_image: (I, T), cosines times the exponentiated scale.
        logits_per_text: (T, I), its transpose.
        text_embeds: (T, projection_dim), of length 1.
        image_embeds: (I, projection_dim), of length 1.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


def _contrastive_loss(logits_per_image: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of rows and columns of (B, B) logits against the diagonal (arXiv 2103.00020, figure 3)."""
    logits = logits_per_image.to(torch.promote_types(logits_per_image.dtype, torch.float32))
    pairs = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.t(), pairs)) / 2


class CLIPRDPreTrainedModel(CheckedWeights):
    """Flags and initial weights of this family's models."""

    config: CLIPRDConfig
    config_class = CLIPRDConfig
    base_model_prefix = "clip_rd"
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    # Each tower checks its own attention implementation.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # The loss is a mean over the samples of a batch, so a Trainer must not divide it by the number of label elements.
    accepts_loss_kwargs = False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if isinstance(module, CLIPRDModel):
            factor = self.config.initializer_factor
            init.normal_(module.text_projection.weight, std=module.text_embed_dim**-0.5 * factor)
            init.normal_(module.visual_projection.weight, std=module.vision_embed_dim**-0.5 * factor)
            init.constant_(module.logit_scale, self.config.logit_scale_init_value)
            if module.vision_model.config.model_type in RESCALED_TOWERS:
                _rescale_convolutions(module.vision_model)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Saves weights, config and the code that loads them without this package.

        The config also names that code for `AutoModelForZeroShotImageClassification`, which the pipeline loads.

        Args:
            save_directory: folder, created if missing.
            args, kwargs: as in transformers' `PreTrainedModel.save_pretrained`.
        """
        code = f"{type(self).__module__.rsplit('.', 1)[-1]}.{type(self).__name__}"
        auto_map = getattr(self.config, "auto_map", None) or {}
        self.config.auto_map = {**auto_map, "AutoModelForZeroShotImageClassification": code}
        super().save_pretrained(save_directory, *args, **kwargs)


def _rescale_convolutions(tower: nn.Module) -> None:
    """Starts convolutions by He's initialisation (arXiv 1502.01852, fan-out, as in timm) and batch norms at 1.

    Parameters that hold loaded weights stay as they are.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1] // module.groups
            init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
        elif isinstance(module, nn.BatchNorm2d) and module.affine:
            init.ones_(module.weight)


def _build_tower(config: Any) -> PreTrainedModel:
    """Makes a tower with random weights from the config of any model of transformers."""
    if config.model_type == "timm_wrapper" and not is_timm_available():
        raise ImportError(
            f'the tower {config.architecture!r} needs timm and torchvision: pip install "timm>=1.0.20" torchvision'
        )
    return AutoModel.from_config(config)


class CLIPRDModel(CLIPRDPreTrainedModel):
    """A CLIP of any vision tower and any text tower, with the names of transformers' CLIPModel.

    For towers of CLIP's own shape the state dict has CLIPModel's keys, and `to_clip` and `from_clip` convert.

    Args:
        config: [`CLIPRDConfig`].

    Raises:
        ImportError: the vision tower is timm's and timm is missing.

    Source: CLIP (arXiv 2103.00020), as the students of CLIP-KD (arXiv 2307.12732) and CLIP-RD (arXiv 2603.25383).
    """

    def __init__(self, config: CLIPRDConfig):
        super().__init__(config)
        self.text_embed_dim = config.text_pooled_size
        self.vision_embed_dim = config.vision_pooled_size
        self.text_model = _build_tower(config.text_config)
        self.vision_model = _build_tower(config.vision_config)
        self.visual_projection = nn.Linear(self.vision_embed_dim, config.projection_dim, bias=False)
        self.text_projection = nn.Linear(self.text_embed_dim, config.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(float(config.logit_scale_init_value)))
        # Where one tower cannot recompute its activations, the other does.
        self.supports_gradient_checkpointing = any(tower.supports_gradient_checkpointing for tower in self._towers())
        self._text_inputs = frozenset(inspect.signature(self.text_model.forward).parameters)
        self._vision_inputs = frozenset(inspect.signature(self.vision_model.forward).parameters)
        self.post_init()

    def _towers(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        return self.text_model, self.vision_model

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        for tower in self._towers():
            if tower.supports_gradient_checkpointing:
                tower._set_gradient_checkpointing(enable, *args, **kwargs)

    def train(self, mode: bool = True) -> Any:
        """Sets the mode; towers whose parameters are all frozen stay in evaluation mode, as for linear probing."""
        super().train(mode)
        for part in self._towers():
            parameters = list(part.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                part.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The text tower's token embedding."""
        return self.text_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the text tower's token embedding."""
        self.text_model.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """Makes the towers' embeddings of their inputs require gradients, for adapters on frozen towers.

        As upstream, but also for embeddings that return more than one tensor, such as Swin's.
        """
        self._require_grads_hooks = []
        for tower in self._towers():
            # Convolutional towers have no embedding of their input and are not recomputed either.
            if _has_input_embeddings(tower):
                embedding = tower.get_input_embeddings()
                self._require_grads_hooks.append(embedding.register_forward_hook(_require_grads))

    def get_image_features(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        """Embeddings of images, not normalised.

        A plain tensor, where transformers 5's CLIPModel returns the tower's whole output with the embeddings in
        `pooler_output`.

        Args:
            pixel_values: (B, C, H, W), as the image processor gives them.
            interpolate_pos_encoding: whether to accept images of another size than the tower's by interpolating its
                position embeddings; only for towers that support this.

        Returns:
            (B, projection_dim).

        Raises:
            ValueError: the tower cannot interpolate, has no pooled output or one of another width than the config's.
        """
        # Only CLIP's own vision tower would do this itself.
        inputs: dict[str, Any] = {"pixel_values": pixel_values.to(self.vision_model.dtype)}
        if interpolate_pos_encoding:
            inputs["interpolate_pos_encoding"] = True
        pooled = self._pooled("vision", inputs)
        return self.visual_projection(pooled)

    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embeddings of texts, not normalised.

        CLIP's text tower is causal and pools at the end-of-text token (the first `eos_token_id` of a row), so a batch
        cut to its longest text gives the same embeddings as one padded further.

        Args:
            input_ids: (B, L) int64.
            attention_mask: (B, L), 1 at tokens and 0 at padding.
            position_ids: (1 or B, L) int64; 0 to L - 1 without them.
            token_type_ids: (B, L) int64, for towers that take them, such as BERT.

        Returns:
            (B, projection_dim).

        Raises:
            ValueError: the tower does not take one of the inputs, has no pooled output or one of another width than
                the config's.
        """
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "token_type_ids": token_type_ids,
        }
        pooled = self._pooled("text", {name: value for name, value in inputs.items() if value is not None})
        return self.text_projection(pooled)

    def _pooled(self, name: str, inputs: dict[str, Any]) -> torch.Tensor:
        """Returns the pooled output of the tower `name`, (B, D)."""
        if name == "vision":
            tower, known, size = self.vision_model, self._vision_inputs, self.vision_embed_dim
        else:
            tower, known, size = self.text_model, self._text_inputs, self.text_embed_dim
        described = f"the {name} tower {tower.config.model_type!r}"
        for argument in inputs:
            if argument not in known:
                raise ValueError(f"{described} takes no {argument}")
        pooled = getattr(tower(**inputs, return_dict=True), "pooler_output", None)
        if pooled is None:
            raise ValueError(f"{described} has no pooled output (pooler_output): use one that pools")
        pooled = pooled.flatten(1)
        if pooled.shape[1] != size:
            raise ValueError(
                f"{described} pools to a width of {pooled.shape[1]}, the config says {size}: set {name}_hidden_size"
            )
        return pooled

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        return_loss: bool = True,
        token_type_ids: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
    ) -> CLIPRDOutput:
        """Embeds images, texts or both, and compares them where there are both.

        Args:
            input_ids, attention_mask, position_ids, token_type_ids: texts, as in `get_text_features`.
            pixel_values, interpolate_pos_encoding: images, as in `get_image_features`.
            return_loss: whether to compute the contrastive loss of image i and text i: in training among the pairs of
                all processes, so all of them have to take part; in evaluation among those of this one. True, unlike
                upstream, because Trainer requires it. With unequal numbers of images and texts, as in classification,
                there are no pairs and the loss is None.

        Returns:
            [`CLIPRDOutput`]; for one side, only its embeddings.

        Raises:
            ValueError: neither images nor texts are given, or as the two methods above.
        """
        if input_ids is None and pixel_values is None:
            raise ValueError("forward embeds images, texts or both: give pixel_values, input_ids or both")
        image_embeds = text_embeds = None
        if pixel_values is not None:
            image_embeds = functional.normalize(
                self.get_image_features(pixel_values, interpolate_pos_encoding), dim=-1
            )
        if input_ids is not None:
            text_embeds = self.get_text_features(input_ids, attention_mask, position_ids, token_type_ids)
            text_embeds = functional.normalize(text_embeds, dim=-1)
        if image_embeds is None or text_embeds is None:
            return CLIPRDOutput(text_embeds=text_embeds, image_embeds=image_embeds)
        logits_per_text = text_embeds @ image_embeds.t() * self.logit_scale.exp()
        logits_per_image = logits_per_text.t()
        paired = return_loss and len(image_embeds) == len(text_embeds)
        return CLIPRDOutput(
            loss=self._loss(image_embeds, text_embeds) if paired else None,
            logits_per_image=logits_per_image,
            logits_per_text=logits_per_text,
            text_embeds=text_embeds,
            image_embeds=image_embeds,
        )

    def _loss(self, image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Contrastive loss, scalar, at least in float32 for towers of any dtype."""
        with torch.autocast(image_embeds.device.type, enabled=False):
            dtype = torch.promote_types(image_embeds.dtype, torch.float32)
            pairs: tuple[torch.Tensor, ...] = (image_embeds.to(dtype), text_embeds.to(dtype))
            # Only with gradients, since a single process may evaluate.
            if self.training and torch.is_grad_enabled():
                pairs = gather_pairs(*pairs)
            return _contrastive_loss(pairs[0] @ pairs[1].t() * self.logit_scale.to(dtype).exp())

    def to_clip(self) -> "CLIPModel":
        """The same model as transformers' CLIPModel, with weights of its own.

        Returns:
            CLIPModel with equal outputs, of the same dtype, device and mode (training or not).

        Raises:
            ValueError: a tower is not of CLIP's own shape.
        """
        # transformers documents its own configs by importing the auto classes, which bring in this file: asked for
        # above, these would not be there yet.
        from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig

        for name, kind in (("vision", CLIPVisionConfig), ("text", CLIPTextConfig)):
            tower = getattr(self.config, f"{name}_config")
            if type(tower) is not kind:
                raise ValueError(
                    f"CLIPModel has towers of CLIP's own shape alone: the {name} tower is {tower.model_type!r}, "
                    f"expected {kind.model_type!r}"
                )
        vision_config: Any = copy.deepcopy(self.config.vision_config)
        text_config: Any = copy.deepcopy(self.config.text_config)
        # Not read by CLIPModel, but by the single towers with projection that load from its checkpoint.
        vision_config.projection_dim = text_config.projection_dim = self.config.projection_dim
        config = CLIPConfig(
            vision_config=vision_config,
            text_config=text_config,
            projection_dim=self.config.projection_dim,
            logit_scale_init_value=float(self.config.logit_scale_init_value),
            initializer_factor=float(self.config.initializer_factor),
        )
        return _with_weights_of(self, AutoModel.from_config(config, **_loading_options(self)))

    @classmethod
    def from_clip(cls, clip_model: "CLIPModel") -> "CLIPRDModel":
        """The same model as a transformers CLIPModel, pretrained or not, with weights of its own.

        Args:
            clip_model: the CLIPModel.

        Returns:
            Model with equal outputs, of the same dtype, device and mode (training or not).

        Raises:
            ValueError: `clip_model` is not a CLIPModel.
        """
        from transformers import CLIPModel

        if not isinstance(clip_model, CLIPModel):
            raise ValueError(f"expected a CLIPModel, found {type(clip_model).__name__}")
        clip_config: Any = clip_model.config
        config = CLIPRDConfig(
            vision_config=clip_config.vision_config,
            text_config=clip_config.text_config,
            projection_dim=clip_config.projection_dim,
            logit_scale_init_value=clip_config.logit_scale_init_value,
            initializer_factor=clip_config.initializer_factor,
        )
        return _with_weights_of(clip_model, cls._from_config(config, **_loading_options(clip_model)))


def _has_input_embeddings(tower: PreTrainedModel) -> bool:
    try:
        return tower.get_input_embeddings() is not None
    except NotImplementedError:
        return False


def _require_grads(module: nn.Module, inputs: Any, outputs: Any) -> None:
    for output in outputs if isinstance(outputs, tuple) else (outputs,):
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            output.requires_grad_(True)


def _loading_options(model: PreTrainedModel) -> dict[str, Any]:
    return {"dtype": model.dtype, "attn_implementation": model.config._attn_implementation}


def _with_weights_of(source: PreTrainedModel, target: Any) -> Any:
    target.load_state_dict(source.state_dict())
    return target.to(source.device).train(source.training)


CLIPRDModel.register_for_auto_class("AutoModel")

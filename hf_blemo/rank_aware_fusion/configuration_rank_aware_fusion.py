"""Configuration of rank-aware selective fusion."""

import math
import re
from dataclasses import field
from difflib import get_close_matches
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .label_space_rank_aware_fusion import BLEMORE_SPACE, EMOTIONS, LabelSpace, label_names

MODALITIES = ("video", "audio", "audiovisual")
POOLINGS = ("mean", "statistics", "attention")
TRANSFORMS = ("none", "log_softmax")
NUM_STATISTICS = 7
LABEL_SETTINGS = ("id2label", "label2id", "num_labels", "blend_percents", "unblended")
ENCODER_DEFAULTS = {"modality": "video", "pooling": "mean", "transform": "none"}
# For packages that extract features; kept with the model, so that it knows how its inputs are extracted.
ENCODER_PROVENANCE = ("model_id", "revision", "extraction")
_DEFAULT_TOP_N = 3
TASK = "blended-emotion-recognition"
# Names also become names of columns, files and folders.
_NAME = r"(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f-\x9f]+"
_ENCODER_NAME = re.compile(f"{_NAME}(?:/{_NAME})*")


class _InferredTask(dict):
    """What `pipeline(model=...)` without a task infers it from; the class for it is the registered one."""

    def __contains__(self, task: object) -> bool:
        return False


def complete_encoders(encoders: dict[str, Any], order: list[str] | None) -> dict[str, dict[str, Any]]:
    """Checks the entries of `encoders` and fills in their defaults; returns them in order.

    `order` has their names; as they stand by default. Files are saved with sorted keys: without such a list the
    encoders would change places on reload.
    """
    order = list(encoders) if order is None else list(order)
    if sorted(order) != sorted(encoders):
        raise ValueError(f"encoder_order {order} must name each of encoders {sorted(encoders)} once")
    return {name: _complete(name, encoders[name]) for name in order}


def _complete(name: str, options: Any) -> dict[str, Any]:
    if not isinstance(name, str) or not _ENCODER_NAME.fullmatch(name):
        raise ValueError(f"encoders[{name!r}]: expected a name, not a path out of a folder or control characters")
    if not isinstance(options, dict):
        raise ValueError(f"encoders[{name!r}]: expected a dict with 'feature_size', found {type(options).__name__}")
    known = ("feature_size", *ENCODER_DEFAULTS, *ENCODER_PROVENANCE)
    for key in options:
        if key not in known:
            raise ValueError(f"encoders[{name!r}]: unknown key {key!r}; expected some of {', '.join(known)}")
    size = options.get("feature_size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"encoders[{name!r}]: 'feature_size' must be a positive integer, found {size!r}")
    complete = {**ENCODER_DEFAULTS, **options}
    if not isinstance(complete["modality"], str) or not complete["modality"].strip():
        raise ValueError(f"encoders[{name!r}]: expected a word as modality, found {complete['modality']!r}")
    for key, choices in (("pooling", POOLINGS), ("transform", TRANSFORMS)):
        if complete[key] not in choices:
            nearest = get_close_matches(str(complete[key]), choices, 1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"encoders[{name!r}]: {key} {complete[key]!r} is not one of {', '.join(choices)}{hint}")
    if not isinstance(complete.get("extraction", {}), dict):
        raise ValueError(f"encoders[{name!r}]: 'extraction' must be a dict, found {complete['extraction']!r}")
    return complete


@strict
class RankAwareFusionConfig(PreTrainedConfig):
    """Settings of a [`RankAwareFusionModel`]; the naive baselines are settings of the same class.

    | method | gate | fusion | top_n |
    |---|---|---|---|
    | rank-aware selective fusion | `attention` | `rank_aware` | n |
    | the same without rank order | `attention` | `weighted_sum` | n |
    | static top-n | `static` | `rank_aware` | n |
    | concatenation of all | `uniform` | `concatenation` | number of encoders |
    | mean of all | `uniform` | `weighted_sum` | number of encoders |
    | a single encoder | any, with one entry in `encoders` | | |

    Args:
        encoders: encoder name -> `{"feature_size": D, "modality": word, "pooling": "mean" | "statistics" |
            "attention", "transform": "none" | "log_softmax"}`; optionally the Hub `model_id` and `revision` the
            features come from, and the options of their `extraction`. A modality is any word; clips give `video`,
            `audio` and `audiovisual`. `statistics` is the official seven (mean, standard deviation, percentiles 10,
            25, 50, 75, 90). `log_softmax` is for inputs that are another model's logits.
            The order of the dict is the order of `encoder_weights`.
        id2label: place -> name of what is predicted, in order; the six emotions of BlEmoRE by default. `num_labels`
            and `label2id` follow from it.
        blend_percents: the splits a blend can have, as of [`LabelSpace`]; an empty list for single labels. By default
            BlEmoRE's for its six names, and none for others.
        unblended: names that are no part of a blend; by default `neu` for BlEmoRE's six names, and none for others.
        label_kind: `valid`: every label is a valid label of the space; `soft`: any distribution over the names.
        presence_share: a name is present in a label where its share is above this.
        top_n: number of encoders fused per sample, at most all; where fewer are present, all of them. With 1, the
            single weight is 1 after renormalisation and the gate learns from `gate_loss_weight` and
            `gate_balance_weight` alone.
        hidden_size: width of the shared latent space.
        squash: `asinh` bends the standardised features, so that a few extreme values do not decide (ours).
        feature_weighting: `relevance` multiplies every feature by its correlation ratio with the labels of the
            training part, relative to the root mean square of its encoder (ours); see [`set_feature_statistics`].
        input_dropout: rate on the features of a clip.
        experts: whether every encoder has a linear expert beside its latent: logits of both heads from its features
            over the root of their number. The gate's weights join those of the selected encoders, relative to their
            mean, and the sum joins the heads' own logits; with equal weights that is the concatenation of all, each
            encoder scaled by the root of its width (ours).
        expert_penalty: half of it times the squared norm of the experts is part of the loss.
        gate: `attention` (sample-wise, learned), `static` (one fixed ranking, the buffer `static_scores`), `uniform`.
        fusion: `rank_aware` (selected encoders in rank order with rank embeddings), `weighted_sum`, `concatenation`
            (every encoder at its own place, the unselected as zeros).
        fusion_maps: whether `rank_aware` and `weighted_sum` map on the sum over ranks by one matrix (`shared`), or
            each encoder by its own (`encoder`; ours).
        gate_reads: what the gate sees of an encoder: `latents`, `experts` (what its expert says: probabilities, their
            entropy and the largest of them), or `both` (ours).
        gate_prior: weights from which the gate starts: `uniform`, or `relevance`, the root mean square of the
            relevance of an encoder's features (ours).
        gate_prior_weight: weight of the Kullback-Leibler divergence from the prior to the gate, which keeps the gate
            near the prior where the clips do not teach better (ours).
        gate_context: whether the gate's query sees the sample's mean latent beside the learned query (ours).
        gate_noise: standard deviation of the normal noise on the gate's scores in training, against collapse (ours).
        gate_balance_weight: weight of the balance term on the full softmax: squared coefficient of variation of the
            encoders' mean weight over the batch (ours, after load balancing in mixtures of experts).
        encoder_loss_weight: weight of the joint loss of every encoder alone through the shared fusion and heads,
            which teaches the projections of encoders the gate does not select (ours).
        gate_loss_weight: weight of the Kullback-Leibler divergence from the gate to the softmax of minus the
            encoders' own losses; needs `encoder_loss_weight` > 0 (ours).
        latent_activation: `gelu` bends each encoder's latent, and `none` leaves that to the fused vector.
        dropout: rate on the latents and the fused vector.
        encoder_dropout: rate at which a present encoder is hidden in training; one always stays.
        modality_dropout: rate at which all encoders of one modality are hidden in training; one encoder always stays.
        head_fusion: `geometric` (geometric mean of the two heads' probabilities), `presence` or `salience` alone.
        head_exponent: exponent of presence in the geometric mean, between 0 and 1; salience has the rest.
        learn_head_exponent: whether the exponent is trained.
        joint_interaction: whether the joint distribution adds a linear term of the fused vector to the energies that
            follow from the heads (ours). Where nothing blends, the joint distribution is that of the names.
        presence_loss_weight, salience_loss_weight, alignment_loss_weight: weights of the three losses of the method.
        joint_loss_weight: weight of the negative log-likelihood of the label under the joint distribution (ours).
        domain_adaptation: `none`, `mmd`, `coral` or `adversarial`, between labelled and unlabelled rows of a batch.
        domain_adaptation_weight: its weight in the loss.
        domain_adaptation_level: aligns `fused`, the fused features, or `encoders`, the latents of every
            encoder, which the gate reads too (ours); there it is the mean over the encoders.
        initializer_range: standard deviation of the rank and encoder embeddings.
        novelty_directions: number of directions of the Gaussians by which the model says how far a clip lies from
            those it was trained on; 0 where it does not know (ours). [`set_novelty`] sets it.

    Source: "Ordering Matters: Rank-Aware Selective Fusion for Blended Emotion Recognition", arXiv 2605.21417,
    abstract. Choices marked ours are not in it.
    """

    model_type = "rank_aware_fusion"
    if not __name__.startswith("transformers_modules."):
        custom_pipelines = _InferredTask({TASK: {}})
    keys_to_ignore_at_inference = [
        "presence_logits",
        "salience_logits",
        "encoder_weights",
        "selected_encoders",
        "fused_features",
        "domain_adaptation_loss",
        "novelty",
    ]

    blend_percents: list[list[int]] | None = None
    unblended: list[str] | None = None
    label_kind: Literal["valid", "soft"] = "valid"
    presence_share: float | int = 0.0
    encoders: dict[str, dict] = field(default_factory=dict)
    encoder_order: list[str] | None = None
    top_n: int = _DEFAULT_TOP_N
    hidden_size: int = 64
    squash: Literal["none", "asinh"] = "none"
    feature_weighting: Literal["none", "relevance"] = "none"
    input_dropout: float | int = 0.0
    experts: bool = False
    expert_penalty: float | int = 1e-3
    gate: Literal["attention", "static", "uniform"] = "attention"
    fusion: Literal["rank_aware", "weighted_sum", "concatenation"] = "rank_aware"
    fusion_maps: Literal["shared", "encoder"] = "shared"
    gate_reads: Literal["latents", "experts", "both"] = "latents"
    gate_prior: Literal["uniform", "relevance"] = "uniform"
    gate_prior_weight: float | int = 0.0
    gate_context: bool = True
    gate_noise: float | int = 0.0
    gate_balance_weight: float | int = 0.01
    encoder_loss_weight: float | int = 0.0
    gate_loss_weight: float | int = 0.0
    latent_activation: Literal["gelu", "none"] = "gelu"
    dropout: float | int = 0.2
    encoder_dropout: float | int = 0.0
    modality_dropout: float | int = 0.0
    head_fusion: Literal["geometric", "presence", "salience"] = "geometric"
    head_exponent: float | int = 0.5
    learn_head_exponent: bool = True
    joint_interaction: bool = True
    presence_loss_weight: float | int = 1.0
    salience_loss_weight: float | int = 1.0
    alignment_loss_weight: float | int = 1.0
    joint_loss_weight: float | int = 1.0
    domain_adaptation: Literal["none", "mmd", "coral", "adversarial"] = "none"
    domain_adaptation_weight: float | int = 1.0
    domain_adaptation_level: Literal["fused", "encoders"] = "fused"
    initializer_range: float | int = 0.02
    novelty_directions: int = 0

    def __post_init__(self, **kwargs):
        # Transformers keeps unknown keys, so a misspelt setting would be stored and do nothing.
        for key in kwargs:
            nearest = get_close_matches(key, type(self).__annotations__, 1, 0.8)
            if nearest:
                raise ValueError(f"unknown setting {key!r}; did you mean {nearest[0]!r}?")
        # Where this package is installed its own pipeline is registered, and transformers must not ask for trust in
        # the copy on the Hub. Loaded from the Hub, that copy is the only one.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        self.encoders = complete_encoders(self.encoders, self.encoder_order)
        self.encoder_order = list(self.encoders)
        self._name_labels(kwargs)
        super().__post_init__(**kwargs)

    def _name_labels(self, kwargs: dict[str, Any]) -> None:
        """Completes the names of the labels and how they blend, before transformers fills in names of its own."""
        number = kwargs.get("num_labels")
        if self.id2label is None:
            if number not in (None, len(EMOTIONS)):
                raise ValueError(
                    f"num_labels is {number}, but without id2label there are the {len(EMOTIONS)} names "
                    f"{', '.join(EMOTIONS)}: give id2label, the names in order"
                )
            self.id2label = dict(enumerate(EMOTIONS))
        names = label_names(self.id2label)
        if number not in (None, len(names)):
            raise ValueError(f"num_labels is {number}, but id2label has the {len(names)} names {', '.join(names)}")
        places = {name: place for place, name in enumerate(names)}
        if self.label2id is None:
            self.label2id = places
        default = BLEMORE_SPACE if tuple(names) == EMOTIONS else None
        if self.blend_percents is None:
            self.blend_percents = [list(split) for split in default.blend_percents] if default else []
        if self.unblended is None:
            self.unblended = list(default.unblended) if default else []

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Makes a config from the content of its file; names given beside it are checked like those in it."""
        given = {name: kwargs.pop(name) for name in LABEL_SETTINGS if name in kwargs}
        kept = {name: value for name, value in config_dict.items() if name != "label2id" or "id2label" not in given}
        return super().from_dict({**kept, **given}, **kwargs)

    @property
    def num_labels(self) -> int:
        """Number of names; it follows from `id2label`."""
        return len(self.id2label or {})

    @num_labels.setter
    def num_labels(self, number: int) -> None:
        if number != self.num_labels:
            raise ValueError(
                f"num_labels is {number}, but id2label has the {self.num_labels} names "
                f"{', '.join(label_names(self.id2label))}: give id2label, the names in order"
            )

    @property
    def label_space(self) -> LabelSpace:
        """What is predicted: the names and the valid labels."""
        return LabelSpace(label_names(self.id2label), self.blend_percents or (), self.unblended or ())

    def validate_labels(self):
        """Checks that names, splits and unblended names fit together, and that a share is a share."""
        if self.blend_percents is not None:
            self.label_space  # noqa: B018
        places = {name: place for place, name in enumerate(label_names(self.id2label))} if self.id2label else {}
        if dict(self.label2id or places) != places:
            raise ValueError(f"label2id is {self.label2id}, but id2label gives {places}: give both, or id2label alone")
        if not 0 <= self.presence_share < 1:
            raise ValueError(f"presence_share must be in [0, 1), found {self.presence_share}")

    def validate_sizes(self):
        """Checks that sizes are positive and rates are rates."""
        for name in ("top_n", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.novelty_directions < 0:
            raise ValueError(f"novelty_directions must be at least 0, found {self.novelty_directions}")
        # The default stands for fewer encoders, too.
        if self.encoders and self.top_n > max(len(self.encoders), _DEFAULT_TOP_N):
            raise ValueError(
                f"top_n must be at most {len(self.encoders)}, the number of encoders ({', '.join(self.encoders)}), "
                f"found {self.top_n}"
            )
        for name in ("dropout", "input_dropout", "encoder_dropout", "modality_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), found {getattr(self, name)}")
        for name in ("gate_noise", "expert_penalty", "initializer_range"):
            _check_amount(name, getattr(self, name))
        if not 0 < self.head_exponent < 1:
            raise ValueError(f"head_exponent must be in (0, 1), found {self.head_exponent}")

    def validate_losses(self):
        """Checks that no loss weight is negative and that the gate's target exists if its loss is used."""
        for name in vars(self):
            if name.endswith("_weight"):
                _check_amount(name, getattr(self, name))
        if self.gate_loss_weight > 0 and self.encoder_loss_weight == 0:
            raise ValueError(
                "gate_loss_weight > 0 needs encoder_loss_weight > 0: its target is the encoders' own loss"
            )

    def validate_method(self):
        """Checks that an option that builds on another one has it."""
        if self.gate_reads != "latents" and not self.experts:
            raise ValueError(f"gate_reads {self.gate_reads!r} needs experts: true, whose words the gate reads")
        if self.gate_prior == "relevance" and self.feature_weighting != "relevance":
            raise ValueError("gate_prior 'relevance' needs feature_weighting: relevance, from which it is computed")

    def pooled_size(self, name: str) -> int:
        """Width of encoder `name` after temporal pooling."""
        options = self.encoders[name]
        return options["feature_size"] * (NUM_STATISTICS if options["pooling"] == "statistics" else 1)


def _check_amount(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must not be negative or infinite, found {value}")


RankAwareFusionConfig.register_for_auto_class()

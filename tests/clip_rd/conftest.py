"""Small students of every kind of tower, and batches for them, shared by the tests of the family."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_blemo import CLIPRDConfig, CLIPRDModel

# Byte-level vocabulary of CLIP's tokenizer without merges: 256 bytes, 256 at a word's end, start and end of text.
START, END = 512, 513
IMAGE_SIZE = 64

_TOWER = {"intermediate_size": 20, "num_hidden_layers": 2, "hidden_act": "gelu"}
_VIT = {**_TOWER, "hidden_size": 12, "num_attention_heads": 3, "patch_size": 16}
VISION_TOWERS: dict[str, dict[str, Any]] = {
    "clip": {"model_type": "clip_vision_model", **_VIT},
    "vit": {"model_type": "vit", **_VIT},
    # By its output stride its last attention sees four patches; queries and keys of a single one get no gradient.
    "mobilevit": {
        **{"model_type": "mobilevit", "hidden_sizes": [8, 12, 16], "neck_hidden_sizes": [4, 4, 8, 8, 12, 12, 20]},
        **{"num_attention_heads": 2, "hidden_dropout_prob": 0.0, "output_stride": 16},
    },
    "swin": {
        **{"model_type": "swin", "embed_dim": 6, "depths": [1, 2], "num_heads": [1, 2]},
        **{"window_size": 4, "drop_path_rate": 0.0},
    },
    "efficientnet": {
        **{"model_type": "efficientnet", "width_coefficient": 0.02, "depth_coefficient": 0.1, "hidden_dim": 24},
        **{"depth_divisor": 4, "drop_connect_rate": 0.0, "batch_norm_momentum": 0.1},
    },
    "resnet": {
        **{"model_type": "resnet", "embedding_size": 4, "hidden_sizes": [6, 10], "depths": [1, 1]},
        **{"layer_type": "basic"},
    },
}
CLIP_TEXT = {
    **{"model_type": "clip_text_model", **_TOWER, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": END + 1},
    **{"max_position_embeddings": 80, "bos_token_id": START, "eos_token_id": END, "pad_token_id": END},
}
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "clip": CLIP_TEXT,
    "bert": {**CLIP_TEXT, **WITHOUT_DROPOUT, "model_type": "bert", "pad_token_id": 0},
    "roberta": {**CLIP_TEXT, **WITHOUT_DROPOUT, "model_type": "roberta", "pad_token_id": 1},
}


@pytest.fixture
def make_config() -> Callable[..., CLIPRDConfig]:
    """Makes the config of a small student from the names of its towers."""

    def make(vision: str = "clip", text: str = "clip", **options: Any) -> CLIPRDConfig:
        settings = {
            "vision_config": {"image_size": IMAGE_SIZE, **copy.deepcopy(VISION_TOWERS[vision])},
            "text_config": copy.deepcopy(TEXT_TOWERS[text]),
            "projection_dim": 8,
        }
        return CLIPRDConfig(**{**settings, **options})

    return make


@pytest.fixture
def make_model(make_config) -> Callable[..., CLIPRDModel]:
    """Makes a small student in evaluation mode, no parameter of which is at a special value."""

    def make(vision: str = "clip", text: str = "clip", seed: int = 0, **options: Any) -> CLIPRDModel:
        torch.manual_seed(seed)
        model = CLIPRDModel(make_config(vision, text, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        settle_batch_norms(model)
        return model.eval()

    return make


def settle_batch_norms(model: CLIPRDModel) -> None:
    """Gives batch norms the statistics of images, which an untrained model does not have."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    if norms:
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = 1.0
        with torch.no_grad():
            model.train().get_image_features(torch.randn(8, 3, IMAGE_SIZE, IMAGE_SIZE))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


@pytest.fixture
def make_batch() -> Callable[..., dict[str, torch.Tensor]]:
    """Makes pairs of an image and a text of 4 to 12 tokens, the first of which is the longest."""

    def make(num_images: int = 4, num_texts: int | None = None, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        num_texts = num_images if num_texts is None else num_texts
        input_ids = torch.full((num_texts, 12), END)
        attention_mask = torch.zeros(num_texts, 12, dtype=torch.int64)
        for row in range(num_texts):
            length = 12 if row == 0 else int(torch.randint(4, 12, (), generator=generator))
            input_ids[row, :length] = torch.randint(2, 500, (length,), generator=generator)
            input_ids[row, 0], input_ids[row, length - 1] = START, END
            attention_mask[row, :length] = 1
        pixel_values = torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}

    return make

"""Processes image-caption pairs with a CLIP's own tokenizer and image processor."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPProcessor, PreTrainedTokenizerBase

from hf_blemo.pairs.images import Crop, normalized, open_image, read_crop, to_rgb

# Towers trained on captions padded to full length, without a mask.
PADDED_TOWERS = ("siglip",)


class PairProcessor:
    """A model's tokenizer and image processor, for images cropped by the model's own rule or by given crops.

    Args:
        tokenizer: of the model.
        image_processor: of the model; one of transformers, with `size` or `crop_size`, `image_mean` and `image_std`.
        text_config: of the model's text tower; sets the longest caption, and whether to pad to it.
    """

    def __init__(self, tokenizer: Any, image_processor: Any, text_config: Any = None):
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        context = getattr(text_config, "max_position_embeddings", None)
        # A tokenizer without a maximum reports 1e30.
        lengths = [length for length in (context, tokenizer and tokenizer.model_max_length) if length]
        self.max_length = min((int(length) for length in lengths if length < 1e9), default=None)
        self.padding: Any = True
        if str(getattr(text_config, "model_type", "")).startswith(PADDED_TOWERS):
            self.padding = "max_length"

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images the model takes.

        Raises:
            ValueError: the image processor has no fixed size.
        """
        for name in ("crop_size", "size"):
            size = getattr(self.image_processor, name, None)
            if name == "crop_size" and not getattr(self.image_processor, "do_center_crop", True):
                continue
            if size and size.get("height") and size.get("width"):
                return size["height"], size["width"]
            if size and size.get("shortest_edge"):
                return size["shortest_edge"], size["shortest_edge"]
        raise ValueError(f"{type(self.image_processor).__name__}: found no height and width of the model's images")

    def save_pretrained(self, folder: str | Path) -> None:
        """Saves both as a `CLIPProcessor`, which AutoProcessor loads, as AutoTokenizer and AutoImageProcessor do.

        Args:
            folder: usually the model's; created if missing.

        Raises:
            ValueError: the tokenizer is not one of transformers.
        """
        if not isinstance(self.tokenizer, PreTrainedTokenizerBase):
            raise ValueError(f"expected a tokenizer of transformers to save, found {type(self.tokenizer).__name__}")
        CLIPProcessor(self.image_processor, self.tokenizer).save_pretrained(folder)

    def images(self, images: Sequence[Any]) -> torch.Tensor:
        """Resizes and crops images of any kind that [`open_image`] takes by the model's own rule.

        Returns:
            (n, 3, H, W) float32.

        Raises:
            BrokenImageError: an image cannot be read.
            ValueError: the rule leaves images of different sizes.
        """
        converted = [to_rgb(open_image(image)) for image in images]
        try:
            return self.image_processor(images=converted, return_tensors="pt")["pixel_values"]
        except ValueError:
            sizes = {np.shape(pixels)[1:] for pixels in self.image_processor(images=converted)["pixel_values"]}
            if len(sizes) == 1:
                raise
            name = type(self.image_processor).__name__
            raise ValueError(
                f"{name}: resizes without cropping, which leaves {len(sizes)} sizes in a batch; pass "
                "crops of one size (--augmentation.scale [0.9,1.0]), or set do_center_crop"
            ) from None

    def cropped(self, image: Image.Image, crop: Crop, decode_size: int | None = None) -> np.ndarray:
        """A crop, in the model's size, of an image that [`open_image`] has opened, (H, W, 3) uint8.

        A JPEG's crop is decoded at `decode_size` at least, by default at the model's own size.
        """
        height, width = self.image_size
        resample = getattr(self.image_processor, "resample", None)
        resample = Image.Resampling.BICUBIC if resample is None else Image.Resampling(int(resample))
        return read_crop(image, crop, (width, height), decode_size, resample)

    def normalized(self, pixels: Sequence[np.ndarray]) -> torch.Tensor:
        """Pixels of the model's size in its scale, (n, 3, H, W) float32."""
        processor = self.image_processor
        mean, std = processor.image_mean, processor.image_std
        if not getattr(processor, "do_normalize", True):
            mean, std = [0.0] * 3, [1.0] * 3
        return normalized(pixels, mean, std, getattr(processor, "rescale_factor", 1 / 255))

    def captions(self, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """`input_ids` and, where the tokenizer makes one, `attention_mask`, (n, L).

        Captions are cut to the text tower's context, keeping their end-of-text token, and padded to the longest
        caption. That is exact for causal towers, and for short captions less than half the work of padding to full
        length. Towers trained on full length get full length.

        Raises:
            ValueError: a caption is not text.
        """
        for caption in captions:
            if not isinstance(caption, str):
                raise ValueError(f"expected a caption, found {caption!r}")
        encoded = self.tokenizer(
            list(captions), padding=self.padding, truncation=True, max_length=self.max_length, return_tensors="pt"
        )
        return {name: encoded[name] for name in ("input_ids", "attention_mask") if name in encoded}

    def same_images(self, other: "PairProcessor") -> bool:
        """Whether both processors give the same pixels."""
        one, two = self.image_processor.to_dict(), other.image_processor.to_dict()
        return all(one.get(name) == two.get(name) for name in (one.keys() | two.keys()) - {"processor_class"})

    def same_tokens(self, other: "PairProcessor") -> bool:
        """Whether both processors give the same tokens."""
        if (self.max_length, self.padding) != (other.max_length, other.padding):
            return False
        if self.tokenizer is other.tokenizer:
            return True
        one, two = (getattr(side.tokenizer, "backend_tokenizer", None) for side in (self, other))
        return one is not None and two is not None and one.to_str() == two.to_str()

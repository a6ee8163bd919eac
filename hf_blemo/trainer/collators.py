"""Collators that turn rows of data sets into batches, for `transformers.Trainer` and any other loop."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase

from hf_blemo.clip_rd.distillation_clip_rd import teacher_prefix
from hf_blemo.errors import check_among
from hf_blemo.feature_sets import label_space
from hf_blemo.pairs.images import content_id, open_image
from hf_blemo.pairs.pair_processor import PairProcessor
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import UNLABELLED, LabelSpace, same_space
from hf_blemo.rank_aware_fusion.processing_rank_aware_fusion import RankAwareFusionProcessor


class BlendCollator:
    """Makes batches of features for [`RankAwareFusionModel`].

    The columns of the data set have the names of the model's arguments, so that Trainer keeps them: one nested column
    `features` (encoder -> (T, D), or None where absent) and, to train or evaluate, `labels` or `label`: shares of the
    names, one name, a class index, or whatever else [`LabelSpace.shares`] reads; None or -100 where unlabelled. Errors
    name a row by its column `clip`, which Trainer's default `remove_unused_columns` drops. Rows of `datasets` are
    nested lists by default; `dataset.with_format("numpy")` gives the same batches in less time.

    Args:
        processor: of the model; encoders that it does not know are skipped, those that no row has are masked.
        dataset: of the rows, optional: where it says its names, as a column of `ClassLabel` does, they must be the
            processor's.

    Raises:
        ValueError: the names of the data set, their order or their blends differ from the processor's.
    """

    def __init__(self, processor: RankAwareFusionProcessor, dataset: Any = None):
        self.processor = processor
        if dataset is not None:
            same_space(
                _space_of(dataset, processor.label_space), processor.label_space, "the data set", "the processor"
            )

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> BatchFeature:
        """Makes a batch.

        Args:
            rows: of the data set.

        Returns:
            What the processor returns, with every encoder; a row without a label beside labelled ones is unlabelled
            (-100).

        Raises:
            ValueError: a row has no features, or the processor refuses it; the message names the clip, or the row of
                the batch.
        """
        clips = [
            str(row["clip"]) if row.get("clip") else f"row {number} of the batch" for number, row in enumerate(rows)
        ]
        samples = []
        for clip, row in zip(clips, rows, strict=True):
            if not isinstance(row.get("features"), Mapping):
                raise ValueError(f"{clip}: found the columns {', '.join(row)}, expected 'features', encoder -> array")
            known = {name: values for name, values in row["features"].items() if name in self.processor.encoders}
            samples.append(known)
        labels = [_label(row) for row in rows] if any("labels" in row or "label" in row for row in rows) else None
        batch = self.processor(samples, labels=labels, clips=clips)
        # Trainer joins inputs over batches and processes, which must then hold the same encoders.
        for name, options in self.processor.encoders.items():
            if name not in batch["features"]:
                batch["features"][name] = torch.zeros(len(rows), 1, options["feature_size"])
                batch["feature_mask"][name] = torch.zeros(len(rows), 1, dtype=torch.bool)
        return batch


def _space_of(dataset: Any, expected: LabelSpace) -> LabelSpace:
    """The labels that a data set names; the expected ones where it names none."""
    for column in ("labels", "label"):
        feature = (dataset.features or {}).get(column)
        if isinstance(feature, datasets.ClassLabel):
            return LabelSpace(feature.names, expected.blend_percents, set(expected.unblended) & set(feature.names))
    labels = (dataset.features or {}).get("labels")
    # Lists of any length are a stranger's, of shares or of names; the processor checks each row of them.
    is_plain = getattr(labels, "length", -1) < 0 and not dataset.info.description
    return expected if is_plain or getattr(labels, "feature", None) is None else label_space(dataset)[0]


def _label(row: Mapping[str, Any]) -> Any:
    """The label of a row, of numbers of Python; None where unlabelled."""
    label: Any = row["labels"] if row.get("labels") is not None else row.get("label")
    label = label.tolist() if hasattr(label, "tolist") else label
    return None if isinstance(label, int) and label == UNLABELLED else label


def pair_columns(dataset: Any, image: str = "image", caption: str = "caption") -> Any:
    """Give the columns of image-caption pairs the names of CLIP-RD's arguments, so that Trainer keeps them.

    Images stay undecoded until a collator reads them, which decodes JPEGs no larger than needed.

    Args:
        dataset: a `Dataset` or `IterableDataset`.
        image: the column of images.
        caption: the column of captions, or of lists of them.

    Returns:
        The data set with only the columns `pixel_values` (images) and `input_ids` (captions).

    Raises:
        ValueError: a column is missing.
    """
    check_among("data set", "columns", dataset.column_names or (), (image, caption))
    dataset = dataset.select_columns([image, caption])
    if isinstance((dataset.features or {}).get(image), datasets.Image):
        dataset = dataset.cast_column(image, datasets.Image(decode=False))
    return dataset.rename_columns({image: "pixel_values", caption: "input_ids"})


class PairCollator:
    """Makes batches of image-caption pairs for a student, and for a teacher that takes other pixels or tokens.

    Args:
        processor: of the student: a [`PairProcessor`], or a `CLIPProcessor` or the like of transformers.
        teacher_processor: of a teacher that runs during training, or a list of several; None for a student alone.
        duplicates: `share` adds numbers to the batch by which pairs with the same picture or the same caption share
            their targets; `negative` leaves them each other's negatives.

    Raises:
        ValueError: a processor without tokenizer or image processor, or another word for `duplicates`.
    """

    def __init__(self, processor: Any, teacher_processor: Any = None, duplicates: str = "negative"):
        if duplicates not in ("share", "negative"):
            raise ValueError(f"duplicates: expected 'share' or 'negative', found {duplicates!r}")
        self.duplicates = duplicates
        self.processor = _pair_processor(processor)
        several = isinstance(teacher_processor, list | tuple)
        given = teacher_processor if several else [] if teacher_processor is None else [teacher_processor]
        self.teacher_processors = [_pair_processor(one) for one in given]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Makes a batch.

        Args:
            rows: with `pixel_values`, an image (bytes, path, Pillow's, or a row's image of `datasets`), and
                `input_ids`, a caption or a list of captions; torch's generator draws one of a list.

        Returns:
            `pixel_values` (n, 3, H, W), `input_ids` and `attention_mask` (n, L); where the teacher's differ, also
            `teacher_pixel_values`, `teacher_input_ids`, `teacher_attention_mask` (of further teachers
            `teacher_2_pixel_values` and so on); with shared duplicates, `image_ids` and `text_ids` (n,).

        Raises:
            ValueError: a column is missing, a caption is not text, or an image cannot be read.
        """
        for name in ("pixel_values", "input_ids"):
            if any(name not in row for row in rows):
                raise ValueError(
                    f"found the columns {', '.join(rows[0])}, expected 'pixel_values' and 'input_ids': name them by "
                    "pair_columns"
                )
        images = [open_image(row["pixel_values"]) for row in rows]
        captions = [_drawn(row["input_ids"]) for row in rows]
        ids = [content_id(image) for image in images] if self.duplicates == "share" else None
        batch = {"pixel_values": self.processor.images(images), **self.processor.captions(captions)}
        if ids is not None:
            batch["image_ids"] = torch.tensor(ids)
            batch["text_ids"] = torch.tensor([content_id(caption) for caption in captions])
        for number, teacher in enumerate(self.teacher_processors):
            prefix = teacher_prefix(number)
            if not self.processor.same_images(teacher):
                batch[f"{prefix}pixel_values"] = teacher.images(images)
            if not self.processor.same_tokens(teacher):
                batch |= {f"{prefix}{name}": values for name, values in teacher.captions(captions).items()}
        return batch


def _pair_processor(processor: Any) -> PairProcessor:
    if isinstance(processor, PairProcessor):
        return processor
    tokenizer, image_processor = (getattr(processor, name, None) for name in ("tokenizer", "image_processor"))
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or image_processor is None:
        raise ValueError(f"expected a processor with tokenizer and image_processor, found {type(processor).__name__}")
    return PairProcessor(tokenizer, image_processor)


def _drawn(caption: Any) -> Any:
    if isinstance(caption, list | tuple) and caption:
        return caption[int(torch.randint(len(caption), ()))]
    return caption

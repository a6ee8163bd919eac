"""Processor of rank-aware selective fusion: features of clips to padded batches, outputs to blends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_rank_aware_fusion import RankAwareFusionConfig, complete_encoders
from .decoding_rank_aware_fusion import (
    DECODINGS,
    decode_expected_score,
    decode_soft,
    decode_thresholds,
    default_blend_share,
)  # fmt: skip
from .label_space_rank_aware_fusion import LABEL_KINDS, UNLABELLED, Blend, default_decoding, space_of


class _Batch(BatchFeature):
    """A batch whose tensors inside `features` and `feature_mask` move with `to` as well."""

    def __getitem__(self, item: Any) -> Any:
        # Trainer's name of the main input, for metrics of inputs; of a model's own it would count the elements.
        return super().__getitem__("features" if item == "input_ids" else item)

    def to(self, *args, **kwargs) -> "_Batch":
        """Moves or casts every tensor; only floating-point ones are cast."""
        nested = {key: value for key, value in self.items() if isinstance(value, Mapping)}
        super().to(*args, **kwargs)
        for key, value in nested.items():
            self.data[key] = BatchFeature(dict(value)).to(*args, **kwargs).data
        return self


class _NoTokens:
    """Trainer looks for special tokens in its `processing_class`; features have none."""

    bos_token_id = eos_token_id = pad_token_id = None


class RankAwareFusionProcessor(ProcessorMixin):
    """Pads, masks and checks features for [`RankAwareFusionModel`]; turns its outputs into blends.

    Args:
        encoders: as in [`RankAwareFusionConfig`].
        decoding: how `post_process_blends` decodes: `expected_score` (joint probabilities), `thresholds`, or `soft`
            (the distribution itself); by default `soft` for soft labels, else `expected_score`.
        alpha, beta: the thresholds of `decoding="thresholds"`.
        blend_share: share of true blends that `expected_score` assumes, from 0 to 1; by default that of BlEmoRE for
            its labels, and a half for others that blend.
        id2label, blend_percents, unblended, label_kind: the labels, as in [`RankAwareFusionConfig`]; those of BlEmoRE
            by default. [`from_config`] takes them, and the encoders, from a config.

    Raises:
        ValueError: an entry of `encoders` is not valid, the labels are not, `decoding` is none of the three, or a
            number is out of its range.
    """

    tokenizer = _NoTokens()

    @property
    def model_input_names(self) -> list[str]:
        """Names of the model's inputs beside the labels."""
        return ["features", "feature_mask"]

    def __init__(
        self,
        encoders: dict[str, dict[str, Any]],
        decoding: str | None = None,
        alpha: float = 0.1,
        beta: float = 0.1,
        blend_share: float | None = None,
        encoder_order: list[str] | None = None,
        id2label: dict[int, str] | None = None,
        blend_percents: list[list[int]] | None = None,
        unblended: list[str] | None = None,
        label_kind: str = "valid",
    ):
        if label_kind not in LABEL_KINDS:
            raise ValueError(f"label_kind {label_kind!r} is not one of {', '.join(LABEL_KINDS)}")
        self.label_space = space_of({"id2label": id2label, "blend_percents": blend_percents, "unblended": unblended})
        self.id2label = dict(enumerate(self.label_space.names))
        self.blend_percents = [list(split) for split in self.label_space.blend_percents]
        self.unblended = list(self.label_space.unblended)
        self.label_kind = label_kind
        if decoding is None:
            decoding = default_decoding(label_kind)
        if decoding not in DECODINGS:
            raise ValueError(f"decoding {decoding!r} is not one of {', '.join(DECODINGS)}")
        self.encoders = complete_encoders(encoders, encoder_order)
        self.encoder_order = list(self.encoders)
        self.decoding = decoding
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.blend_share = default_blend_share(self.label_space) if blend_share is None else float(blend_share)
        _check_shares(alpha=self.alpha, beta=self.beta, blend_share=self.blend_share)
        super().__init__()

    @classmethod
    def from_config(cls, config: RankAwareFusionConfig, **options: Any) -> "RankAwareFusionProcessor":
        """Makes the processor of a model: its encoders and its labels.

        Args:
            config: of the model.
            options: `decoding`, `alpha`, `beta` and `blend_share`.
        """
        return cls(
            config.encoders,
            id2label=dict(enumerate(config.label_space.names)),
            blend_percents=config.blend_percents,
            unblended=config.unblended,
            label_kind=config.label_kind,
            **options,
        )

    def _check(self, name: str, values: Any, where: str) -> np.ndarray:
        """One encoder of one sample as (T, D) float32."""
        if name not in self.encoders:
            raise ValueError(f"{where}: unknown encoder {name!r}; expected some of {', '.join(self.encoders)}")
        if isinstance(values, torch.Tensor):
            values = values.detach().float().cpu().numpy()
        size = self.encoders[name]["feature_size"]
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(values, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{where}, encoder {name!r}: expected numbers of shape (time, {size}) or ({size},), found {error}"
            ) from error
        if array.ndim == 3 and array.shape[1] == 1:
            array = array[:, 0]
        elif array.ndim == 1:
            array = array[None]
        if array.ndim != 2 or array.shape[1] != size:
            found = tuple(np.shape(values))
            raise ValueError(f"{where}, encoder {name!r}: expected shape (time, {size}) or ({size},), found {found}")
        if len(array) == 0:
            raise ValueError(f"{where}, encoder {name!r}: empty sequence; leave an absent encoder out instead")
        if not np.isfinite(array).all():
            step, column = np.argwhere(~np.isfinite(array))[0]
            raise ValueError(
                f"{where}, encoder {name!r}: expected finite values, found {array[step, column]} at step {step}, "
                f"column {column}"
            )
        return array

    def _labels(self, labels: Sequence[Any], num_samples: int, names: Sequence[str]) -> torch.Tensor:
        if len(labels) != num_samples:
            raise ValueError(f"expected one row of labels per sample, found {len(labels)} for {num_samples} samples")
        rows = []
        for name, given in zip(names, labels, strict=True):
            try:
                rows.append(self.label_space.shares(given, self.label_kind))
            except ValueError as error:
                raise ValueError(f"{name}: {error}, or {UNLABELLED:.0f} everywhere for an unlabelled sample") from None
        return torch.from_numpy(np.stack(rows)).float()

    def __call__(
        self,
        samples: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        labels: Sequence[Any] | None = None,
        clips: Sequence[str] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Makes a batch.

        Args:
            samples: for each sample, encoder name -> (T, D) or (D,) array; an absent encoder is left out or None.
                A single sample may be given without a list.
            labels: for each sample a label as of [`LabelSpace.shares`], such as a row of C shares, a name or a class
                index; None or -100 everywhere for an unlabelled row.
            clips: names of the samples, for error messages.
            return_tensors: must be `"pt"`.

        Returns:
            `features` {name: (B, T, D) float32, zero-padded}, `feature_mask` {name: (B, T) bool} and, with `labels`,
            `labels` (B, C) shares. An encoder that no sample has is left out.

        Raises:
            ValueError: unknown encoder, wrong width, empty sequence, NaN or infinite values, a sample without any
                encoder, labels that are none of the space; the message names the sample.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', found {return_tensors!r}")
        if isinstance(samples, Mapping):
            samples = [samples]
        try:
            num_samples = len(samples)
        except TypeError:
            found = type(samples).__name__
            raise ValueError(
                f"expected a mapping of encoder names to arrays, or a list of such mappings, found {found}"
            ) from None
        # Arrays have no truth.
        if num_samples == 0:
            raise ValueError("found no samples, expected at least one")
        if clips is not None and len(clips) != num_samples:
            raise ValueError(f"expected one name per sample, found {len(clips)} clips for {num_samples} samples")
        names = [f"sample {index}" if clips is None else str(clips[index]) for index in range(num_samples)]
        checked: list[dict[str, np.ndarray]] = []
        for where, sample in zip(names, samples, strict=True):
            if not isinstance(sample, Mapping):
                raise ValueError(
                    f"{where}: expected a mapping of encoder names to arrays, found {type(sample).__name__}"
                )
            arrays = {name: self._check(name, value, where) for name, value in sample.items() if value is not None}
            if not arrays:
                raise ValueError(f"{where}: no encoder is present; expected some of {', '.join(self.encoders)}")
            checked.append(arrays)
        features, feature_mask = {}, {}
        for name, options in self.encoders.items():
            lengths = [len(sample.get(name, ())) for sample in checked]
            if not any(lengths):
                continue
            padded = np.zeros((len(checked), max(lengths), options["feature_size"]), dtype=np.float32)
            for row, (sample, length) in enumerate(zip(checked, lengths, strict=True)):
                if length:
                    padded[row, :length] = sample[name]
            features[name] = torch.from_numpy(padded)
            feature_mask[name] = torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)
        batch: dict[str, Any] = {"features": features, "feature_mask": feature_mask}
        if labels is not None:
            batch["labels"] = self._labels(labels, len(checked), names)
        return _Batch(batch)

    def post_process_blends(
        self,
        outputs: Any,
        decoding: str | None = None,
        alpha: float | None = None,
        beta: float | None = None,
        blend_share: float | None = None,
    ) -> list[Blend]:
        """Turns the model's outputs into blends.

        Args:
            outputs: what the model returned (`joint_probabilities` (B, L) or `probabilities` (B, C) are read).
            decoding, alpha, beta, blend_share: override the processor's own.

        Returns:
            For each sample a list of `{"emotion": str, "salience": per cent}` in the order of the names: those of a
            valid label, or all of them where `decoding` is `soft`.

        Raises:
            ValueError: unknown `decoding`, a number out of its range, or probabilities that are not finite.
        """
        decoding = self.decoding if decoding is None else decoding
        alpha, beta = (self.alpha if alpha is None else alpha), (self.beta if beta is None else beta)
        blend_share = self.blend_share if blend_share is None else blend_share
        _check_shares(alpha=alpha, beta=beta, blend_share=blend_share)
        if decoding == "expected_score":
            joint = outputs["joint_probabilities"].detach().float().cpu().numpy()
            return decode_expected_score(joint, blend_share, self.label_space)
        if decoding not in DECODINGS:
            raise ValueError(f"decoding {decoding!r} is not one of {', '.join(DECODINGS)}")
        probabilities = outputs["probabilities"].detach().float().cpu().numpy()
        if decoding == "thresholds":
            return decode_thresholds(probabilities, alpha, beta, self.label_space)
        return decode_soft(probabilities, self.label_space)


def _check_shares(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be from 0 to 1, found {value}")


RankAwareFusionProcessor.register_for_auto_class()

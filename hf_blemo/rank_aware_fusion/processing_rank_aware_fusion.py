"""Processor of rank-aware selective fusion: features of clips to padded batches, outputs to blends."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_rank_aware_fusion import complete_encoders
from .decoding_rank_aware_fusion import BLEND_SHARE, LABEL_PERCENT, decode_expected_score, decode_thresholds
from .modeling_rank_aware_fusion import IGNORED_LABEL

DECODINGS = ("expected_score", "thresholds")


class _Batch(BatchFeature):
    """A batch whose tensors inside `features` and `feature_mask` move with `to` as well."""

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
        decoding: how `post_process_blends` decodes: `expected_score` (joint probabilities) or `thresholds`.
        alpha, beta: the thresholds of `decoding="thresholds"`.
        blend_share: share of true blends that `expected_score` assumes.

    Raises:
        ValueError: an entry of `encoders` is not valid, or `decoding` is neither of the two.
    """

    tokenizer = _NoTokens()

    def __init__(
        self,
        encoders: dict[str, dict[str, Any]],
        decoding: str = "expected_score",
        alpha: float = 0.1,
        beta: float = 0.1,
        blend_share: float = BLEND_SHARE,
        encoder_order: list[str] | None = None,
    ):
        if decoding not in DECODINGS:
            raise ValueError(f"decoding {decoding!r} is not one of {', '.join(DECODINGS)}")
        self.encoders = complete_encoders(encoders, encoder_order)
        self.encoder_order = list(self.encoders)
        self.decoding = decoding
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.blend_share = float(blend_share)
        super().__init__()

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

    @staticmethod
    def _labels(labels: Sequence[Any], num_samples: int, names: Sequence[str]) -> torch.Tensor:
        if len(labels) != num_samples:
            raise ValueError(f"expected one row of labels per sample, found {len(labels)} for {num_samples} samples")
        rows = torch.full((num_samples, 6), float(IGNORED_LABEL))
        valid = LABEL_PERCENT / 100
        for index, given in enumerate(labels):
            if given is None:
                continue
            try:
                row = np.asarray(given, dtype=np.float32)
            except (TypeError, ValueError):
                row = np.empty(0, dtype=np.float32)
            if row.shape != (6,) or not ((row == IGNORED_LABEL).all() or (np.abs(valid - row).max(1) < 1e-3).any()):
                raise ValueError(
                    f"{names[index]}: labels {given!r} are no valid blend; expected one emotion, two of the "
                    f"first five at 70/30, 50/50 or 30/70, or {IGNORED_LABEL} six times for an unlabelled sample"
                )
            rows[index] = torch.from_numpy(row)
        return rows

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
            labels: (B, 6) soft labels; None or -100 six times for an unlabelled row.
            clips: names of the samples, for error messages.
            return_tensors: must be `"pt"`.

        Returns:
            `features` {name: (B, T, D) float32, zero-padded}, `feature_mask` {name: (B, T) bool} and, with `labels`,
            `labels` (B, 6). An encoder that no sample has is left out.

        Raises:
            ValueError: unknown encoder, wrong width, empty sequence, NaN or infinite values, a sample without any
                encoder, labels that are no valid blend; the message names the sample.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', found {return_tensors!r}")
        if isinstance(samples, Mapping):
            samples = [samples]
        if not samples:
            raise ValueError("found no samples, expected at least one")
        if clips is not None and len(clips) != len(samples):
            raise ValueError(f"expected one name per sample, found {len(clips)} clips for {len(samples)} samples")
        names = [f"sample {index}" if clips is None else str(clips[index]) for index in range(len(samples))]
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
    ) -> list[list[dict[str, str | float]]]:
        """Turns the model's outputs into blends.

        Args:
            outputs: what the model returned (`joint_probabilities` (B, 36) or `probabilities` (B, 6) are read).
            decoding, alpha, beta, blend_share: override the processor's own.

        Returns:
            For each sample one or two `{"emotion": str, "salience": per cent}`, in the order of the emotions.

        Raises:
            ValueError: unknown `decoding`.
        """
        decoding = self.decoding if decoding is None else decoding
        if decoding == "expected_score":
            joint = outputs["joint_probabilities"].detach().float().cpu().numpy()
            return decode_expected_score(joint, self.blend_share if blend_share is None else blend_share)
        if decoding == "thresholds":
            probabilities = outputs["probabilities"].detach().float().cpu().numpy()
            return decode_thresholds(
                probabilities, self.alpha if alpha is None else alpha, self.beta if beta is None else beta
            )
        raise ValueError(f"decoding {decoding!r} is not one of {', '.join(DECODINGS)}")


RankAwareFusionProcessor.register_for_auto_class()

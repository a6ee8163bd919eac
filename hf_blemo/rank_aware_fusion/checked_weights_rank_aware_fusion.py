"""Refuses weights that are not finite, or not all there, since a model would answer from them without a word."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

# Options that say where a checkpoint is.
_PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_CHECKED = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """Finds a tensor with NaN or infinite values; returns its name."""
    for name, values in weights.items():
        if getattr(values, "dtype", None) in _CHECKED and values.device.type != "meta" and values.numel():
            # Extremes are NaN where any value is; finding them costs a tenth of looking at each value.
            lowest, highest = values.detach().aminmax()
            if not (lowest.isfinite() and highest.isfinite()):
                return name
    return None


class CheckedWeights(PreTrainedModel):
    """A model of transformers that is loaded whole and saved finite."""

    # Beginnings of the names of weights that start anew although the checkpoint's own config has them.
    _started_anew: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """Loads a model as transformers does, but not with random numbers in the place of missing weights.

        Settings that are changed at load may need weights that the checkpoint's own config does not name: these start
        anew. With `output_loading_info` the report says what is missing, and nothing is refused for that.

        Raises:
            ValueError: weights are missing, or not finite.
        """
        source = pretrained_model_name_or_path
        loaded: Any = super().from_pretrained(source, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        missing = [name for name in sorted(report["missing_keys"]) if not name.startswith(model._started_anew)]
        if missing and source is not None and not output_loading_info:
            own = type(model.config).from_pretrained(source, **{key: kwargs[key] for key in _PLACE if key in kwargs})
            with torch.device("meta"):
                needed = cls(own).state_dict()
            missing = [f"{name} is missing" for name in missing if name in needed]
            if missing:
                more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
                raise ValueError(f"{source}: the weights do not fit config.json: {'; '.join(missing[:3])}{more}")
        name = not_finite(model.state_dict())
        if name is not None:
            raise ValueError(
                f"{source}: the weights {name} hold NaN or infinite values, expected finite numbers: the file is "
                "damaged, or its training diverged"
            )
        return (model, report) if output_loading_info else model

    def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
        """Loads an adapter onto the model as transformers does, which `from_pretrained` of an adapter calls.

        Raises:
            ValueError: transformers does not load all weights of the adapter, such as DoRA's magnitudes.
        """
        report = super().load_adapter(*args, **kwargs)
        lost = sorted({*report.missing_keys, *report.unexpected_keys})
        if lost:
            raise ValueError(
                f"transformers does not load the adapter whole ({lost[0]}), expected all its weights: load it by "
                "peft.PeftModel.from_pretrained(model, adapter)"
            )
        return report

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, state_dict: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        """Saves the model as transformers does.

        Raises:
            ValueError: weights are not finite; nothing is written then.
        """
        name = not_finite(self.state_dict() if state_dict is None else state_dict)
        if name is not None:
            raise ValueError(
                f"{save_directory}: not saved, since the weights {name} hold NaN or infinite values: the training "
                "diverged; a smaller learning rate may help"
            )
        super().save_pretrained(save_directory, is_main_process, state_dict, *args, **kwargs)

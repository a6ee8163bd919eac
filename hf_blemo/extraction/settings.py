"""Settings of the extraction of features."""

from dataclasses import dataclass, field
from typing import Any

from hf_blemo.encoders.encoder_options import DTYPES, ENCODER_KEYS, IMAGE_BACKENDS
from hf_blemo.errors import check_known
from hf_blemo.programs.setting_checks import check_choices, check_not_negative, check_repository

SYNTHETIC = "synthetic"


@dataclass
class ExtractionSettings:
    """What `training/extract_features.py` reads from YAML and command line.

    Args:
        data: clips: a folder, one file, a `.csv` with a column `video` or `audio` of paths, a saved data set, a Hub
            id, or `synthetic`. A folder with `train_metadata.csv` of BlEmoRE gives labels and folds.
        output_dir: data set of features to make; an interrupted run of the same settings goes on where it stopped.
        encoders: name -> `model_id` (Hub id or folder), and where wanted `revision`, `extraction` (`frames_per_second`
            and `image_backend` of image and video models, `layer` of speech models) and `batch_size`.
        model: folder or Hub id of a fusion, whose own encoders are taken instead.
        imported: name -> folder with a `.npy` or `.csv` of features per clip, by programs outside this package.
        frames_per_second: how often image and video models look whose `extraction` does not say; every frame by
            default.
        image_backend: what resizes for image and video models whose `extraction` does not say: `pil` (default) or
            `torchvision`, which is several times as fast and differs by one level of 255 in few pixels.
        split: of a data set on the Hub.
        video_column, audio_column: of a list or data set; found by name or type by default.
        dtype: of the models: `float32`, `bfloat16` or `float16` (on a GPU).
        feature_dtype: of what is stored: `float16`, `float32`, or `auto` for float16 where it fits.
        num_threads: clips decoded at once by a process; 0 for half of the cores, at most 8.
        overwrite: whether a data set that is at `output_dir` may be replaced, and an unfinished run discarded.
        trust_remote_code: whether code of an encoder's repository may run; its `revision` must be a commit then.
        push_to_hub: data set repository (owner/name) to upload to.
        hub_private: whether a repository that is new is private.
        synthetic: settings of the built-in clips.
    """

    data: str = SYNTHETIC
    output_dir: str = "out/features"
    encoders: dict[str, dict] = field(default_factory=dict)
    model: str | None = None
    imported: dict[str, str] = field(default_factory=dict)
    frames_per_second: float | None = None
    image_backend: str | None = None
    split: str = "train"
    video_column: str | None = None
    audio_column: str | None = None
    dtype: str = "float32"
    feature_dtype: str = "auto"
    num_threads: int = 0
    overwrite: bool = False
    trust_remote_code: bool = False
    push_to_hub: str | None = None
    hub_private: bool = True
    synthetic: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        if bool(self.encoders) == (self.model is not None):
            found = "both" if self.encoders else "neither"
            raise ValueError(
                f"expected encoders (--encoders.NAME.model_id ID) or the model that names them, found {found}"
            )
        for name, entry in self.encoders.items():
            if not isinstance(entry, dict) or not entry.get("model_id"):
                raise ValueError(f"encoders.{name}: expected a model_id, found {entry!r}")
            check_known(f"encoders.{name}", entry, ENCODER_KEYS)
        for name in (*self.encoders, *self.imported):
            if not name or "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"encoders: {name!r} cannot name a folder, expected letters, digits, '-' and '_'")
        for name in self.imported:
            if name in self.encoders:
                raise ValueError(f"imported: encoder {name!r} is among the encoders too, expected different names")
        check_choices(self, {"dtype": DTYPES, "feature_dtype": ("auto", "float16", "float32")})
        check_not_negative(self, ("num_threads",))
        check_repository("push_to_hub", self.push_to_hub)
        for name in ("frames_per_second", "image_backend"):
            if getattr(self, name) is not None and self.model is not None:
                raise ValueError(f"{name} is for encoders; those of a model know it themselves")
        if self.image_backend is not None:
            check_choices(self, {"image_backend": IMAGE_BACKENDS})
        if self.synthetic and self.data != SYNTHETIC:
            raise ValueError(f"synthetic is about data {SYNTHETIC!r}, found data {self.data!r}")

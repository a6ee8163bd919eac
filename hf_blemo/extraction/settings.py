"""Settings of the extraction of features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.dataclasses import strict

from hf_blemo.built_in import SYNTHETIC, check_options
from hf_blemo.encoders.encoder_options import (
    ENCODER_KEYS,
    Backend,
    Dtype,
    ImageBackend,
    check_encoders,
    encoders_of,
    options_of,
    placed,
)
from hf_blemo.errors import check_extra, check_known, check_once
from hf_blemo.loading import FUSION, find_config, local_path
from hf_blemo.programs.settings import not_negative, num_words, repository

if TYPE_CHECKING:
    from hf_blemo.extraction.clip_sources import MediaClip
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace

# Options of the command line with names of their own.
_SHORT = {"output": "output_dir", "threads": "num_threads"}


@strict
@dataclass
class ExtractionSettings:
    """Settings of `hf-blemo features`.

    Args:
        data: clips: a folder, one file, a `.csv` with a column `video` or `audio` of paths, a saved data set, a Hub
            id, or `synthetic`. A folder with BlEmoRE's `train_metadata.csv` also gives labels and folds.
        output_dir: data set of features to write; an interrupted run of the same settings resumes.
        encoders: name -> `model_id` (Hub id or folder), and optionally `revision`, `extraction` (`frames_per_second`,
            `image_backend` and `crop: face` of image and video models; `layer`, such as 9, or `layers`, such as `6-12`
            for their mean or `[6, 9, 12]` for all side by side), `batch_size` and `backend`.
        model: folder or Hub id of a fusion; uses the fusion's encoders instead of `encoders`.
        imported: name -> folder with features of other programs, one `.npy` or `.csv` per clip.
        frames_per_second: frames sampled per second by image and video models without their own setting (default:
            every frame).
        image_backend: resizing for image and video models without their own setting: `pil` (default) or
            `torchvision`, which is several times as fast and differs by one level of 255 in few pixels.
        split: split of a data set on the Hub.
        video_column, audio_column: columns of a list or data set (default: found by name or type).
        label_column: column of a list or data set with labels: class names or indices, sets of names, shares.
        label_prefix: columns with shares or votes, named by what follows it.
        label_kind: `valid` for one name, or a blend by `blend_percents`; `soft` for any distribution.
        names: all classes, in order (default: as in the column).
        blend_percents: splits that blends can have, such as `70/30` (default: none; even ones for sets of names).
        unblended: names that never blend.
        folds: deal the clips into this many folds (default: column `fold`); without columns of labels by the clips'
            names, which carry BlEmoRE's label and actor.
        group: column of what stays in one fold, such as the actor; kept in the data set.
        seed: of the folds.
        dtype: precision of the models: `float32`, `bfloat16` or `float16` (on a GPU), or `int8` (by `onnxruntime`).
        backend: what runs models without their own setting: `eager` torch, `compile`, torch's compiler, or
            `onnxruntime` (extra `onnx`), on the CPU.
        feature_dtype: precision of stored features: `float16`, `float32`, or `auto` for float16 where it fits.
        num_threads: clips decoded at once per process; 0 for half of the cores, at most 8.
        overwrite: replace an existing data set at `output_dir`, and discard an unfinished run.
        trust_remote_code: run code from an encoder's repository; `revision` must then be a commit.
        push_to_hub: data set repository (owner/name) to upload to.
        hub_private: make a new repository private.
        synthetic: settings of the built-in clips.
        limits: other bounds of what is believed of a clip, by name, such as `max_seconds` and `max_pixels`.
    """

    data: str
    output_dir: str = "out/features"
    encoders: dict[str, dict] = field(default_factory=dict)
    model: str | None = None
    imported: dict[str, str] = field(default_factory=dict)
    frames_per_second: float | int | None = None
    image_backend: ImageBackend | None = None
    split: str = "train"
    video_column: str | None = None
    audio_column: str | None = None
    label_column: str | None = None
    label_prefix: str | None = None
    label_kind: Literal["valid", "soft"] = "valid"
    names: list[str] | None = None
    blend_percents: list[str] | None = None
    unblended: list[str] = field(default_factory=list)
    folds: int | None = None
    group: str | None = None
    seed: int = 0
    dtype: Dtype = "float32"
    backend: Backend = "eager"
    feature_dtype: Literal["auto", "float16", "float32"] = "auto"
    num_threads: int = not_negative(0)
    overwrite: bool = False
    trust_remote_code: bool = False
    push_to_hub: str | None = repository(None)
    hub_private: bool = True
    synthetic: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, float | int] = field(default_factory=dict)

    @classmethod
    def spelled_out(cls, arguments: Sequence[str]) -> list[str]:
        """The arguments of the command line without their short forms.

        Args:
            arguments: with `SOURCE` for `data`, `--output` for `output_dir`, `--threads` for `num_threads`, `--public`
                for a `hub_private` that is false, and `--encoder NAME=MODEL[@REVISION] ...` for entries of `encoders`.

        Returns:
            Keys and values for `read_settings`.

        Raises:
            ValueError: a short form is wrong.
        """
        room = {setting.name: num_words(setting.type) for setting in fields(cls)} | {"encoder": None, "public": 0}
        sources: list[str] = []
        options: list[tuple[str, list[str]]] = []
        for word in arguments:
            if word.startswith("--"):
                key, equals, value = word[2:].partition("=")
                options.append((key, [value] if equals else []))
                name = key.replace("-", "_")
                left = room.get(_SHORT.get(name, name), 1)
                if left is not None and equals:
                    left = 0
            elif options and (left is None or left > 0 or (left == 0 and word in ("true", "false"))):
                options[-1][1].append(word)
                left = None if left is None else left - 1
            else:
                sources.append(word)
        if len(sources) > 1:
            raise ValueError(f"found {sources[1]!r} beside {sources[0]!r}, expected one SOURCE of clips")
        words = ["--data", *sources] if sources else []
        given = {key.replace("-", "_") for key, _ in options}
        for key, values in options:
            name = key.replace("-", "_")
            if name == "public":
                if values or "push_to_hub" not in given:
                    raise ValueError("--public needs --push-to-hub and takes no value")
                words += ["--hub_private", "false"]
            elif name == "encoder":
                entries = [value.partition("=") for value in values]
                for encoder, sign, model in entries:
                    if not (encoder and sign and model) or "." in encoder:
                        raise ValueError(f"--encoder {encoder}{sign}{model}: expected NAME=MODEL[@REVISION]")
                    model, _, revision = model.partition("@")
                    words += [f"--encoders.{encoder}.model_id", model]
                    words += [f"--encoders.{encoder}.revision", revision] if revision else []
                check_once("--encoder:", [encoder for encoder, _, _ in entries])
            else:
                words += [f"--{_SHORT.get(name, key)}", *values]
        return words

    def __post_init__(self):
        if bool(self.encoders) == (self.model is not None):
            found = "both encoders and the model" if self.encoders else "neither encoders nor a model"
            raise ValueError(f"found {found} that names them, expected --encoder NAME=MODEL or --model MODEL")
        for name, entry in self.encoders.items():
            check_known(f"encoders.{name}", entry, ENCODER_KEYS)
            if not entry.get("model_id"):
                raise ValueError(f"encoders.{name}: expected a model_id, found {entry!r}")
        for name in (*self.encoders, *self.imported):
            if not name or "/" in name or "\\" in name or name.startswith("."):
                raise ValueError(f"encoders: {name!r} cannot name a folder, expected letters, digits, '-' and '_'")
        for name in self.imported:
            if name in self.encoders:
                raise ValueError(f"imported: encoder {name!r} is among the encoders too, expected different names")
        for name in ("frames_per_second", "image_backend"):
            if getattr(self, name) is not None and self.model is not None:
                raise ValueError(f"{name} cannot be combined with `model`, whose config sets it")
        labels = self.label_column or self.label_prefix
        for name in ("names", "blend_percents", "unblended", "group"):
            if getattr(self, name) and not labels:
                raise ValueError(f"{name} needs label_column or label_prefix")
        if self.folds is not None and self.folds < 1:
            raise ValueError(f"folds: found {self.folds}, expected at least 1")
        if self.synthetic and self.data != SYNTHETIC:
            raise ValueError(f"synthetic needs data {SYNTHETIC!r}, found data {self.data!r}")

    def check_places(self) -> None:
        """Checks that clips, encoders and imported features are there, and that the output may be written.

        Raises:
            ValueError, FileNotFoundError, FileExistsError, MissingExtraError: as `extract_features`.
        """
        from hf_blemo.feature_sets.writing import refuse_existing

        refuse_existing(Path(self.output_dir), self.overwrite)
        self.check_inputs()

    def check_inputs(self) -> None:
        """As [`check_places`], of the inputs alone."""
        from hf_blemo.feature_sets.writing import is_dataset_folder

        path = Path(self.data)
        if self.data == SYNTHETIC:
            check_options("clips", self.synthetic)
        elif path.is_file() or (path.is_dir() and not is_dataset_folder(path)):
            self.clips(self.data)
        else:
            local_path(self.data)
        entries = self.encoder_entries()
        check_encoders(entries)
        for name, entry in entries.items():
            if options_of(entry).get("person") == "all":
                raise ValueError(
                    f"encoder {name!r}: found person all, expected largest, central or a number, as features are of "
                    "clips; person all is for their prediction"
                )
        imported_files(self.imported)
        check_extra("media", load=False)

    def clips(self, source: str | Path) -> "tuple[list[MediaClip], LabelSpace]":
        """Lists the clips of a source, with their labels, folds and groups.

        Args:
            source: `data`, or where it was drawn.

        Returns:
            The clips; and the space of their labels.

        Raises:
            ValueError, FileNotFoundError: as `find_clips` and `find_labelled_clips`.
        """
        from hf_blemo.extraction.clip_sources import Reading, find_clips, find_labelled_clips
        from hf_blemo.feature_sets.folds import deal_by_names
        from hf_blemo.feature_sets.label_reading import LabelOptions
        from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import BLEMORE_SPACE

        columns = (self.split, self.video_column, self.audio_column)
        if self.label_column is None and self.label_prefix is None:
            clips = find_clips(source, *columns)
            if self.folds is not None:
                found = deal_by_names([clip.name for clip in clips], self.folds, self.seed, str(source))
                for clip, labels, fold, actor in zip(clips, *found, strict=True):
                    clip.labels, clip.fold, clip.group = labels, int(fold), actor
            return clips, BLEMORE_SPACE
        options = LabelOptions(
            *(self.label_column, self.label_prefix, self.names, self.label_kind),
            *(self.blend_percents, self.unblended),
        )
        return find_labelled_clips(source, Reading(options, self.folds, self.group, self.seed), *columns)

    def encoder_entries(self) -> dict[str, Any]:
        """Lists the encoders that are to be loaded.

        Returns:
            Name -> entry as of `encoders`.

        Raises:
            ValueError, FileNotFoundError: the `model` is no fusion, or does not say where an encoder comes from.
        """
        if self.model is None:
            return self.encoders
        where = f"model {self.model!r}"
        config = find_config(self.model, where, model_type=FUSION) or {}
        entries = {name: entry for name, entry in encoders_of(config).items() if name not in self.imported}
        for name, entry in entries.items():
            if not entry.get("model_id"):
                raise ValueError(
                    f"{where}: its config does not say where encoder {name!r} comes from; give a folder of its "
                    f"features by --imported.{name} DIR"
                )
        if not entries:
            raise ValueError(f"{where}: all its encoders are imported, so there is nothing to extract")
        return {name: placed(self.model, entry) for name, entry in entries.items()}


def imported_files(folders: Mapping[str, str]) -> dict[str, dict[str, Path]]:
    """Finds features of other programs.

    Args:
        folders: the setting `imported`.

    Returns:
        Name -> clip -> file.

    Raises:
        FileNotFoundError: there is no such folder, or no file in it.
    """
    from hf_blemo.feature_sets.feature_files import feature_files

    files = {}
    for name, folder in folders.items():
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"imported.{name}: no folder {folder}, expected one with a feature file per clip")
        files[name] = feature_files(Path(folder))
        if not files[name]:
            raise FileNotFoundError(f"imported.{name}: found no .npy or .csv in {folder}, expected one per clip")
    return files

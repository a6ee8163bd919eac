"""Values that settings and configs may give for an encoder; importable without torch."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from hf_blemo.errors import check_choice, check_extra
from hf_blemo.loading import OPENSMILE, local_path, read_config

# Keys of an entry that names an encoder to load; the first three travel with the models trained on its features.
ENCODER_KEYS = ("model_id", "revision", "extraction", "batch_size", "backend")
# Precision of models, in the names of torch and, of quantised ones, of onnxruntime.
TorchDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal[TorchDtype, "int8"]
DTYPES = get_args(Dtype)
TORCH_DTYPES, ONNX_DTYPES = get_args(TorchDtype), ("float32", "int8")
# What runs the networks.
Backend = Literal["eager", "compile", "onnxruntime"]
BACKENDS = get_args(Backend)
# Backends that resize frames, in transformers' names.
ImageBackend = Literal["pil", "torchvision"]
IMAGE_BACKENDS = get_args(ImageBackend)
# Feature sets of openSMILE, without those that it calls superseded.
OPENSMILE_SETS = (
    *("eGeMAPSv02", "GeMAPSv01b", "ComParE_2016", "emobase"),
    *("IS09", "IS10", "IS11", "IS12", "IS13"),
)
_RANGE = re.compile(r"([0-9]{1,4})-([0-9]{1,4})", re.ASCII)


def encoders_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the encoders that the config of a fusion names.

    Args:
        config: content of its file.

    Returns:
        Entries of `encoders` in the model's order; none of an invalid config, which loading the model refuses.
    """
    entries = config.get("encoders")
    if not isinstance(entries, Mapping) or not all(isinstance(entry, Mapping) for entry in entries.values()):
        return {}
    return {name: entries[name] for name in config.get("encoder_order") or entries if name in entries}


def encoder_source(folder: str | Path, model_id: str) -> str:
    """Where an encoder is.

    Args:
        folder: of the fusion.
        model_id: of its config.

    Returns:
        The same; if it begins with `./`, its place in the fusion's folder, unless it lies only in the current one.
    """
    beside = Path(folder, model_id).absolute()
    return str(beside) if model_id.startswith("./") and (beside.exists() or not Path(model_id).exists()) else model_id


def asked_layers(extraction: Mapping[str, Any], where: str) -> tuple[tuple[int, ...], bool]:
    """Reads the layers that the options of an encoder name.

    Args:
        extraction: options, with `layer` (a number), `layers` (a range such as `6-12`, or a list) or neither.
        where: name of the model in errors.

    Returns:
        Their numbers, none for the model's own output; and whether their mean is wanted rather than all side by side.

    Raises:
        ValueError: both options are given, or one has another value.
    """
    layer, layers = extraction.get("layer"), extraction.get("layers")
    if layer is None and layers is None:
        return (), False
    if layer is not None and layers is not None:
        raise ValueError(f"{where}: found both layer {layer!r} and layers {layers!r}, expected one of them")
    if layer is not None:
        if not _is_layer(layer):
            raise ValueError(f"{where}: layer must be a whole number from 0 or null, found {layer!r}")
        return (layer,), False
    if isinstance(layers, str) and (ends := _RANGE.fullmatch(layers)) and int(ends[1]) <= int(ends[2]):
        return tuple(range(int(ends[1]), int(ends[2]) + 1)), True
    if isinstance(layers, list | tuple) and layers and all(map(_is_layer, layers)) and len(set(layers)) == len(layers):
        return tuple(layers), False
    raise ValueError(
        f"{where}: layers must be a range such as 6-12 (their mean) or a list of different whole numbers such as "
        f"[6, 9, 12] (side by side), found {layers!r}"
    )


def _is_layer(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 0


def check_opensmile(model_id: str, where: str = "") -> None:
    """Checks that a feature set of openSMILE can be had.

    Args:
        model_id: begins with `opensmile:`.
        where: beginning of messages.

    Raises:
        ValueError: there is no such set.
        MissingExtraError: the package is not installed.
    """
    check_choice(f"{where}feature set of openSMILE", model_id.removeprefix(OPENSMILE), OPENSMILE_SETS)
    check_extra("opensmile", f"{where}{model_id} (licensed for research only)", load=False)


def placed(folder: str | Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of an encoder with its model, and its detector of faces, where they are; see [`encoder_source`]."""
    found = {**entry, "model_id": encoder_source(folder, entry["model_id"])}
    detector = options_of(entry).get("detector")
    if isinstance(detector, str):
        found["extraction"] = {**options_of(entry), "detector": encoder_source(folder, detector)}
    return found


def options_of(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of extraction in the entry of an encoder; none where they are something else, which loading refuses."""
    extraction = entry.get("extraction")
    return extraction if isinstance(extraction, Mapping) else {}


def with_faces(
    entries: Mapping[str, Mapping[str, Any]], person: str | int | None = None, detector: str | None = None
) -> dict[str, Any]:
    """Entries of encoders that look at other persons, or use a detector from elsewhere.

    Args:
        entries: name -> entry.
        person, detector: as options of `extraction`, for the encoders with `crop: face`; None changes nothing.

    Raises:
        ValueError: one is given, and no encoder looks at faces.
    """
    given = {key: value for key, value in {"person": person, "detector": detector}.items() if value is not None}
    changed = dict(entries)
    looking = [name for name, entry in entries.items() if options_of(entry).get("crop") == "face"]
    for name in looking if given else ():
        changed[name] = {**entries[name], "extraction": {**options_of(entries[name]), **given}}
    if given and not looking:
        raise ValueError(
            f"{' and '.join(given)}: found no encoder of the model that looks at faces, expected one with the option "
            "crop: face of its extraction"
        )
    return changed


def check_encoders(entries: Mapping[str, Mapping[str, Any]], folder: str | Path = ".") -> None:
    """Checks that the folders of encoders hold models, and what encoders of faces need.

    Args:
        entries: name -> `model_id` and optionally `revision`; entries without a model, and models on the Hub, pass.
        folder: of their fusion; see [`encoder_source`].

    Raises:
        FileNotFoundError: there is no such folder, or it has no config.
        ValueError: the config is damaged, a folder got a `revision`, openSMILE has no such feature set, or an option
            of faces is wrong.
        MissingExtraError: the package of openSMILE, or OpenCV, is not installed.
    """
    from hf_blemo.encoders.face_cropping import check_crop

    for name, entry in entries.items():
        model = entry.get("model_id")
        if isinstance(model, str) and model.startswith(OPENSMILE):
            check_opensmile(model, f"encoder {name!r}: ")
        elif isinstance(model, str) and model:
            source = encoder_source(folder, model)
            where = f"encoder {name!r}: {source}"
            found = local_path(source, where, entry.get("revision"))
            if found is not None:
                read_config(found, where)
            check_crop(options_of(placed(folder, entry)), where)

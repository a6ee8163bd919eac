"""Options of encoders that look at faces: `crop: face` and what belongs to it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_blemo.errors import check_extra
from hf_blemo.loading import download_errors, is_hub_id, local_path
from hf_blemo.media.face_detection import DetectorFile, read_detector

# Default of `detector`, a repository of the Hub at a commit; and of repositories, the file and its SHA-256.
YUNET = "opencv/face_detection_yunet@3cc26e7f1014a5ee5d74a42acee58bafc9d0a310"
_YUNET_FILE = "face_detection_yunet_2023mar.onnx"
_YUNET_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
CROP_DEFAULTS: dict[str, Any] = {
    "crop": None,
    "person": "largest",
    "margin": 0.25,
    "hold": 1.0,
    "detector": YUNET,
    "detector_sha256": None,
}
ALL = "all"
PERSONS = ("largest", "central", ALL)


@dataclass(frozen=True)
class FaceCrop:
    """What an encoder sees of each frame: a square around a face.

    Args:
        detector: file of the detector.
        person: `largest`, `central`, `all`, or the number of a person from 1.
        margin: around the face at each side, as a share of its longer side.
        hold: seconds for which the place of a lost face is used.
    """

    detector: DetectorFile
    person: str | int
    margin: float
    hold: float


def face_crop(extraction: dict[str, Any], where: str) -> FaceCrop | None:
    """Reads the options, and loads the detector.

    Args:
        extraction: options of an encoder; gets the hash of the detector, by which other detectors make other features.
        where: the encoder, for messages.

    Returns:
        None for whole frames.

    Raises:
        ValueError: an option has a value that is not allowed, or is there without `crop`; the file is no detector, or
            not the one whose hash is in the options.
        FileNotFoundError: there is no such file, or the Hub cannot be reached.
        MissingExtraError: OpenCV is not installed.
    """
    check_crop(extraction, where)
    options = CROP_DEFAULTS | extraction
    if options["crop"] is None:
        return None
    source = options["detector"]
    file = read_detector(_detector_path(source, f"{where}: detector {source}"), f"{where}: detector {source}")
    expected, found = options["detector_sha256"], file.sha256
    if expected not in (None, found):
        raise ValueError(
            f"{where}: detector {source}: found a file with the SHA-256 {found[:16]}..., expected "
            f"{str(expected)[:16]}..., by which the features were made; give that file"
        )
    if source == YUNET and found != _YUNET_SHA256 and expected is None:
        raise ValueError(
            f"{where}: detector {source}: found a file with the SHA-256 {found[:16]}..., expected "
            f"{_YUNET_SHA256[:16]}..., that of OpenCV's YuNet; name a file of yours as detector"
        )
    extraction["detector_sha256"] = found
    return FaceCrop(file, options["person"], float(options["margin"]), float(options["hold"]))


def check_crop(extraction: Mapping[str, Any], where: str) -> None:
    """Checks the options, and that what they need is there, without loading it.

    Raises:
        ValueError, FileNotFoundError, MissingExtraError: as [`face_crop`].
    """
    options = CROP_DEFAULTS | dict(extraction)
    if options["crop"] not in (None, "face"):
        raise ValueError(f"{where}: crop must be face or null, found {options['crop']!r}")
    if options["crop"] is None:
        for name in CROP_DEFAULTS:
            if extraction.get(name) is not None:
                raise ValueError(f"{where}: {name} is for crop: face, found {name} {extraction[name]!r} without it")
        return
    person = options["person"]
    is_number = isinstance(person, int) and not isinstance(person, bool) and person > 0
    if not is_number and person not in PERSONS:
        raise ValueError(f"{where}: person must be {', '.join(PERSONS)} or a number from 1, found {person!r}")
    for name, most in (("margin", 2), ("hold", math.inf)):
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            bounds = "from 0 to 2" if name == "margin" else "of seconds, 0 or more"
            raise ValueError(f"{where}: {name} must be a number {bounds}, found {value!r}")
    if not isinstance(options["detector"], str) or not options["detector"]:
        raise ValueError(f"{where}: detector must be a file or a Hub id, found {options['detector']!r}")
    check_extra("face", f"{where}: crop face", load=False)
    if not is_hub_id(options["detector"].partition("@")[0]):
        local_path(options["detector"], f"{where}: detector {options['detector']}")


def _detector_path(source: str, where: str) -> Path:
    """A file, or that of YuNet in a repository of the Hub, `owner/name` or `owner/name@revision`."""
    repository, _, revision = source.partition("@")
    if not Path(source).exists() and is_hub_id(repository):
        from huggingface_hub import hf_hub_download

        try:
            with download_errors(where):
                return Path(hf_hub_download(repository, _YUNET_FILE, revision=revision or None))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; a file of YuNet or CenterFace can be the detector instead") from error
    found = local_path(source, where)
    assert found is not None
    if found.is_dir():
        raise IsADirectoryError(f"{where}: found a folder, expected an ONNX file")
    return found

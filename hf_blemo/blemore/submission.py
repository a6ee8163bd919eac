"""The challenge's submission file: written atomically, checked against the rules, read back."""

import json
import os
import uuid
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .labels import LABELS, NUM_TEST_CLIPS, clip_name, decode_label_indices, is_test_clip, prediction_label_indices

SUBMISSION_FILE = "submission_template.json"

_SUFFIX = ".mov"
_NUM_SHOWN = 3
# A submission has some 60,000.
_MOST_BYTES = 2**26


def write_submission(
    path: str | os.PathLike[str],
    clips: Iterable[str],
    predictions: Sequence[Sequence[Mapping[str, Any]]],
    strict: bool = False,
) -> Path:
    """Writes predictions in the challenge's format; the file appears whole or not at all.

    Args:
        path: a `.zip`, which gets `submission_template.json` at its root, or a `.json` for the bare file.
        clips: N clip names or paths; each is written with the suffix `.mov`.
        predictions: N lists of {"emotion": str, "salience": per cent}, each one of the 36 labels.
        strict: also require exactly the 594 test clips.

    Returns:
        The path written.

    Raises:
        ValueError: the suffix is not supported, a clip comes twice, a prediction is not one of the 36 labels, lengths
            differ, or with `strict` the clips are not the test clips.
    """
    target = Path(path)
    if target.suffix not in (".zip", ".json"):
        raise ValueError(f"{target}: found the suffix {target.suffix!r}, expected .zip or .json")
    names = [clip_name(clip) for clip in clips]
    if len(names) != len(predictions):
        raise ValueError(f"{target}: found {len(names)} clips and {len(predictions)} predictions, expected as many")
    problems = [
        *_prediction_problems(zip(names, predictions, strict=True)),
        *(clip_problems(names) if strict else _repeated(names)),
    ]
    if problems:
        raise ValueError(f"{target}: {_first_few(problems)}")
    canonical = decode_label_indices(prediction_label_indices(predictions))
    content = json.dumps(
        {"predictions": {f"{name}{_SUFFIX}": row for name, row in zip(names, canonical, strict=True)}}, indent=2
    )
    if target.is_symlink():
        # The link stays, and the file that it names is replaced.
        target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{uuid.uuid4().hex[:16]}.tmp")
    try:
        if target.suffix == ".zip":
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                # A fixed date makes equal predictions equal files.
                archive.writestr(zipfile.ZipInfo(SUBMISSION_FILE), content, zipfile.ZIP_DEFLATED)
        else:
            temporary.write_text(content, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return Path(path)


def clip_problems(clips: Iterable[str | os.PathLike[str]]) -> list[str]:
    """Says why clips, by their names or paths, are not those that a submission is of.

    A line for the clips that are no test clips, one for those that come twice, one for those that are missing; each
    names all of them.
    """
    names = [clip_name(clip) for clip in clips]
    present = {int(name[5:]) for name in names if is_test_clip(name)}
    missing = [number for number in range(1, NUM_TEST_CLIPS + 1) if number not in present]
    problems = [
        *_repeated(names),
        *_listed("no test clips", [name for name in dict.fromkeys(names) if not is_test_clip(name)]),
    ]
    if missing:
        problems.append(f"missing, {len(missing)} of the {NUM_TEST_CLIPS} test clips: {', '.join(_spans(missing))}")
    return problems


def check_submission(path: str | os.PathLike[str]) -> list[str]:
    """Lists all problems for which the challenge would reject a submission or count a clip as wrong.

    Args:
        path: a `.zip` or `.json` submission.

    Returns:
        One line per problem; empty where the file holds a valid prediction for each of the 594 test clips.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        pairs = _read_pairs(Path(path))
    except ValueError as error:
        return [str(error)]
    bare = [key for key, _ in pairs if not key.endswith(_SUFFIX)]
    return [
        *(f"clip {key!r}: expected the suffix {_SUFFIX}" for key in bare),
        *clip_problems([clip_name(key) for key, _ in pairs]),
        *_prediction_problems(pairs),
    ]


def read_predictions(path: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads the predictions of a submission.

    Args:
        path: a `.zip` or `.json` submission, of any number of clips.

    Returns:
        Clip name without suffix -> prediction.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a submission, a clip comes twice, or a prediction is not one of the 36 labels.
    """
    pairs = _read_pairs(Path(path))
    problems = [*_prediction_problems(pairs), *_repeated([clip_name(key) for key, _ in pairs])]
    if problems:
        raise ValueError(f"{path}: {_first_few(problems)}")
    return {clip_name(key): prediction for key, prediction in pairs}


def _read_pairs(path: Path) -> list[tuple[str, Any]]:
    """The file's clips and predictions as a list, because a dict would hide a clip that comes twice."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a submission (.zip or .json)")
    try:
        content = _read_zip(path) if path.suffix == ".zip" else path.read_bytes()
    except Exception as error:
        if isinstance(error, OSError) and error.filename:
            raise
        # A damaged zip ends in errors of the zip, of its compressions and of the system.
        raise ValueError(f"{path}: found a damaged zip ({error}), expected a zip with {SUBMISSION_FILE}") from error
    try:
        document = json.loads(content, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: found text that is not JSON ({error})") from None
    predictions = dict(document).get("predictions") if isinstance(document, _Object) else None
    if not isinstance(predictions, _Object):
        raise ValueError(f"{path}: expected a JSON object {{'predictions': {{clip: prediction}}}}")
    return [
        (clip, [dict(part) if isinstance(part, _Object) else part for part in prediction])
        if isinstance(prediction, list)
        else (clip, prediction)
        for clip, prediction in predictions
    ]


def _read_zip(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        if SUBMISSION_FILE not in archive.namelist():
            raise ValueError(f"no {SUBMISSION_FILE} at the root")
        with archive.open(SUBMISSION_FILE) as file:
            content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"over {_MOST_BYTES:,} bytes of {SUBMISSION_FILE}")
    return content


class _Object(list[tuple[str, Any]]):
    """A JSON object as its (key, value) pairs."""


def _prediction_problems(pairs: Iterable[tuple[str, Any]]) -> list[str]:
    rows = list(pairs)
    indices = prediction_label_indices([prediction for _, prediction in rows])
    return [
        f"clip {clip!r}: found the prediction {prediction!r}, expected one of the {len(LABELS)} labels"
        for (clip, prediction), index in zip(rows, indices, strict=True)
        if index < 0
    ]


def _repeated(names: Sequence[str]) -> list[str]:
    return _listed("more than once", [name for name, count in Counter(names).items() if count > 1])


def _listed(found: str, names: Sequence[str]) -> list[str]:
    return [f"found {found}: {', '.join(map(repr, names))}"] if names else []


def _spans(numbers: Sequence[int]) -> list[str]:
    """Test clips by their sorted numbers, those in a row as one span."""
    starts = [number for place, number in enumerate(numbers) if not place or numbers[place - 1] != number - 1]
    ends = [number for place, number in enumerate(numbers, 1) if numbers[place : place + 1] != [number + 1]]
    return [
        f"test_{start:04d}" if start == end else f"test_{start:04d} to test_{end:04d}"
        for start, end in zip(starts, ends, strict=True)
    ]


def _first_few(problems: Sequence[str]) -> str:
    rest = len(problems) - _NUM_SHOWN
    return "; ".join(problems[:_NUM_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")

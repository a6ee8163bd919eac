"""`hf-blemo predict`: blends of clips, or of their features."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo.commands.parsing import add_command, output_path, positive, share
from hf_blemo.encoders.encoder_options import DTYPES
from hf_blemo.files import write_json

if TYPE_CHECKING:
    from hf_blemo.prediction.fusion import FusionMember

_DECIMALS = 6
# Option -> suffix of the file it names.
OUTPUTS = {
    "output": ".json",
    "details": ".json",
    "json": ".json",
    "csv": ".csv",
    "submission": ".zip",
    "report": ".html",
}
# Options that only clips have a use for, with their defaults.
CLIP_OPTIONS: dict[str, Any] = {
    "window": None,
    "hop": None,
    "dtype": "float32",
    "threads": None,
    "trust_remote_code": False,
}


def add_predict(commands: Any) -> None:
    """Adds the subcommand.

    Args:
        commands: what `add_subparsers` returned.
    """
    parser = add_command(
        commands,
        "predict",
        _predict,
        "predict the blends of clips, from files with picture or sound or from features",
        """\
Reads clips (extra media): files, addresses, or folders that are searched for them; the model's config names the
encoders. Or, with --features, features of any clips: a built data set, a table, or a folder of feature files. Several
models predict by the mean of their probabilities. Labels and folds are not needed.
Prints a line per clip, and writes what is asked for. Clips over 30 seconds get a timeline. A clip that cannot be read
is reported on its own; the command fails only if none can.

Examples:
  hf-blemo predict clip.mp4 --model owner/fusion
  hf-blemo predict clips/ --model out/fusion --json out/results.json --report out/report.html
  hf-blemo predict --model out/fusion out/fusion/seed_1 --features out/blemore_test --output out/predictions.json""",
    )
    parser.add_argument("clips", metavar="CLIP", nargs="*", help="file, address or folder")
    parser.add_argument("--model", metavar="MODEL", nargs="+", required=True, help="folder or Hub id (owner/name)")
    parser.add_argument("--revision", help="branch, tag or commit of the Hub repositories")
    parser.add_argument("--features", metavar="PATH", help="data set, table or folder, in place of clips")
    outputs = parser.add_argument_group("what is written")
    outputs.add_argument(
        "--output", metavar="FILE.json", help='{"predictions": {clip: [{"emotion": ..., "salience": ...}]}}'
    )
    outputs.add_argument("--json", metavar="FILE.json", help="all that is known of every clip, and its timeline")
    outputs.add_argument("--csv", metavar="FILE.csv", help="the same as a table: a row per clip and window")
    outputs.add_argument("--submission", metavar="FILE.zip", help="a submission; the clips must be the 594 test clips")
    outputs.add_argument("--report", metavar="FILE.html", help="a page to read, which needs no other file")
    outputs.add_argument(
        "--details", metavar="FILE.json", help="probabilities, encoder weights and ranks by clip, with the decoding"
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument(
        "--decoding", choices=("expected_score", "thresholds"), help="that of the first model's processor by default"
    )
    decoding.add_argument("--alpha", type=share, help="presence threshold from 0 to 1 (decoding thresholds)")
    decoding.add_argument("--beta", type=share, help="salience threshold from 0 to 1 (decoding thresholds)")
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="clips at once, with --features (default: 64)"
    )
    clips = parser.add_argument_group("clips")
    clips.add_argument(
        "--window", type=float, metavar="SECONDS", help="of the timeline, of clips of any length; 0 for none"
    )
    clips.add_argument("--hop", type=float, metavar="SECONDS", help="between windows; half a window by default")
    clips.add_argument("--dtype", choices=DTYPES, default="float32", help="of the encoders (default: float32)")
    clips.add_argument(
        "--threads", type=positive, metavar="N", help="clips decoded at once; half the cores by default"
    )
    clips.add_argument(
        "--trust-remote-code", action="store_true", help="run code of an encoder's repository, at a commit alone"
    )


def _predict(arguments: argparse.Namespace) -> None:
    outputs = _outputs(arguments)
    if bool(arguments.clips) == (arguments.features is not None):
        found = "both" if arguments.clips else "neither; clips come before --model, which takes all that follows it"
        raise ValueError(f"expected clips or their --features, found {found}")
    for name, default in CLIP_OPTIONS.items():
        if arguments.features is not None and getattr(arguments, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} is for clips, found --features")
    if arguments.clips and arguments.batch_size is not None:
        raise ValueError("--batch-size is for --features; encoders of clips have their own")
    if arguments.features is None and arguments.window is None and arguments.hop is not None:
        raise ValueError("--hop is between windows of --window, which is not given")
    if arguments.features is not None:
        from hf_blemo import blemore

        dataset = blemore.load_features(arguments.features)
    else:
        from hf_blemo.media.media import check_extra

        check_extra()
        clips = _clips(arguments.clips)

    from hf_blemo.prediction.fusion import load_fusion

    members = [load_fusion(model, arguments.revision) for model in arguments.model]
    decoding = _decoding(arguments, members[0][1])
    if arguments.features is not None:
        results = _results_of_features(arguments, dataset, members, decoding)
    else:
        results = _results_of_clips(arguments, clips, members, decoding)
    done = [result for result in results if "error" not in result]
    if not done:
        raise ValueError(
            f"none of the {len(results)} clips could be read, the first because of: {results[0]['error']}"
        )
    for result in done:
        if not outputs or arguments.clips:
            print(_line(result))
    _write(arguments, outputs, results, done, decoding)
    if outputs:
        print(f"{len(done)} clips, decoding {decoding['name']}: {', '.join(map(str, outputs.values()))}")


def _outputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """Option -> file, after a check of all."""
    outputs: dict[str, Path] = {}
    for name, suffix in OUTPUTS.items():
        if getattr(arguments, name) is not None:
            path = output_path(getattr(arguments, name), f"--{name}", suffix)
            for other, taken in outputs.items():
                if taken == path:
                    raise ValueError(f"{path}: named by both --{other} and --{name}, expected two files")
            outputs[name] = path
    return outputs


def _clips(texts: Sequence[str]) -> list[Any]:
    """Named clips of files, folders and addresses."""
    from hf_blemo.extraction.clip_sources import NamedClip, find_clips
    from hf_blemo.extraction.extraction import clip_name
    from hf_blemo.media.sources import is_address

    clips: list[Any] = []
    for text in texts:
        if is_address(text) or not Path(text).is_dir():
            clips.append(NamedClip(clip_name(text), text))
        else:
            clips += [entry.named for entry in find_clips(text)]
    places: dict[str, Any] = {}
    for clip in clips:
        if clip.name in places:
            raise ValueError(f"found two clips named {clip.name!r}, expected different names")
        places[clip.name] = clip
    return clips


def _decoding(arguments: argparse.Namespace, processor: Any) -> dict[str, Any]:
    """Name and parameters of the decoding."""
    name = arguments.decoding or processor.decoding
    if name != "thresholds":
        for option in ("alpha", "beta"):
            if getattr(arguments, option) is not None:
                raise ValueError(f"--{option} is for --decoding thresholds, the decoding is {name}")
        return {"name": name, "blend_share": processor.blend_share}
    alpha = processor.alpha if arguments.alpha is None else arguments.alpha
    beta = processor.beta if arguments.beta is None else arguments.beta
    return {"name": name, "alpha": alpha, "beta": beta}


def _results_of_features(
    arguments: argparse.Namespace, dataset: Any, members: "list[FusionMember]", decoding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    import torch

    from hf_blemo.prediction.fusion import predict_blends

    predictions = predict_blends(
        members,
        dataset,
        batch_size=arguments.batch_size or 64,
        device="cuda" if torch.cuda.is_available() else None,
        progress=sys.stderr.isatty(),
        decoding=decoding["name"],
        **{name: decoding[name] for name in ("alpha", "beta") if name in decoding},
    )
    return predictions.results()


def _results_of_clips(
    arguments: argparse.Namespace, clips: list[Any], members: "list[FusionMember]", decoding: Mapping[str, Any]
) -> list[dict[str, Any]]:
    import torch
    from tqdm.auto import tqdm

    from hf_blemo.prediction.clips import Windows, fusion_encoders, predict_clips

    windows = None if arguments.window is None else Windows(arguments.window, arguments.hop, longer_than=0.0)
    encoders = fusion_encoders(members, dtype=arguments.dtype, trust_remote_code=arguments.trust_remote_code)
    if torch.cuda.is_available():
        modules: list[Any] = [model for model, _ in members]
        for module in modules:
            module.to("cuda")
    found = predict_clips(
        clips,
        members,
        encoders,
        windows,
        num_threads=arguments.threads,
        **{("decoding" if name == "name" else name): value for name, value in decoding.items()},
    )
    results = []
    with tqdm(total=len(clips), desc="predicting", unit="clip", disable=not sys.stderr.isatty()) as bar:
        for result in found:
            results.append(result)
            lines = [result["error"]] if "error" in result else [f"{result['clip']}: {n}" for n in result["notes"]]
            for line in lines:
                bar.clear()
                print(line, file=sys.stderr)
            bar.update()
    return results


def _line(result: Mapping[str, Any]) -> str:
    """A clip in one line: its blend and the encoders that told so."""
    from hf_blemo.prediction.clip_report import blend_words

    weights = result["encoder_weights"]
    told = ", ".join(f"{name} {weights[name]:.2f}" for name in result["selected_encoders"])
    return f"{result['clip']}: {blend_words(result['blend'])} ({told})"


def _write(
    arguments: argparse.Namespace,
    outputs: Mapping[str, Path],
    results: Sequence[Mapping[str, Any]],
    done: Sequence[Mapping[str, Any]],
    decoding: Mapping[str, Any],
) -> None:
    contents: dict[Path, Any] = {}
    if "output" in outputs:
        contents[outputs["output"]] = {"predictions": {result["clip"]: result["blend"] for result in done}}
    if "details" in outputs:
        kept = ("probabilities", "encoder_weights", "selected_encoders")
        details = {result["clip"]: {name: _rounded(result[name]) for name in kept} for result in done}
        contents[outputs["details"]] = {"decoding": dict(decoding), "clips": details}
    if "json" in outputs:
        clips = [_rounded(result) for result in results]
        contents[outputs["json"]] = {"model": arguments.model, "decoding": dict(decoding), "clips": clips}
    write_json(contents)
    if "csv" in outputs:
        from hf_blemo.prediction.clip_table import write_clip_table

        write_clip_table(results, outputs["csv"])
    if "report" in outputs:
        from hf_blemo.prediction.clip_report import write_report

        write_report(results, outputs["report"], " + ".join(arguments.model), _thumbnails(arguments, done))
    if "submission" in outputs:
        from hf_blemo import blemore

        blends = [result["blend"] for result in done]
        blemore.write_submission(outputs["submission"], [result["clip"] for result in done], blends, strict=True)


def _thumbnails(arguments: argparse.Namespace, done: Sequence[Mapping[str, Any]]) -> dict[str, list[bytes]]:
    """Small pictures of the clips that could be read."""
    if not arguments.clips:
        return {}
    from hf_blemo.media.media import media_thumbnails

    names = {result["clip"] for result in done}
    thumbnails = {}
    for clip in _clips(arguments.clips):
        if clip.name in names:
            thumbnails[clip.name] = media_thumbnails(clip.source() if callable(clip.source) else clip.source)
    return thumbnails


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value

"""`hf-blemo predict`: labels of clips, or of their features."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from hf_blemo import built_in
from hf_blemo.commands.parsing import (
    add_command,
    add_encoder_options,
    add_fusion_options,
    encoder_options,
    is_built_in,
    output_path,
    positive,
    refuse_options,
)
from hf_blemo.encoders.encoder_options import check_encoders, options_of, with_faces
from hf_blemo.errors import check_extra, check_once, say
from hf_blemo.files import whole_file, write_json
from hf_blemo.programs.progress import Progress
from hf_blemo.programs.start import importing

_DECIMALS = 6
_SUFFIXES = (".json", ".csv", ".html", ".zip")
_CLIP_OPTIONS = ("window", "hop", "dtype", "backend", "threads", "trust_remote_code", "person", "detector")


def add_predict(commands: Any) -> None:
    """Adds `hf-blemo predict` to the subcommands that `add_subparsers` made."""
    parser = add_command(
        commands,
        "predict",
        _predict,
        "predict the labels of clips, from their files or from features",
        """\
Reads clips (extra media): files, addresses, or folders, which are searched for clips; the model's config names the
encoders. With --features it reads features instead: a built data set, a table, or a folder of feature files. Several
models predict by the mean of their probabilities. Labels and folds are not needed; a clip may lack encoders, and the
features may lack encoders of the model or have others, which are left out.
Prints a line per clip as it is done. Ctrl-C writes what is done (code 130); a run that is killed, or cannot write its
outputs, leaves it in FILE.partial, a line of JSON per clip. Clips over 30 seconds get a timeline. A clip that cannot
be read is reported; the command fails only if none can. With --features a clip without features is reported too, the
others are predicted, and the exit code is 2. The suffix of an --output decides what is written:
  .json  everything: the blends under "predictions", which hf-blemo evaluate and submit read; the top name,
         probabilities by name, encoder weights and ranks, timeline, notes and errors under "clips"
  .csv   the same as a table, a row per clip and window
  .html  a page to read, which needs no other file
  .zip   a checked submission to the BlEmoRE challenge; the clips must be its 594 test clips

Examples:
  hf-blemo predict --built-in
  hf-blemo predict clip.mp4 --model out/fusion
  hf-blemo predict clips/ --model out/fusion --output out/results.json out/report.html
  hf-blemo predict --model out/fusion --features table.parquet --output predictions.json
  hf-blemo predict --model out/fusion out/fusion/seed_1 --features out/blemore_test --output out/submission.zip""",
    )
    parser.add_argument("clips", metavar="CLIP", nargs="*", help="file, address or folder (--built-in has two)")
    add_fusion_options(parser, several=True)
    parser.add_argument("--features", metavar="PATH", help="data set, table or folder, instead of clips")
    parser.add_argument(
        "--output", metavar="FILE", nargs="+", default=[], help=f"files to write: {', '.join(_SUFFIXES)}"
    )
    parser.add_argument(
        "--batch-size", type=positive, metavar="N", help="clips at once, with --features (default: 64)"
    )
    parser.add_argument(
        "--nan", choices=("error", "missing"), help="with --features: what a NaN in a vector means (default: error)"
    )
    decoding = parser.add_argument_group("decoding")
    decoding.add_argument(
        "--decoding",
        choices=("expected_score", "thresholds", "soft"),
        help="default: that of the first model's processor",
    )
    decoding.add_argument("--alpha", type=_share, help="presence threshold from 0 to 1 (decoding thresholds)")
    decoding.add_argument("--beta", type=_share, help="salience threshold from 0 to 1 (decoding thresholds)")
    clips = parser.add_argument_group("clips")
    clips.add_argument(
        "--window", type=float, metavar="SECONDS", help="windows of a timeline for clips of any length; 0 for none"
    )
    clips.add_argument("--hop", type=float, metavar="SECONDS", help="between windows (default: half a window)")
    clips.add_argument("--threads", type=positive, metavar="N", help="clips decoded at once (default: half the cores)")
    add_encoder_options(clips)


def _share(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected a number from 0 to 1")
    return number


def _predict(arguments: argparse.Namespace) -> None:
    models = [built_in.MODEL_NAME] if is_built_in(arguments) else arguments.model
    if is_built_in(arguments) and not arguments.clips and arguments.features is None:
        arguments.clips = list(built_in.CLIPS)
    outputs = _checked(arguments)

    # All is checked before torch is imported and models are loaded, which takes long.
    from hf_blemo.prediction.fusion_files import check_averaged, find_fusion
    from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import (
        BLEMORE_SPACE,
        default_decoding,
        same_space,
    )

    files = [find_fusion(model, arguments.revision) for model in arguments.model]
    if all(found.encoders for found in files):
        check_averaged([(found.encoders, found.label_space) for found in files])
    if any(path.suffix == ".zip" for path in outputs):
        same_space(files[0].label_space, BLEMORE_SPACE, arguments.model[0], "a submission to the BlEmoRE challenge")
    own = files[0].processor
    _check_decoding(arguments, own.get("decoding") or default_decoding(own.get("label_kind")), outputs)

    from hf_blemo import feature_sets

    if arguments.features is None:
        entries = with_faces(files[0].encoders, arguments.person, arguments.detector)
        check_encoders(entries, files[0].folder)
        if any(path.suffix == ".zip" for path in outputs) and "all" in (
            options_of(entry).get("person") for entry in entries.values()
        ):
            raise ValueError("a submission needs one result for each clip, which person all does not give")
        inputs: Any = _clips(arguments.clips)
    else:
        feature_sets.check_features(arguments.features)
        with importing():
            inputs = feature_sets.load_features(arguments.features, nan=arguments.nan or "error")
    _check_submission(outputs, [clip.name for clip in inputs] if arguments.features is None else inputs["clip"])

    with importing():
        import torch

        from hf_blemo.prediction.fusion import load_fusion, predict_blends

    members = [load_fusion(found) for found in files]
    decoding = _decoding(arguments, members[0][1])
    options = {"decoding": decoding["name"], **_without(decoding, "name")}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if arguments.features is None:
        found: Any = _predict_clips(arguments, inputs, members, device, options)
    else:
        found = predict_blends(members, inputs, arguments.batch_size or 64, device, **options)
    if is_built_in(arguments):
        say("The built-in model knows drawn clips only; what it says of recordings means nothing.", error=True)
    results: list[dict[str, Any]] = []
    shows = arguments.features is None or not outputs
    with Progress("predicting", "clip", len(inputs)) as bar, closing(found), _journal(outputs) as keep:
        try:
            for result in found:
                results.append(result)
                keep(result)
                bar.clear()
                notes = [f"{result['clip']}: {note}" for note in result.get("notes", ())]
                for line in [result["error"]] if "error" in result else notes:
                    say(line, error=True)
                if shows and "error" not in result:
                    say(_line(result))
                bar.update()
        except BaseException as error:
            done = [result for result in results if "error" not in result]
            # A submission is of all clips.
            written = [path for path in outputs if path.suffix != ".zip"] if done else []
            _write(written, models, members, decoding, inputs, results)
            if outputs and (written or not done):
                _journal_path(outputs).unlink(missing_ok=True)
            if isinstance(error, KeyboardInterrupt):
                kept = f", kept in {', '.join(map(str, written))}" if written else ""
                raise KeyboardInterrupt(f"{len(done)} of {len(inputs)} clips are predicted{kept}") from None
            raise
        done = [result for result in results if "error" not in result]
        _write(outputs if done else [], models, members, decoding, inputs, results)
    if not done:
        raise _none_read(len(results), results[0]["error"])
    if outputs:
        clips = "1 clip" if len(done) == 1 else f"{len(done)} clips"
        say(f"{clips}, decoding {decoding['name']}: {', '.join(map(str, outputs))}")
    if arguments.features is not None and len(done) < len(results):
        raise ValueError(f"{len(results) - len(done)} of {len(results)} clips have no prediction, the others are done")


@contextmanager
def _journal(outputs: Sequence[Path]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A file of results so far, a line of JSON each, beside the first output; deleted once the outputs are written.

    Outputs appear whole, so that it is what a process that is killed leaves.
    """
    if not outputs:
        yield lambda result: None
        return
    path = _journal_path(outputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:

        def keep(result: Mapping[str, Any]) -> None:
            file.write(json.dumps(_rounded(_without(result, "thumbnails"))) + "\n")
            file.flush()

        yield keep
    path.unlink(missing_ok=True)


def _journal_path(outputs: Sequence[Path]) -> Path:
    return outputs[0].with_name(f"{outputs[0].name}.partial")


def _checked(arguments: argparse.Namespace) -> list[Path]:
    """The files to write; refuses options that contradict each other."""
    outputs = [output_path(text, "--output", *_SUFFIXES) for text in arguments.output]
    for path in outputs:
        if outputs.count(path) > 1:
            raise ValueError(f"--output: found {path} twice, expected different files")
    if bool(arguments.clips) == (arguments.features is not None):
        found = "both" if arguments.clips else "neither; clips come before --model, which takes all that follows it"
        raise ValueError(f"expected clips or their --features, found {found}")
    if arguments.features is not None:
        refuse_options(arguments, _CLIP_OPTIONS, "is for clips, found --features")
    else:
        refuse_options(arguments, ["batch_size"], "is for --features; encoders of clips have their own")
        refuse_options(arguments, ["nan"], "is for --features")
        if arguments.window is None:
            refuse_options(arguments, ["hop"], "needs --window")
    return outputs


def _clips(texts: Sequence[str]) -> list[Any]:
    """Clips of files, folders and addresses."""
    from hf_blemo.extraction.clip_sources import as_clip, find_clips
    from hf_blemo.media import is_address
    from hf_blemo.media.sources import EXPECTED

    check_extra("media", load=False)
    clips: list[Any] = []
    for text in texts:
        for clip in find_clips(text) if Path(text).is_dir() and not is_address(text) else [as_clip(text)]:
            clips.append(clip)
    check_once("clip", [clip.name for clip in clips])
    if not any(is_address(text) or Path(text).exists() for text in texts):
        # One that is missing among others is no more than one that cannot be read.
        raise _none_read(len(texts), f"{texts[0]}: no such file, {EXPECTED}")
    return clips


def _check_submission(outputs: Sequence[Path], names: Sequence[str]) -> None:
    """Refuses a submission of other clips than those of the test set, and names each."""
    from hf_blemo.blemore.submission import clip_problems

    submission = next((path for path in outputs if path.suffix == ".zip"), None)
    if submission is None or not (problems := clip_problems(names)):
        return
    say(*problems, error=True)
    raise ValueError(
        f"{submission}: expected exactly the clips test_0001 to test_0594, see above; nothing was predicted; name the "
        "files so, or write the predictions of other clips into a .json"
    )


def _check_decoding(arguments: argparse.Namespace, own: str, outputs: Sequence[Path]) -> None:
    """Refuses what does not fit the decoding, by default the first processor's own."""
    name = arguments.decoding or own
    if name != "thresholds":
        refuse_options(arguments, ["alpha", "beta"], f"is for --decoding thresholds, the decoding is {name}")
    if name == "soft" and any(path.suffix == ".zip" for path in outputs):
        raise ValueError("a submission needs blends, which --decoding soft does not give")


def _none_read(count: int, first: str) -> ValueError:
    which = "the clip" if count == 1 else f"any of the {count} clips; the first"
    return ValueError(f"could not read {which}: {first}")


def _decoding(arguments: argparse.Namespace, processor: Any) -> dict[str, Any]:
    """Name and parameters of the decoding."""
    name = arguments.decoding or processor.decoding
    if name != "thresholds":
        return {"name": name} if name == "soft" else {"name": name, "blend_share": processor.blend_share}
    alpha = processor.alpha if arguments.alpha is None else arguments.alpha
    beta = processor.beta if arguments.beta is None else arguments.beta
    return {"name": name, "alpha": alpha, "beta": beta}


def _predict_clips(
    arguments: argparse.Namespace, clips: list[Any], members: Sequence[Any], device: str, decoding: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    from hf_blemo.prediction.clip_report import NUM_THUMBNAILS
    from hf_blemo.prediction.clips import Windows, fusion_encoders, predict_clips

    windows = None if arguments.window is None else Windows(arguments.window, arguments.hop, longer_than=0.0)
    encoders = fusion_encoders(members, **encoder_options(arguments))
    for model, _ in members:
        model.to(device)
    num_thumbnails = NUM_THUMBNAILS if any(text.endswith(".html") for text in arguments.output) else 0
    return predict_clips(clips, members, encoders, windows, arguments.threads, num_thumbnails, **decoding)


def _line(result: Mapping[str, Any]) -> str:
    """A clip in one line: its blend and the encoders it relied on."""
    from hf_blemo.prediction.clip_words import blend_words

    weights = result["encoder_weights"]
    encoders = ", ".join(f"{name} {weights[name]:.2f}" for name in result["selected_encoders"])
    return f"{result['clip']}: {blend_words(result['blend'], tuple(result['probabilities']))} ({encoders})"


def _write(
    outputs: Sequence[Path],
    models: Sequence[str],
    members: Sequence[Any],
    decoding: Mapping[str, Any],
    inputs: Any,
    results: Sequence[Mapping[str, Any]],
) -> None:
    """Writes all outputs, or none."""
    if not outputs:
        return
    from hf_blemo import blemore
    from hf_blemo.commands.prediction_files import described, true_labels
    from hf_blemo.prediction.clip_report import write_report
    from hf_blemo.prediction.clip_table import write_clip_table
    from hf_blemo.programs.fingerprints import weights_fingerprint

    config = members[0][0].config
    predictions = {result["clip"]: result["blend"] for result in results if "error" not in result}
    with ExitStack() as stack:
        # A submission, which may be refused, is the last, and the others take their places after it.
        for output in sorted(outputs, key=lambda path: path.suffix == ".zip"):
            if output.suffix == ".zip":
                blemore.write_submission(output, predictions, list(predictions.values()), strict=True)
                continue
            path = stack.enter_context(whole_file(output))
            if output.suffix == ".csv":
                write_clip_table(results, path, config.label_space, decoding["name"] == "soft")
            elif output.suffix == ".html":
                prints = ", ".join(weights_fingerprint(model)[:12] for model, _ in members)
                details = {"Weights": prints, "Decoding": decoding["name"]}
                write_report(results, path, " + ".join(models), true_labels(inputs, config.label_space), details)
            else:
                clips = [_rounded(_without(result, "thumbnails")) for result in results]
                content = {"model": models, "decoding": decoding, **described(config)}
                write_json({path: {**content, "predictions": predictions, "clips": clips}})


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, Mapping):
        return {name: _rounded(entry) for name, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list) else value

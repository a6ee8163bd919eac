"""`hf-blemo dataset`: building data sets of features, and describing them."""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_blemo.built_in import SYNTHETIC
from hf_blemo.commands.parsing import add_command, positive, refuse_options, repository
from hf_blemo.errors import say
from hf_blemo.files import replace_folder

if TYPE_CHECKING:
    import datasets

# Kind of source -> the options of `dataset build` for it.
_BUILD_OPTIONS = {
    "a folder of features": (*("split", "encoders", "aggregate", "feature_dtype", "allow_missing", "folds", "seed"),),
    "a data set": ("folds", "seed"),
    "a table": (
        *("encoders", "feature_dtype", "label_column", "label_prefix", "label_kind", "names", "blend_percents"),
        *("unblended", "folds", "group", "seed", "clip_column", "nan"),
    ),
    SYNTHETIC: ("num_clips", "seed", "domain"),
}


def add_dataset(commands: Any) -> None:
    """Adds `hf-blemo dataset` to the subcommands that `add_subparsers` made."""
    dataset = commands.add_parser("dataset", help="build a data set of features, or describe one")
    commands = dataset.add_subparsers(required=True, metavar="command")
    parser = add_command(
        commands,
        "build",
        _build_dataset,
        "build a data set from the BlEmoRE distribution, feature files, a table, or the built-in generator",
        """\
Reads SOURCE: the folder of the distribution (train_metadata.csv and pre_extracted_{train,test}_data/), a folder with
one sub-folder of feature files per encoder, a table with one row per clip (.parquet, .npz, .csv), a built data set,
or 'synthetic'.
Writes the folder DIR, which datasets.load_from_disk, hf-blemo predict and the training programs read. It appears only
when it is complete; an interrupted build of feature files or of a table resumes.

Of train_metadata.csv the columns filename and fold are read, and, where they are there, the four of the label, which
has to be that of the name. --folds K deals folds instead: for folders and data sets by BlEmoRE's names, which carry
label and actor (A102_mix_ang_hap_30_70_ver1), so that no actor is in two.

Labels of a table are BlEmoRE's, in its clips' names or its column labels, unless --label-column or --label-prefix
names others: class names or indices, sets of names, shares or votes.

Examples:
  hf-blemo dataset build data/BlEmoRE --output out/blemore --encoders ImageBind WavLM_large
  hf-blemo dataset build features/ --output out/mine --folds 5
  hf-blemo dataset build table.parquet --output out/mine --label-column emotion --folds 5 --group actor""",
    )
    parser.add_argument("source", metavar="SOURCE", help="folder, table, data set, or 'synthetic'")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing data set at DIR")
    parser.add_argument(
        "--encoders",
        metavar="NAME",
        nargs="+",
        help="encoders to take, in this order (default: all; feature files and tables)",
    )
    parser.add_argument(
        "--feature-dtype",
        choices=("auto", "float16", "float32"),
        help="number type to store; auto (the default of feature files) is float16 if the first clip fits, "
        "float32 is that of tables",
    )
    parser.add_argument("--split", choices=("train", "test"), help="clips to take (default: train; feature files)")
    parser.add_argument(
        "--aggregate",
        choices=("statistics",),
        help="store the seven official statistics instead of the sequences (feature files)",
    )
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        default=None,
        help="a clip may lack the file of an encoder (feature files)",
    )
    parser.add_argument("--num-clips", type=positive, metavar="N", help="number of clips (synthetic)")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the clips (synthetic) or of --folds")
    parser.add_argument("--domain", choices=("source", "target"), help="default: source (synthetic)")
    group = parser.add_argument_group("labels and folds of tables; --folds of folders and data sets too")
    group.add_argument(
        "--label-column",
        metavar="NAME",
        help="labels: class names or indices, sets of names (lists, or words joined by + or |), rows of shares",
    )
    group.add_argument("--label-prefix", metavar="TEXT", help="columns of shares or votes, named by what follows it")
    group.add_argument(
        "--label-kind",
        choices=("valid", "soft"),
        help="valid (default): one name, or a blend by --blend-percents; soft: any distribution",
    )
    group.add_argument("--names", metavar="NAME", nargs="+", help="all classes in order (default: as in the table)")
    group.add_argument(
        "--blend-percents",
        metavar="70/30",
        nargs="+",
        help="splits that blends can have (default: none; even ones where labels are sets of names)",
    )
    group.add_argument("--unblended", metavar="NAME", nargs="+", help="names that never blend")
    group.add_argument(
        "--folds", type=positive, metavar="K", help="deal the clips into K folds (default: column fold)"
    )
    group.add_argument(
        "--group", metavar="NAME", help="column of what stays in one fold, such as the actor; kept in the data set"
    )
    group.add_argument(
        "--clip-column", metavar="NAME", help="of the clips' names (default: clip, filename, filenames)"
    )
    group.add_argument(
        "--nan",
        choices=("error", "missing"),
        help="NaN or infinity in a vector: error (default), or the encoder is missing in that row",
    )
    parser.add_argument(
        "--push-to-hub", metavar="OWNER/NAME", type=repository, help="also upload it as a Hub data set, private"
    )
    parser.add_argument("--public", action="store_true", help="with --push-to-hub: make a new repository public")

    parser = add_command(
        commands,
        "info",
        _describe_dataset,
        "describe a data set: clips, labels, folds, and each encoder's width and dtype",
        """\
Reads PATH: a built data set, a table (.parquet, .npz, .csv), or a folder of feature files. Writes nothing.

Example:
  hf-blemo dataset info out/blemore""",
    )
    parser.add_argument("path", metavar="PATH", help="data set, table or folder")


def _build_dataset(arguments: argparse.Namespace) -> None:
    source, output = Path(arguments.source), Path(arguments.output)
    if arguments.source == SYNTHETIC:
        kind = SYNTHETIC
    elif source.exists():
        from hf_blemo.feature_sets.writing import is_dataset_folder

        kind = "a folder of features" if source.is_dir() else "a table"
        if kind != "a table" and is_dataset_folder(source):
            kind = "a data set"
    else:
        raise FileNotFoundError(f"{source}: no such file or folder, expected features, a table or {SYNTHETIC!r}")
    options = _build_options(arguments, kind)
    if arguments.push_to_hub is None:
        refuse_options(arguments, ["public"], "needs --push-to-hub")
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(f"{output}: already exists; pass --overwrite to replace it")

    from hf_blemo import feature_sets
    from hf_blemo.built_in import make_synthetic_blends

    common = {"overwrite": arguments.overwrite, "progress": sys.stderr.isatty()}
    if kind == SYNTHETIC:
        dataset = _saved(make_synthetic_blends(**options), output, arguments.overwrite)
    elif kind == "a data set":
        dataset = _with_folds(source, output, arguments.overwrite, **options)
    elif kind == "a table":
        dataset = feature_sets.build_table_dataset(source, output, **options, **common)
    else:
        _refuse_clips(source)
        dataset = feature_sets.build_distribution_dataset(source, output, **options, **common)
    say(output, *_summary(dataset))
    if arguments.push_to_hub is not None:
        from hf_blemo.hub import push_features
        from hf_blemo.hub.uploads import hub_errors

        with hub_errors(f"{output} was built, but not uploaded to {arguments.push_to_hub}"):
            split = options.get("split", "train")
            push_features(dataset, arguments.push_to_hub, split, private=not arguments.public)
        say(f"uploaded to {arguments.push_to_hub}, split {split}")


def _build_options(arguments: argparse.Namespace, kind: str) -> dict[str, Any]:
    """The options given; refuses those that are not for this kind of source."""
    names = {name for options in _BUILD_OPTIONS.values() for name in options}
    given = {name: getattr(arguments, name) for name in sorted(names) if getattr(arguments, name) is not None}
    for name in given:
        if name not in _BUILD_OPTIONS[kind]:
            kinds = " or ".join(other for other, options in _BUILD_OPTIONS.items() if name in options)
            raise ValueError(f"--{name.replace('_', '-')} is for {kinds}, found {arguments.source!r}, which is {kind}")
    if kind != SYNTHETIC and "seed" in given and "folds" not in given:
        raise ValueError("--seed is for synthetic data, and for --folds")
    if kind == "a data set" and "folds" not in given:
        raise ValueError(f"{arguments.source}: a data set already; --folds K deals its clips into other folds")
    return given


def _refuse_clips(folder: Path) -> None:
    from hf_blemo.media import is_media

    clip = next(filter(is_media, sorted(folder.iterdir())), None)
    if clip is not None:
        raise ValueError(
            f"{folder}: found clips ({clip.name}), expected their features; hf-blemo features {folder} --output DIR "
            "--encoder NAME=MODEL makes a data set of clips, with --folds as here"
        )


def _saved(dataset: "datasets.Dataset", output: Path, overwrite: bool, files: Sequence[Path] = ()) -> Any:
    """Saves a data set, with files beside it, so that it appears whole."""
    import datasets

    from hf_blemo.feature_sets.writing import refuse_existing

    refuse_existing(output, overwrite)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        made = Path(folder) / "made"
        dataset.save_to_disk(str(made))
        for path in files:
            shutil.copy(path, made)
        replace_folder(made, output)
    return datasets.Dataset.load_from_disk(str(output))


def _with_folds(source: Path, output: Path, overwrite: bool, folds: int, seed: int = 0) -> "datasets.Dataset":
    """A data set dealt anew, with what lies beside it: where its features come from, and what failed."""
    from hf_blemo import feature_sets

    dataset = feature_sets.with_folds(feature_sets.load_features(source), folds, seed, str(source))
    beside = [path for path in source.glob("*.json") if path.name not in ("state.json", "dataset_info.json")]
    return _saved(dataset, output, overwrite, beside)


def _describe_dataset(arguments: argparse.Namespace) -> None:
    from hf_blemo import feature_sets

    say(*_summary(feature_sets.load_features(arguments.path)))


def _summary(dataset: "datasets.Dataset") -> list[str]:
    from hf_blemo import feature_sets

    found = feature_sets.describe(dataset)
    blends = "blends" if found.kind == "valid" else "of several names"
    share = f" ({found.blends / found.labelled:.0%})" if found.blends else ""
    lines = [f"clips     {found.clips}"]
    if found.labelled:
        lines.append(f"labels    {f'{len(found.space)} valid' if found.kind == 'valid' else 'soft'}; {found.space}")
    lines.append(f"labelled  {found.labelled}, {found.blends} of them {blends}{share}")
    folds = ", ".join(f"{fold}: {count}" for fold, count in found.folds.items())
    lines += [f"folds     {folds or 'none'}", f"groups    {found.groups}"]
    if found.labelled:
        shares = [(name, f"{share:.3f}", str(top)) for name, (share, top) in found.names.items()]
        lines += _aligned([("name", "share", "top"), *shares], ">6", ">6")
    widths = feature_sets.encoder_widths(dataset)
    clips = dict.fromkeys(widths, 0)
    for batch in dataset.with_format("arrow", columns=["features"]).iter(batch_size=256):
        for chunk in batch.column("features").chunks:
            for field, values in zip(chunk.type, chunk.flatten(), strict=True):
                clips[field.name] += len(values) - values.null_count
    encoders = [("encoder", "width", "dtype", "clips")]
    encoders += [
        (name, str(width), _number_type(dataset.features["features"][name]), str(clips[name]))
        for name, width in widths.items()
    ]
    return lines + _aligned(encoders, ">6", "<8", ">6")


def _aligned(rows: Sequence[tuple[str, ...]], *forms: str) -> list[str]:
    """Rows in columns: names as wide as the longest, then cells in these forms."""
    longest = max(len(name) for name, *_ in rows)
    return ["  ".join([f"{name:<{longest}}", *map(format, cells, forms)]) for name, *cells in rows]


def _number_type(feature: Any) -> str:
    """The dtype of the numbers inside a column of vectors."""
    return _number_type(feature.feature) if hasattr(feature, "feature") else feature.dtype

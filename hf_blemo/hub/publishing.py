"""Publish models: check that a folder is complete, bring its card up to date, upload both in one commit."""

import ast
import logging
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml
from safetensors import SafetensorError, safe_open

from hf_blemo.files import read_json, within, write_text
from hf_blemo.loading import code_references

from .card import (
    CARD_FILE,
    FAMILIES,
    card_in,
    card_on_hub,
    is_automatic,
    license_of,
    merge_card,
    render_card,
    render_template,
    with_license,
)
from .encoder_models import encoder_rows
from .uploads import upload

logger = logging.getLogger(__name__)

# What a model needs beside its weights and config.json to read its inputs; any one name of a group will do.
_INPUT_FILES = {
    # transformers reads an image processor from either file, whatever it was saved with.
    "clip_rd": (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json",),
        ("tokenizer_config.json",),
    ),
}
_DEFAULT_INPUT_FILES = (("processor_config.json",),)
_WEIGHTS_FILE = "model.safetensors"
_WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
_METRICS_FILE = "metrics.json"
_EVAL_RESULTS_FOLDER = ".eval_results"
# The card as last published to each repository: shows which side was edited since.
_PUBLISHED_CARDS_FOLDER = ".published_cards"
_OPTIONAL_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    _METRICS_FILE,
)
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# transformers' Trainer leaves these pickles beside the weights; they hold no weights and are never read or uploaded.
_TRAINER_PICKLES = re.compile(r"training_args\.bin|(optimizer|scheduler|scaler)\.pt|rng_state.*\.pth")
_TRAINER_STATE_FILE = "trainer_state.json"


def publish(
    folder: str | Path,
    repo_id: str | None = None,
    private: bool = True,
    token: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    tag: str | None = None,
    license: str | None = None,
) -> str:
    """Check a model folder, bring its card up to date and upload both to the Hub in one commit.

    The upload holds the model, the files that prepare its inputs, the card, the model's own code, metrics.json without
    this machine's folders, results on data sets of the Hub (`.eval_results`) and plots; never checkpoints, optimizer
    states or data. A card that people changed on the Hub keeps their text. A warning names encoders that are local
    folders; their paths are not uploaded.

    Args:
        folder: from a training program, or from `save_pretrained` of the model and of its processor, or of its
            tokenizer and image processor.
        repo_id: `owner/name` on the Hub; None checks the folder, writes its card and logs the files at level INFO.
        private: whether a repository that is created is private; an existing one stays as it is.
        token: a Hub token; the one stored by `hf auth login` by default.
        create_pr: whether to open a pull request instead of committing to the main branch.
        message: of the commit.
        tag: a git tag to set on the commit.
        license: of code and weights, for the metadata of the card (`apache-2.0`, `cc-by-nc-4.0`, `other`, ...). By
            default the card keeps the one that it states; a warning says if it states none.

    Returns:
        The address of the commit, or of the pull request; without `repo_id` the folder.

    Raises:
        ValueError: a file is missing, not valid or must not be there; the card was changed both here and on the Hub;
            or the tag exists or is asked for together with a pull request.
    """
    folder = Path(folder)
    if tag is not None and repo_id is None:
        raise ValueError(f"tag {tag!r}: expected a repo_id to set it in, found none")
    if tag is not None and create_pr:
        raise ValueError(f"tag {tag!r}: a pull request has no commit to tag yet; merge it first, then tag")
    model_files = _check_model(folder)
    metrics = _read_metrics(folder)
    if metrics is not None:
        write_card(folder, metrics, repo_id)
        _write_eval_results(folder)
    else:
        _complete_card(folder, repo_id)
    files = _with_extras(folder, model_files)
    if repo_id is None:
        card = str(card_in(folder))
        if (licensed := _licensed(card, license)) != card:
            write_text(folder / CARD_FILE, licensed)
        _warn_of_local_encoders(folder)
        logger.info("%s is complete; a repo_id would upload: %s", folder, ", ".join(files))
        return str(folder)

    published = folder / _PUBLISHED_CARDS_FOLDER / f"{repo_id.replace('/', '--')}.md"

    def final_card(on_hub: str | None) -> str:
        untouched = [published.read_text(encoding="utf-8")] if published.is_file() else []
        if metrics is not None:
            untouched.append(render_card(metrics, repo_id, config=read_json(folder / "config.json")))
        card = merge_card(on_hub, str(card_in(folder)), untouched)
        return _licensed(card, license)

    address, card = _upload(
        folder, files, repo_id, final_card, message, private=private, token=token, create_pr=create_pr, tag=tag
    )
    if not create_pr:
        for path in (folder / CARD_FILE, published):
            write_text(path, card)
    return address


def _complete_card(folder: Path, repo_id: str | None) -> None:
    """Writes the card of a model that no training of this package made, unless people wrote one.

    A card that Trainer or huggingface_hub made by itself stays, with ours below it.
    """
    existing = card_in(folder)
    if existing is not None and not is_automatic(existing):
        return
    config = read_json(folder / "config.json")
    if config["model_type"] not in FAMILIES:
        return
    card = _short_card(config, (repo_id or str(folder.resolve())).split("/")[-1], repo_id, _last_evaluation(folder))
    write_text(folder / CARD_FILE, merge_card(existing, card))


def _short_card(
    config: Mapping[str, Any], name: str, repo_id: str | None, results: list[tuple[str, float]], **metadata: Any
) -> str:
    """The card of a model that no training of this package made, by its config."""
    pipeline_tag, tags = FAMILIES[config["model_type"]].identity(config)
    metadata["tags"] = list(dict.fromkeys([*tags, *metadata.get("tags", [])]))
    data = ModelCardData(library_name="transformers", pipeline_tag=pipeline_tag, **metadata)
    return render_template("model", data, name=name, repo_id=repo_id, results=results, training=None)


def _last_evaluation(folder: Path) -> list[tuple[str, float]]:
    """The measures of Trainer's last evaluation, where it left its state in the folder."""
    path = folder / _TRAINER_STATE_FILE
    entries = read_json(path).get("log_history", []) if path.is_file() else []
    found: dict[str, Any] = next(
        (entry for entry in reversed(entries) if any(key.startswith("eval_") for key in entry)), {}
    )
    skipped = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
    return [
        (key.removeprefix("eval_").replace("_", " "), value)
        for key, value in found.items()
        if key.startswith("eval_") and key not in skipped and isinstance(value, int | float)
    ]


def _licensed(card: str, license: str | None) -> str:
    """The card with a licence; a warning if it has none."""
    card = with_license(card, license)
    if not ModelCard(card).data.get("license"):
        logger.warning("%s states no licence, so that others may not use the model: give one by --license", CARD_FILE)
    return card


def push_model(
    model: Any,
    processor: Any,
    repo_id: str,
    license: str,
    private: bool = True,
    token: str | None = None,
    message: str | None = None,
    tag: str | None = None,
    **metadata: Any,
) -> str:
    """Publish a model, its processor, its code and a card in one commit.

    A card that is on the Hub stays as it is. Without one the model gets a short card that claims no results: write
    yours on the Hub, or train with this package's programs, which write cards from measured results.

    Args:
        model: of one of this package's families.
        processor: `RankAwareFusionProcessor`, or a student's `CLIPProcessor` or `PairProcessor`.
        repo_id: `owner/name` on the Hub.
        license: of the weights, for a new card; it depends on your data and on what you started from.
        private: whether a repository that is created is private.
        token, message, tag: as in `publish`.
        metadata: more metadata of the new card, for instance `base_model` or `datasets`.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the model is of no family of this package, or as in `publish`.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    if model_type not in FAMILIES:
        raise ValueError(f"found a model of type {model_type!r}, expected one of {', '.join(sorted(FAMILIES))}")
    name = repo_id.split("/")[-1]
    new = _short_card(model.config.to_dict(), name, repo_id, [], license=license, **metadata)
    with tempfile.TemporaryDirectory(prefix="hf_blemo_push_") as work:
        folder = Path(work) / name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_text(folder / CARD_FILE, new)
        files = files_to_publish(folder)
        address, _ = _upload(
            folder, files, repo_id, lambda on_hub: on_hub or new, message, private=private, token=token, tag=tag
        )
    return address


def known_license(folder: str | Path, repo_id: str) -> str | None:
    """The licence that the card of a folder states, or the one on the Hub; None where neither does."""
    return license_of(card_in(Path(folder))) or license_of(card_on_hub(repo_id))


def files_to_publish(folder: str | Path) -> list[str]:
    """List what `publish` uploads from a folder, after checking that it is complete.

    Args:
        folder: the model's folder.

    Returns:
        Paths inside the folder, sorted.

    Raises:
        ValueError: a file is missing, not valid or must not be there.
    """
    return _with_extras(Path(folder), _check_model(Path(folder)))


def write_card(folder: str | Path, metrics: Mapping[str, Any], repo_id: str | None = None) -> Path:
    """Write README.md into a model folder and keep manual edits of an earlier one.

    Args:
        folder: the model's folder; its config.json says whether code travels along, and the card shows its PNG files.
        metrics: content of the run's metrics.json.
        repo_id: repository that the card's code loads; None for a local folder.

    Returns:
        The path of the README.md.

    Raises:
        ValueError: as in `render_card` and `merge_card`.
    """
    folder = Path(folder)
    options: dict[str, Any] = {}
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        # The run's metrics do not know the models behind its features.
        options = {"remote_code": "auto_map" in config, "encoder_models": encoder_rows(config), "config": config}
    card = render_card(metrics, repo_id, plots=_plots(folder), **options)
    write_text(folder / CARD_FILE, merge_card(card_in(folder), card))
    return folder / CARD_FILE


def _upload(
    folder: Path,
    files: list[str],
    repo_id: str,
    final_card: Callable[[str | None], str],
    message: str | None,
    **options: Any,
) -> tuple[str, str]:
    """Uploads a checked folder; returns the address and the card."""

    def checked_card(on_hub: str | None) -> str:
        card = final_card(on_hub)
        _check_card(card)
        return card

    _warn_of_local_encoders(folder)
    message = message or f"Publish {read_json(folder / 'config.json')['model_type']} with hf_blemo"
    return upload(repo_id, {name: folder / name for name in files}, message, checked_card, **options)


def _warn_of_local_encoders(folder: Path) -> None:
    rows = encoder_rows(read_json(folder / "config.json"))
    local = [f"{row['name']} ({row['model_id']})" for row in rows if not row["published"]]
    if local:
        logger.warning(
            "%s: others cannot make its features from clips, because these encoders are local folders: %s; publish "
            "them and name their Hub ids in the config",
            folder,
            ", ".join(local),
        )


def _with_extras(folder: Path, model_files: set[str]) -> list[str]:
    """The model's own files, its card, which is checked, and what else belongs on the Hub, sorted."""
    card = card_in(folder)
    # What is not there, and what Trainer or huggingface_hub made, is made or completed when it is published.
    if card is not None and not (is_automatic(card) and read_json(folder / "config.json")["model_type"] in FAMILIES):
        _check_card(card)
    optional = {name for name in _OPTIONAL_FILES if (folder / name).is_file()}
    results = {f"{_EVAL_RESULTS_FOLDER}/{path.name}" for path in (folder / _EVAL_RESULTS_FOLDER).glob("*.yaml")}
    return sorted({CARD_FILE, *model_files, *optional, *_plots(folder), *results})


def _plots(folder: Path) -> list[str]:
    """The pictures of a model's card: the PNG files in its folder and in `plots`, sorted."""
    paths = sorted([*folder.glob("*.png"), *folder.glob("plots/*.png")])
    return [path.relative_to(folder).as_posix() for path in paths]


def _check_model(folder: Path) -> set[str]:
    """The names of the model's own files; raises one error that names all that is wrong."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a model, found none")
    checkpoints = _checkpoints(folder)
    if checkpoints and not any((folder / name).is_file() for name in ("config.json", _WEIGHTS_FILE)):
        raise ValueError(
            f"{folder}: found checkpoints of a training and no model beside them; publish one of them, such as the "
            f"last: {checkpoints[-1]}"
        )
    problems = []
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {"model_type": "unknown"}
    if not config.get("model_type"):
        problems.append("config.json has no model_type")
    groups = (("config.json",), *_INPUT_FILES.get(str(config.get("model_type")), _DEFAULT_INPUT_FILES))
    files = {name for group in groups for name in group if (folder / name).is_file()}
    problems += [f"{' or '.join(group)} is missing" for group in groups if not files.intersection(group)]
    settings = {name: read_json(folder / name) for name in sorted(files)}

    has_card = any((folder / name).is_file() for name in (CARD_FILE, _METRICS_FILE))
    if not has_card and config.get("model_type") not in FAMILIES:
        problems.append(f"{CARD_FILE} is missing, and {_METRICS_FILE} to write it from as well")
    encoders = config.get("encoders")
    problems += [
        f"the encoder {name} lies in the folder ({entry['model_id']}) and would not come along: publish it by itself, "
        "and name its repository as the encoder's model_id in config.json"
        for name, entry in (encoders if isinstance(encoders, dict) else {}).items()
        if isinstance(entry, dict) and str(entry.get("model_id")).startswith("./")
    ]
    weights, weight_problems = _weights(folder)
    code, code_problems = _code(folder, settings)
    problems += weight_problems + code_problems
    problems += [
        f"{path.name} is a pickle, which is never published: save as safetensors and delete it"
        for path in sorted(folder.iterdir())
        if path.suffix in _PICKLE_SUFFIXES and not _TRAINER_PICKLES.fullmatch(path.name)
    ]
    if problems:
        raise ValueError(f"{folder} cannot be published: {'; '.join(problems)}")
    return files | weights | code


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that Trainer left in its output folder, the last one last."""
    found = [(path, path.name.removeprefix("checkpoint-")) for path in folder.glob("checkpoint-*") if path.is_dir()]
    return [path for path, number in sorted(found, key=lambda pair: int(pair[1]) if pair[1].isdigit() else -1)]


def _weights(folder: Path) -> tuple[set[str], list[str]]:
    """Finds the safetensors files, by the index where the weights are in several, and opens each."""
    if (folder / _WEIGHTS_FILE).is_file():
        names, shards = {_WEIGHTS_FILE}, {_WEIGHTS_FILE}
    elif (folder / _WEIGHTS_INDEX_FILE).is_file():
        shards = set(read_json(folder / _WEIGHTS_INDEX_FILE).get("weight_map", {}).values())
        names = {_WEIGHTS_INDEX_FILE} | shards
    else:
        return set(), [f"{_WEIGHTS_FILE} is missing"]
    problems = [] if shards else [f"{_WEIGHTS_INDEX_FILE} names no weights"]
    for shard in sorted(shards):
        if not within(folder, shard, f"{folder}: {_WEIGHTS_INDEX_FILE}").is_file():
            problems.append(f"{shard}, which {_WEIGHTS_INDEX_FILE} names, is missing")
            continue
        try:
            with safe_open(folder / shard, framework="numpy") as weights:
                if not list(weights.keys()):
                    problems.append(f"{shard} holds no weights")
        except SafetensorError as error:
            problems.append(f"{shard} is not a whole safetensors file ({error})")
    return names, problems


def _code(folder: Path, settings: dict[str, dict[str, Any]]) -> tuple[set[str], list[str]]:
    """Finds the Python files that the auto classes load, and those that these import from beside them."""
    pending = set()
    for content in settings.values():
        pending |= {
            f"{reference.rpartition('.')[0]}.py" for reference in code_references(content) if "--" not in reference
        }
    files: set[str] = set()
    problems = []
    while pending:
        name = pending.pop()
        files.add(name)
        if not within(folder, name, f"{folder}: auto_map").is_file():
            problems.append(f"{name}, code that auto_map needs, is missing")
            continue
        try:
            tree = ast.parse((folder / name).read_text(encoding="utf-8"), filename=name)
        except SyntaxError as error:
            problems.append(f"{name} is not valid Python (line {error.lineno}: {error.msg})")
            continue
        siblings = {
            f"{node.module}.py"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        }
        pending |= siblings - files
    return files, sorted(problems)


def _check_card(card: str) -> None:
    """Checks what can be checked of a card without the Hub, which checks the rest when it receives the commit."""
    if not card.lstrip().startswith("---"):
        raise ValueError(f"{CARD_FILE}: expected metadata between two lines of ---, found none")
    try:
        data = ModelCard(card).data
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise ValueError(f"{CARD_FILE}: expected YAML metadata between the --- lines, found: {error}") from error
    missing = [key for key in ("library_name", "pipeline_tag", "tags") if not data.get(key)]
    if missing:
        raise ValueError(f"{CARD_FILE}: expected metadata with {missing}, found {sorted(data.to_dict())}")


def _read_metrics(folder: Path) -> dict[str, Any] | None:
    """The run's metrics, or None where the folder has none."""
    path = folder / _METRICS_FILE
    if not path.is_file():
        return None
    metrics = read_json(path)
    expected = read_json(folder / "config.json")["model_type"]
    if metrics.get("model_type", expected) != expected:
        raise ValueError(
            f"{path}: expected model_type {expected!r} as in config.json, found {metrics['model_type']!r}"
        )
    return metrics


def _write_eval_results(folder: Path) -> None:
    """Writes the card's results on data sets of the Hub into the Hub's own files, in place of those of earlier runs.

    The Hub makes leaderboards from these files. Results on a local folder or on built-in data stay only in the card.
    """
    entries: dict[str, list[EvalResultEntry]] = {}
    for result in ModelCard.load(folder / CARD_FILE).data.eval_results or []:
        if "/" not in result.dataset_type:
            continue
        # The protocol in brackets stays only where it distinguishes two metrics.
        metric = result.metric_name if "caption" in result.metric_name else result.metric_name.split(" (")[0]
        task = " ".join(filter(None, [(result.dataset_args or {}).get("task"), metric]))
        std = (result.metric_args or {}).get("std")
        spread = "" if std is None else f", standard deviation {std:.4f}"
        entries.setdefault(result.dataset_type, []).append(
            EvalResultEntry(
                dataset_id=result.dataset_type,
                task_id=re.sub(r"\W+", "_", task).strip("_").lower(),
                value=result.metric_value,
                notes=f"{result.metric_name}{spread}; measured by the trainer of hf_blemo",
            )
        )
    for old in (folder / _EVAL_RESULTS_FOLDER).glob("*.yaml"):
        old.unlink()
    for dataset, found in entries.items():
        path = folder / _EVAL_RESULTS_FOLDER / f"{dataset.replace('/', '--')}.yaml"
        text = yaml.safe_dump(eval_result_entries_to_yaml(found), sort_keys=False, allow_unicode=True)
        write_text(path, text)

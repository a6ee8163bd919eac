"""Publishing: check that a model folder is complete, then upload what belongs on the Hub in one commit."""

import ast
import json
import logging
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from safetensors import SafetensorError, safe_open

from hf_blemo.files import read_json

from .card import human_part, merge_card, plots_in, render_card, write_card
from .card_values import without_local_paths
from .encoder_models import local_encoders, without_folders
from .eval_results import EVAL_RESULTS_FOLDER, write_eval_results

logger = logging.getLogger(__name__)

# What a model needs beside its weights and config.json to read its inputs; of the names in a group any one will do.
INPUT_FILES = {
    # transformers reads an image processor from either file, whatever it was saved with.
    "clip_rd": (
        ("preprocessor_config.json", "processor_config.json"),
        ("tokenizer.json",),
        ("tokenizer_config.json",),
    ),
}
DEFAULT_INPUT_FILES = (("processor_config.json",),)
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
METRICS_FILE = "metrics.json"
CARD_FILE = "README.md"
# What says which models make a fusion's features.
_ENCODERS_FILES = {"config.json", "processor_config.json"}
# The card as last published to each repository: what tells which side was edited since.
PUBLISHED_CARDS_FOLDER = ".published_cards"
OPTIONAL_FILES = (
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    METRICS_FILE,
)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
# transformers' Trainer always leaves this pickle beside the weights; it holds none of them and is never uploaded.
TRAINER_ARGUMENTS_FILE = "training_args.bin"


def publish(
    folder: str | Path,
    repo_id: str | None = None,
    private: bool = True,
    token: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    tag: str | None = None,
) -> str:
    """Check a model folder, bring its card up to date and upload both to the Hub in one commit.

    Model, what prepares its inputs, card, the model's own code, metrics.json without this machine's folders, results
    on data sets of the Hub (`.eval_results`) and plots are uploaded; checkpoints, optimizer states and data never are.
    A card that people changed on the Hub keeps their text. An encoder of clips that is a folder of this machine is
    warned of, and its path is not uploaded.

    Args:
        folder: what the trainer wrote, or `save_pretrained` of the model and its processor, or its tokenizer and image
            processor, into one folder.
        repo_id: `owner/name` on the Hub; None checks the folder, writes its card and logs the files at level INFO.
        private: whether a repository that is created is private; an existing one stays as it is.
        token: a Hub token; the one stored by `hf auth login` by default.
        create_pr: whether to open a pull request instead of committing to the main branch.
        message: of the commit.
        tag: a git tag set on the commit.

    Returns:
        The address of the commit, or of the pull request; without `repo_id` the folder.

    Raises:
        ValueError: if something is missing from the folder, is not valid or must not be there, if the card was changed
            both here and on the Hub, or if the tag exists or is asked for together with a pull request.

    Source:
        This project's choice.
    """
    folder = Path(folder)
    if tag is not None and repo_id is None:
        raise ValueError(f"tag {tag!r}: expected a repo_id to set it in, found none")
    if tag is not None and create_pr:
        raise ValueError(f"tag {tag!r}: a pull request has no commit to tag yet; merge it first, then tag")
    _check_model(folder)
    metrics = _read_metrics(folder)
    local = local_encoders(read_json(folder / "config.json"))
    if local:
        logger.warning(
            "%s: others cannot make its features from clips, as these encoders are folders of this machine: %s; "
            "publish them and name their Hub ids in the config",
            folder,
            ", ".join(f"{name} ({path})" for name, path in local.items()),
        )
    if metrics is not None:
        write_card(folder, metrics, **({"repo_id": repo_id} if repo_id else {}))
        write_eval_results(folder, metrics)
    files = files_to_publish(folder)
    if repo_id is None:
        logger.info("%s is complete; a repo_id would upload: %s", folder, ", ".join(files))
        return str(folder)

    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True).repo_id
    if tag is not None and tag in {found.name for found in api.list_repo_refs(repo_id).tags}:
        raise ValueError(f"tag {tag!r}: it exists in {repo_id} already; choose another")
    parent = api.model_info(repo_id).sha
    card = (folder / CARD_FILE).read_text(encoding="utf-8-sig")
    if api.file_exists(repo_id, CARD_FILE, revision=parent):
        remote = Path(api.hf_hub_download(repo_id, CARD_FILE, revision=parent))
        unedited = [path.read_text(encoding="utf-8") for path in [_published_card(folder, repo_id)] if path.is_file()]
        if metrics is not None:
            unedited.append(render_card(metrics, repo_id=repo_id))
        card = _reconcile(card, remote.read_text(encoding="utf-8-sig"), unedited, repo_id)
        _check_card(card)
    contents: dict[str, Any] = {name: str(folder / name) for name in files}
    contents[CARD_FILE] = card.encode()
    if local:
        for name in _ENCODERS_FILES.intersection(files):
            content = read_json(folder / name)
            if content.get("encoders"):
                contents[name] = (json.dumps(without_folders(content), indent=2) + "\n").encode()
    if metrics is not None:
        contents[METRICS_FILE] = (json.dumps(without_local_paths(metrics), indent=2) + "\n").encode()
    commit = api.create_commit(
        repo_id,
        [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in contents.items()],
        commit_message=message or f"Publish {read_json(folder / 'config.json')['model_type']} with hf_blemo",
        create_pr=create_pr,
        parent_commit=parent,
    )
    if not create_pr:
        _published_card(folder, repo_id).parent.mkdir(exist_ok=True)
        for path in (folder / CARD_FILE, _published_card(folder, repo_id)):
            path.write_text(card, encoding="utf-8", newline="\n")
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or commit.commit_url


def files_to_publish(folder: str | Path) -> list[str]:
    """List what `publish` uploads from a folder, after checking that it is complete.

    Args:
        folder: the model's folder.

    Returns:
        Paths inside the folder, sorted.

    Raises:
        ValueError: if something is missing from the folder, is not valid or must not be there.

    Source:
        This project's choice.
    """
    folder = Path(folder)
    files = _check_model(folder)
    if not (folder / CARD_FILE).is_file():
        raise ValueError(
            f"{folder}: expected the card {CARD_FILE}, which publish writes from {METRICS_FILE}, found none"
        )
    _check_card((folder / CARD_FILE).read_text(encoding="utf-8-sig"))
    files |= {CARD_FILE} | {name for name in OPTIONAL_FILES if (folder / name).is_file()}
    files |= {plot.relative_to(folder).as_posix() for plot in plots_in(folder)}
    files |= {f"{EVAL_RESULTS_FOLDER}/{path.name}" for path in (folder / EVAL_RESULTS_FOLDER).glob("*.yaml")}
    return sorted(files)


def _check_model(folder: Path) -> set[str]:
    """Return the names of the model's own files, or raise one error that names all that is wrong."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder with a model, found none")
    problems = []
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {"model_type": "unknown"}
    if not config.get("model_type"):
        problems.append("config.json has no model_type")
    groups = (("config.json",), *INPUT_FILES.get(str(config.get("model_type")), DEFAULT_INPUT_FILES))
    files = {name for group in groups for name in group if (folder / name).is_file()}
    problems += [f"{' or '.join(group)} is missing" for group in groups if not files.intersection(group)]
    settings = {name: read_json(folder / name) for name in sorted(files)}

    if not (folder / CARD_FILE).is_file() and not (folder / METRICS_FILE).is_file():
        problems.append(f"{CARD_FILE} is missing, and {METRICS_FILE} to write it from as well")
    weights, weight_problems = _weights(folder)
    code, code_problems = _code(folder, settings)
    problems += weight_problems + code_problems
    problems += [
        f"{path.name} is a pickle, which is never published: save as safetensors and delete it"
        for path in sorted(folder.iterdir())
        if path.suffix in PICKLE_SUFFIXES and path.name != TRAINER_ARGUMENTS_FILE
    ]
    if problems:
        raise ValueError(f"{folder} cannot be published: {'; '.join(problems)}")
    return files | weights | code


def _weights(folder: Path) -> tuple[set[str], list[str]]:
    """Find the safetensors files, by the index where the weights are in several, and open each."""
    if (folder / WEIGHTS_FILE).is_file():
        names, shards = {WEIGHTS_FILE}, {WEIGHTS_FILE}
    elif (folder / WEIGHTS_INDEX_FILE).is_file():
        shards = set(read_json(folder / WEIGHTS_INDEX_FILE).get("weight_map", {}).values())
        names = {WEIGHTS_INDEX_FILE} | shards
    else:
        return set(), [f"{WEIGHTS_FILE} is missing"]
    problems = [] if shards else [f"{WEIGHTS_INDEX_FILE} names no weights"]
    for shard in sorted(shards):
        if not (folder / shard).is_file():
            problems.append(f"{shard}, which {WEIGHTS_INDEX_FILE} names, is missing")
            continue
        try:
            with safe_open(folder / shard, framework="numpy") as weights:
                if not list(weights.keys()):
                    problems.append(f"{shard} holds no weights")
        except SafetensorError as error:
            problems.append(f"{shard} is not a whole safetensors file ({error})")
    return names, problems


def _code(folder: Path, settings: dict[str, dict[str, Any]]) -> tuple[set[str], list[str]]:
    """Find the Python files that the auto classes would load, and those that they import from beside them."""
    pending = set()
    for content in settings.values():
        for target in content.get("auto_map", {}).values():
            # A tokenizer's entry is a pair of a slow and a fast class, either of which may be null.
            for reference in [target] if isinstance(target, str) else target:
                if reference and "--" not in reference:
                    pending.add(f"{reference.split('.')[0]}.py")
    files: set[str] = set()
    problems = []
    while pending:
        name = pending.pop()
        files.add(name)
        if not (folder / name).is_file():
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
    """Check what can be checked of a card without the Hub, which checks the rest when it receives the commit."""
    if not card.lstrip().startswith("---"):
        raise ValueError(f"{CARD_FILE}: expected metadata between two lines of ---, found none")
    # Refuses what is no YAML by name.
    human_part(card)
    data = ModelCard(card).data
    missing = [key for key in ("license", "library_name", "pipeline_tag", "tags") if not data.get(key)]
    if missing:
        raise ValueError(f"{CARD_FILE}: expected metadata with {missing}, found {sorted(data.to_dict())}")


def _published_card(folder: Path, repo_id: str) -> Path:
    return folder / PUBLISHED_CARDS_FOLDER / f"{repo_id.replace('/', '--')}.md"


def _reconcile(local: str, remote: str, unedited: list[str], repo_id: str) -> str:
    """Merge the folder's card and the Hub's, losing neither side's words.

    A side that is still as the template or the last publication made it gives way to the other. Where people changed
    both, only they can say what the card should be.
    """
    here, there = human_part(local), human_part(remote)
    known = [human_part(card) for card in unedited]
    if here == there or here in known:
        return merge_card(remote, local)
    if there in known:
        return local
    raise ValueError(
        f"{CARD_FILE}: changed both in the folder and in {repo_id}; carry your changes over to the one on the Hub, "
        "put a copy of it into the folder, and publish again"
    )


def _read_metrics(folder: Path) -> dict[str, Any] | None:
    """Return the run's metrics, or None where the folder comes without."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return None
    metrics = read_json(path)
    expected = read_json(folder / "config.json")["model_type"]
    if metrics.get("model_type", expected) != expected:
        raise ValueError(
            f"{path}: expected model_type {expected!r} as in config.json, found {metrics['model_type']!r}"
        )
    return metrics

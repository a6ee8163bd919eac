"""Cards: values and a Jinja template become a README.md that people may edit without losing a word."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from huggingface_hub import CardData, ModelCardData
from huggingface_hub.repocard import RepoCard
from huggingface_hub.utils import validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from hf_blemo.errors import reading, without_paths
from hf_blemo.loading import is_hub_id
from hf_blemo.programs import markdown
from hf_blemo.programs.tables import plus_minus

from . import card_clip_rd, card_rank_aware_fusion
from .encoder_models import file_on_hub

CARD_FILE = "README.md"
# One module per family says what differs: REQUIRED_KEYS, `identity` and `card_values`.
FAMILIES: dict[str, ModuleType] = {"clip_rd": card_clip_rd, "rank_aware_fusion": card_rank_aware_fusion}

_SCHEMA_VERSION = 1
_LIST_KEYS = ("tags", "datasets", "metrics")
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds the templates inside the package, a checkout beside it.
_TEMPLATE_FOLDERS = (_PACKAGE / "model_cards", _PACKAGE.parent / "model_cards")
_BLOCK = re.compile(r"<!-- hf_blemo:begin (\w+) -->.*?<!-- hf_blemo:end \1 -->", re.DOTALL)
# What Trainer writes into its cards, and huggingface_hub into those of its template.
_AUTOMATIC = re.compile(
    r"generated_from_trainer|This model card has been generated automatically|More Information Needed"
)
_MARKER = re.compile(r"<!-- hf_blemo:(?:begin|end) \w+ -->")


def without_local_paths(value: Any) -> Any:
    """Cuts the folders off every place of this machine that a tree of settings names, so that it can be published.

    Absolute paths, and every `model_id` that is not a Hub id, keep their last component; web addresses stay,
    without what they grant, and other relative paths.
    """
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, Mapping):
        published = {without_local_paths(key): without_local_paths(item) for key, item in value.items()}
        if isinstance(value.get("model_id"), str) and not is_hub_id(value["model_id"]):
            published["model_id"] = Path(value["model_id"]).name
        return published
    if isinstance(value, list | tuple):
        return [without_local_paths(item) for item in value]
    return value


def render_card(
    metrics: Mapping[str, Any],
    repo_id: str | None = None,
    remote_code: bool = True,
    plots: Sequence[str] = (),
    encoder_models: Sequence[Mapping[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> str:
    """Renders the card of a run.

    Args:
        metrics: content of the run's metrics.json.
        repo_id: repository that the card's code loads; None for a local folder.
        remote_code: whether the model's code lies beside its weights.
        plots: paths of pictures inside the repository.
        encoder_models: of a fusion, as `encoder_rows` returns them; those named in `metrics` by default.
        config: content of the model's config.json, which names the labels of a fusion; BlEmoRE's by default.
        license: of code and weights; none is stated by default, since it depends on data and encoders.

    Returns:
        Metadata and text of a README.md. The model index holds measured results; data sets and base models are named
        where they have a Hub id.
    """
    model_type = metrics.get("model_type") or "rank_aware_fusion"
    if model_type not in FAMILIES:
        raise FileNotFoundError(f"no card for model_type {model_type!r}: expected one of {sorted(FAMILIES)}")
    family = FAMILIES[model_type]
    missing = [key for key in family.REQUIRED_KEYS if key not in metrics]
    if missing:
        raise ValueError(f"metrics.json: expected the keys {list(family.REQUIRED_KEYS)}, {missing} not found")
    if metrics["schema_version"] != _SCHEMA_VERSION:
        raise ValueError(
            f"metrics.json: expected schema_version {_SCHEMA_VERSION}, found {metrics['schema_version']!r}"
        )
    metrics = without_local_paths(metrics)
    with reading("metrics.json", "the metrics of a run of this package"):
        metadata, values = family.card_values(metrics, config)
    data = ModelCardData(
        license=license,
        library_name="transformers",
        model_name=(repo_id.split("/")[-1] if repo_id else model_type) if metadata["eval_results"] else None,
        **metadata,
    )
    if encoder_models is not None:
        values["encoder_models"] = encoder_models
    return render_template(
        model_type, data, metrics=metrics, repo_id=repo_id, remote_code=remote_code, plots=plots, **values
    )


def render_template(template: str, metadata: CardData, **values: Any) -> str:
    """Metadata and text of a README.md from one of the package's templates, named without the endings.

    `Markup` among the template's variables is Markdown, all else is text; a `repo_id` among them has to be one.
    """
    if values.get("repo_id") is not None:
        validate_repo_id(values["repo_id"])
    text = _environment().get_template(f"{template}.md.jinja").render(card_data=Markup(metadata.to_yaml()), **values)
    return _with_licence_said(text.rstrip() + "\n")


def merge_card(existing: str | None, generated: str, untouched: Sequence[str] | None = None) -> str:
    """Updates a card without losing manual edits.

    Text between `<!-- hf_blemo:begin NAME -->` and `<!-- hf_blemo:end NAME -->` is replaced by the generated block of
    that name; all other text stays, and a block that was deleted stays deleted. A card without any of these markers
    gets the generated results at its end, and one that is only metadata, or that transformers or huggingface_hub made
    by itself, gets the whole text. In the metadata existing keys stay, lists of tags, data sets and metrics are
    extended, missing keys are added, and the model index is replaced.

    Args:
        existing: the card in the folder or on the Hub; None where there is none.
        generated: the card as rendered now; with `untouched`, the card in the folder, which people may have edited.
        untouched: cards that nobody has edited. A side that still reads like one of them gives way to the other.

    Raises:
        ValueError: the metadata of a card is not a mapping, a marker lacks its counterpart, or people have edited both
            sides.
    """
    if existing is None:
        return generated
    if untouched is not None and not is_automatic(existing):
        here, there, *known = (_human_part(card) for card in (generated, existing, *untouched))
        if here != there and here not in known:
            if there in known:
                return generated
            raise ValueError(
                f"{CARD_FILE}: changed both in the folder and on the Hub; carry your changes over to the one on the "
                "Hub, copy it into the folder, and publish again"
            )
    metadata, text = _split_card(existing)
    new_metadata, new_text = _split_card(generated)
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(new_text)}
    if stray := _MARKER.search(_BLOCK.sub("", text)):
        raise ValueError(f"{CARD_FILE}: expected markers in pairs of begin and end, found {stray[0]} alone")
    if not text.strip():
        text = new_text
    elif is_automatic(existing):
        text = new_text if text.strip() in new_text else f"{text.rstrip()}\n\n{new_text.lstrip()}"
    elif _BLOCK.search(text):
        text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), text)
    elif "results" in blocks:
        text = f"{text.rstrip()}\n\n{blocks['results']}\n"

    metadata.pop("model-index", None)
    for key, value in new_metadata.items():
        if key in _LIST_KEYS and isinstance(metadata.get(key), list):
            metadata[key] += [item for item in value if item not in metadata[key]]
        else:
            metadata.setdefault(key, value)
    return _joined(metadata, text)


def card_in(folder: Path) -> str | None:
    """The card of a folder, if there is one."""
    path = folder / CARD_FILE
    return path.read_text(encoding="utf-8-sig") if path.is_file() else None


def card_on_hub(repo_id: str, repo_type: str = "model", **options: Any) -> str | None:
    """The card of a repository, if there is one; one that cannot be fetched now must not be taken for none."""
    path = file_on_hub(repo_id, CARD_FILE, repo_type, must_reach=True, **options)
    return None if path is None else card_in(path.parent)


def is_automatic(card: str) -> bool:
    """Whether transformers' Trainer or huggingface_hub made a card by itself, and nothing of ours is in it yet."""
    return _AUTOMATIC.search(card) is not None and _BLOCK.search(card) is None


def license_of(card: str | None) -> str | None:
    """The licence that the metadata of a card states, if any."""
    return None if card is None else _split_card(card)[0].get("license") or None


def _with_licence_said(card: str) -> str:
    """The card, whose block on the licence, if any, agrees with its metadata."""
    license = license_of(card)
    said = (
        "**No licence is stated**, so nobody but the owner may use the contents of this repository."
        if license is None
        else f"Licence of the contents of this repository: {markdown.code(license)}."
    )
    block = f"<!-- hf_blemo:begin licence -->\n{said}\n<!-- hf_blemo:end licence -->"
    return _BLOCK.sub(lambda match: block if match[1] == "licence" else match[0], card)


def with_license(card: str, license: str | None) -> str:
    """States a licence in the metadata of a card, whatever it stated before; None leaves it as it is."""
    if license is None:
        return card
    metadata, text = _split_card(card)
    return _joined({"license": license, **metadata} | {"license": license}, text)


def _joined(metadata: dict[str, Any], text: str) -> str:
    header = ModelCardData(**metadata).to_yaml(original_order=list(metadata))
    return _with_licence_said(f"---\n{header}\n---\n{text}")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATE_FOLDERS),
        # Whatever a template says nothing else of is text.
        autoescape=True,
        finalize=markdown.text,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": markdown.text, "code": markdown.code, "command": markdown.command}
    environment.filters |= {"measure": _measure, "share": _share, "counted": _counted}
    return environment


def _human_part(card: str) -> tuple[dict[str, Any], str]:
    """What people may have edited: metadata without the model index, and text with a placeholder for each block."""
    metadata, text = _split_card(card)
    metadata.pop("model-index", None)
    lines = _BLOCK.sub(lambda match: f"[{match[1]}]", text).strip().splitlines()
    return metadata, "\n".join(line.rstrip() for line in lines)


def _split_card(card: str) -> tuple[dict[str, Any], str]:
    """Metadata and text; RepoCard, unlike ModelCard, leaves a broken model index to be replaced."""
    card = card.replace("\r\n", "\n")
    if not re.match(r"\s*---\n", card):
        return {}, card
    try:
        parsed = RepoCard(card)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"{CARD_FILE}: expected YAML metadata between the --- lines, found: {error}") from error
    return parsed.data.to_dict(), parsed.text


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _counted(plural: str, runs: list[Mapping[str, Any]]) -> str:
    """Says how many different folds or seeds the runs have."""
    key = plural.removesuffix("s")
    count = len({run[key] for run in runs})
    return f"{count} {key if count == 1 else plural}"


def _measure(value: Any) -> str:
    """Writes a metric, as mean ± sample standard deviation where both are known."""
    if isinstance(value, Mapping):
        value = value if value.get("mean") is not None and "std" in value else value.get("mean")
    if value is None:
        return "–"
    return plus_minus(value) if isinstance(value, Mapping) else f"{value:.4f}"

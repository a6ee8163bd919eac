"""Model cards: measured numbers and a Jinja template become a README.md that people may edit without losing a word."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.repocard import RepoCard
from jinja2 import StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from . import card_clip_rd, card_rank_aware_fusion
from .card_values import FILTERS, without_local_paths
from .encoder_models import encoder_rows

SCHEMA_VERSION = 1
LIST_KEYS = ("tags", "datasets", "metrics")
# One module per family says what differs: REQUIRED_KEYS, check_metrics, metadata and template_variables.
FAMILIES: dict[str, ModuleType] = {"clip_rd": card_clip_rd, "rank_aware_fusion": card_rank_aware_fusion}
DEFAULT_FAMILY = "rank_aware_fusion"

_BLOCK = re.compile(r"<!-- hf_blemo:begin (\w+) -->.*?<!-- hf_blemo:end \1 -->", re.DOTALL)
_MARKER = re.compile(r"<!-- hf_blemo:(?:begin|end) \w+ -->")


def card_template(model_type: str = "rank_aware_fusion") -> Path:
    """Return the card template of a model family.

    Args:
        model_type: the `model_type` of the family's configuration.

    Returns:
        The path of the template: inside the package where it was installed from a wheel, else in the checkout.

    Raises:
        FileNotFoundError: if the family has no template.

    Source:
        This project's choice.
    """
    package = Path(__file__).resolve().parents[1]
    folders = (package / "model_cards", package.parent / "model_cards")
    for folder in folders:
        template = folder / f"{model_type}.md.jinja"
        if template.is_file():
            return template
    known = sorted({found.name.removesuffix(".md.jinja") for folder in folders for found in folder.glob("*.md.jinja")})
    raise FileNotFoundError(f"no card template for model_type {model_type!r}: expected one of {known}")


def card_metadata(metrics: Mapping[str, Any], model_name: str | None = None) -> ModelCardData:
    """Turn the numbers of a run into the metadata of a Hub model card.

    Args:
        metrics: content of the run's metrics.json.
        model_name: name in the model index; the model type by default.

    Returns:
        Metadata with a model index of what was measured; no index where nothing was evaluated, and data sets and base
        models only where they have a Hub id. The licence is that of code and weights.

    Raises:
        ValueError: if `metrics` lacks a key it must have, or is of another schema.
        FileNotFoundError: if the model type has no card.

    Source:
        The Hub's model card specification.
    """
    metrics, family = _checked(metrics)
    return _metadata(metrics, family, model_name)


def render_card(metrics: Mapping[str, Any], template: str | Path | None = None, **extra: Any) -> str:
    """Render the card of a run.

    Args:
        metrics: content of the run's metrics.json; folders of the machine it ran on are cut off its texts.
        template: a Jinja template; that of the metrics' model type by default.
        **extra: variables that replace the template's own: `repo_id` (None: the card speaks of a local folder),
            `remote_code` (whether the model's code lies beside its weights), `encoder_models` (as of `encoder_rows`),
            `plots` (paths of pictures inside the repository), `model_name` (in the model index; the last part of
            `repo_id` by default), or others that a template of one's own names.

    Returns:
        Metadata block and text of a README.md.

    Raises:
        ValueError: if `metrics` lacks a key it must have, or is of another schema.
        FileNotFoundError: if the model type has no template.

    Source:
        This project's choice.
    """
    metrics, family = _checked(metrics)
    repo_id = extra.get("repo_id")
    metadata = _metadata(metrics, family, extra.get("model_name") or (repo_id.split("/")[-1] if repo_id else None))
    if template is None:
        template = card_template(_model_type(metrics))
    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= FILTERS
    variables = {
        "card_data": metadata.to_yaml(),
        "metrics": metrics,
        **family.template_variables(metrics),
        "remote_code": True,
        "plots": [],
        **extra,
        "repo_id": repo_id,
    }
    text = environment.from_string(Path(template).read_text(encoding="utf-8")).render(variables)
    return str(ModelCard(text)).rstrip() + "\n"


def write_card(folder: str | Path, metrics: Mapping[str, Any], **extra: Any) -> Path:
    """Write README.md into a model folder, keeping what people wrote in the one that lies there.

    Args:
        folder: the model's folder; its config.json tells whether code travels along, its PNG files are shown.
        metrics: content of the run's metrics.json.
        **extra: as in `render_card`.

    Returns:
        The path of the README.md.

    Raises:
        ValueError: as in `render_card` and `merge_card`.

    Source:
        This project's choice.
    """
    folder = Path(folder)
    path = folder / "README.md"
    card = render_card(metrics, **(_folder_variables(folder) | extra))
    if path.is_file():
        card = merge_card(path.read_text(encoding="utf-8-sig"), card)
    path.write_text(card, encoding="utf-8", newline="\n")
    return path


def merge_card(existing: str, generated: str) -> str:
    """Bring a card up to date without losing what people changed in it.

    Text between `<!-- hf_blemo:begin NAME -->` and `<!-- hf_blemo:end NAME -->` is replaced by the generated block of
    that name; all other text stays, and a block that was deleted stays deleted. A card without any of these markers
    gets the generated results at its end, and one that is only metadata gets the whole text. In the metadata existing
    keys stay, lists of tags, data sets and metrics are extended, missing keys are added, and the model index is
    replaced.

    Args:
        existing: the card as it lies in the folder or on the Hub.
        generated: the card as rendered now.

    Returns:
        The merged card.

    Raises:
        ValueError: if the metadata of `existing` is not a mapping, or a marker lacks its counterpart.

    Source:
        This project's choice.
    """
    metadata, text = _split_card(existing)
    new_metadata, new_text = _split_card(generated)
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(new_text)}
    outside = _BLOCK.sub("", text)
    if stray := _MARKER.search(outside):
        raise ValueError(f"README.md: expected markers in pairs of begin and end, found {stray[0]} alone")
    if not text.strip():
        text = new_text
    elif _BLOCK.search(text):
        text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), text)
    elif "results" in blocks:
        text = f"{text.rstrip()}\n\n{blocks['results']}\n"

    merged = dict(metadata)
    for key, value in new_metadata.items():
        if key in LIST_KEYS and isinstance(merged.get(key), list):
            merged[key] = merged[key] + [item for item in value if item not in merged[key]]
        elif key not in merged:
            merged[key] = value
    merged.pop("model-index", None)
    if "model-index" in new_metadata:
        merged["model-index"] = new_metadata["model-index"]
    header = ModelCardData(**merged).to_yaml(original_order=list(merged))
    return f"---\n{header}\n---\n{text}"


def human_part(card: str) -> tuple[dict[str, Any], str]:
    """Return what people may have edited of a card: all but the generated blocks and the model index.

    Args:
        card: content of a README.md.

    Returns:
        Metadata without the model index, and text with a placeholder for each block and the ends of lines stripped.

    Raises:
        ValueError: if the metadata of `card` is not a mapping.

    Source:
        This project's choice.
    """
    metadata, text = _split_card(card)
    metadata.pop("model-index", None)
    lines = _BLOCK.sub(lambda match: f"[{match[1]}]", text).strip().splitlines()
    return metadata, "\n".join(line.rstrip() for line in lines)


def _model_type(metrics: Mapping[str, Any]) -> str:
    return metrics.get("model_type") or DEFAULT_FAMILY


def _checked(metrics: Mapping[str, Any]) -> tuple[dict[str, Any], ModuleType]:
    """Return the metrics, without folders of a machine, and the module of their family."""
    model_type = _model_type(metrics)
    if model_type not in FAMILIES:
        raise FileNotFoundError(f"no card for model_type {model_type!r}: expected one of {sorted(FAMILIES)}")
    family = FAMILIES[model_type]
    missing = [key for key in family.REQUIRED_KEYS if key not in metrics]
    if missing:
        raise ValueError(f"metrics.json: expected the keys {list(family.REQUIRED_KEYS)}, {missing} not found")
    if metrics["schema_version"] != SCHEMA_VERSION:
        raise ValueError(
            f"metrics.json: expected schema_version {SCHEMA_VERSION}, found {metrics['schema_version']!r}"
        )
    family.check_metrics(metrics)
    return without_local_paths(metrics), family


def _metadata(metrics: Mapping[str, Any], family: ModuleType, model_name: str | None) -> ModelCardData:
    added = family.metadata(metrics)
    return ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        model_name=(model_name or _model_type(metrics)) if added["eval_results"] else None,
        **added,
    )


def _folder_variables(folder: Path) -> dict[str, Any]:
    """Say which parts of the card hold for this folder."""
    variables: dict[str, Any] = {"plots": [path.relative_to(folder).as_posix() for path in plots_in(folder)]}
    config = folder / "config.json"
    if config.is_file():
        content = json.loads(config.read_text(encoding="utf-8"))
        variables["remote_code"] = "auto_map" in content
        # What a run measured says nothing of the models behind its features.
        variables["encoder_models"] = encoder_rows(content)
    return variables


def plots_in(folder: Path) -> list[Path]:
    """List the pictures that belong to a model's card.

    Args:
        folder: the model's folder.

    Returns:
        The PNG files in the folder and in its `plots` sub-folder, sorted.

    Source:
        This project's choice.
    """
    return sorted([*folder.glob("*.png"), *folder.glob("plots/*.png")])


def _split_card(card: str) -> tuple[dict[str, Any], str]:
    """Return metadata and text; RepoCard, unlike ModelCard, leaves a broken model index to be replaced."""
    card = card.replace("\r\n", "\n")
    if not re.match(r"\s*---\n", card):
        return {}, card
    try:
        parsed = RepoCard(card)
    except (yaml.YAMLError, TypeError) as error:
        raise ValueError(f"README.md: expected YAML metadata between the --- lines, found: {error}") from error
    return parsed.data.to_dict(), parsed.text

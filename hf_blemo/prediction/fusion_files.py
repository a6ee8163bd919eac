"""The files of a fusion and its processor, looked through before anything large is imported to load them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_blemo.encoders.encoder_options import encoders_of
from hf_blemo.errors import check_regular, one_line, reading
from hf_blemo.files import read_json, within
from hf_blemo.loading import CONFIG_FILE, FUSION, download_errors, local_path, read_config
from hf_blemo.rank_aware_fusion.label_space_rank_aware_fusion import LabelSpace, same_space, space_of

PROCESSOR_FILE = "processor_config.json"
WEIGHTS_FILES = ("model.safetensors", "model.safetensors.index.json")


@dataclass
class FusionFiles:
    """A fusion that is there, with its processor.

    Args:
        where: its folder or Hub id, as given.
        named: the same with the revision, for messages.
        folder: with its settings; the weights of one on the Hub come later.
        config: content of its config.
        processor: content of that of its processor.
    """

    where: str
    named: str
    folder: Path
    config: dict[str, Any]
    processor: dict[str, Any]

    @property
    def encoders(self) -> dict[str, Any]:
        """Entries of `config.encoders` in the model's order; none of an invalid config, which loading refuses."""
        return encoders_of(self.config)

    @property
    def label_space(self) -> LabelSpace:
        """What is predicted."""
        try:
            return space_of(self.config)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.where}: {CONFIG_FILE} holds an invalid setting: {one_line(error)}") from None

    def with_weights(self) -> Path:
        """The folder that holds the weights; those of a repository are fetched.

        Raises:
            FileNotFoundError: there are none, or one of their files is missing.
        """
        if local_path(self.where) is None:
            # The folder of a snapshot is named after its commit: a push in between cannot mix two versions.
            patterns = [CONFIG_FILE, PROCESSOR_FILE, "model*.safetensors", WEIGHTS_FILES[1]]
            _snapshot(self.where, self.named, self.folder.name, patterns)
        _check_weights(self.folder, self.where)
        return self.folder


def find_fusion(folder_or_repo: str | Path, revision: str | None = None) -> FusionFiles:
    """Finds a fusion and its processor, and refuses what cannot be loaded; arguments and errors as of
    [`load_fusion`]."""
    where = str(folder_or_repo)
    with reading(where, "a model of rank-aware fusion with its processor"):
        named = where if revision is None else f"{where}, revision {revision}"
        folder = local_path(where, revision=revision)
        if folder is None:
            folder = _snapshot(where, named, revision, [CONFIG_FILE, PROCESSOR_FILE])
            return FusionFiles(where, named, folder, *_settings(folder, named))
        check_regular(folder)
        settings = _settings(folder, where)
        _check_weights(folder, where)
        return FusionFiles(where, named, folder, *settings)


def check_averaged(models: Sequence[tuple[Mapping[str, Mapping[str, Any]], LabelSpace]]) -> None:
    """Refuses models that cannot be averaged: of other labels, or other encoders or these in another width or order.

    `models` are of each its entries of `config.encoders` and its label space.
    """
    first, space = models[0]
    for number, (encoders, found) in enumerate(models[1:], start=2):
        sizes, expected = ({n: e.get("feature_size") for n, e in entries.items()} for entries in (encoders, first))
        if sizes != expected:
            raise ValueError(
                f"model {number} of {len(models)} cannot be averaged with the first: "
                f"{first_difference(sizes, expected)}"
            )
        if list(encoders) != list(first):
            raise ValueError(
                f"model {number} of {len(models)} has its encoders in the order {', '.join(encoders)}, expected "
                f"{', '.join(first)} as in the first"
            )
        same_space(found, space, f"model {number} of {len(models)}", "the first")


def first_difference(found: Mapping[str, Any], expected: Mapping[str, Any]) -> str:
    """Says in which encoder two models differ, of those that do."""
    if set(found) != set(expected):
        return f"found the encoders {', '.join(sorted(found))}, expected {', '.join(sorted(expected))}"
    name = next(name for name in expected if found[name] != expected[name])
    return f"encoder {name!r}: found {found[name]}, expected {expected[name]}"


def _snapshot(repo_id: str, where: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    with download_errors(where):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=patterns))


def _settings(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    config = read_config(folder, where, FUSION)
    if not (folder / PROCESSOR_FILE).is_file():
        raise FileNotFoundError(
            f"{where}: found a model without its processor, expected {PROCESSOR_FILE} beside {CONFIG_FILE}"
        )
    processor = read_json(folder / PROCESSOR_FILE, f"{where}: {PROCESSOR_FILE}")
    if not isinstance(processor.get("encoders"), dict):
        raise ValueError(f"{where}: found no 'encoders' in {PROCESSOR_FILE}, expected the processor of this model")
    return config, processor


def _check_weights(folder: Path, where: str) -> None:
    """Checks that there are weights, and every file that their index names."""
    if not any((folder / name).is_file() for name in WEIGHTS_FILES):
        raise FileNotFoundError(f"{where}: found no weights, expected {WEIGHTS_FILES[0]}")
    index = folder / WEIGHTS_FILES[1]
    if (folder / WEIGHTS_FILES[0]).is_file() or not index.is_file():
        return
    for name in sorted(set(read_json(index, f"{where}: {index.name}").get("weight_map", {}).values())):
        if not within(folder, name, f"{where}: {index.name}").is_file():
            raise FileNotFoundError(f"{where}: found no {name}, which {index.name} names among the weights")

"""Loading data and models from a folder or the Hub."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from hf_blemo.errors import nearest_name, one_line
from hf_blemo.files import limits, read_json

CONFIG_FILE, ADAPTER_FILE = "config.json", "adapter_config.json"
FUSION = "rank_aware_fusion"
# What every program takes for data of its own kind that is drawn.
BUILT_IN_DATA = "synthetic"
# As many files of a folder are looked through for the one that was meant.
_MOST_NEIGHBOURS = 1000

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# A module beside the weights, and a class in it.
_OWN_CODE = re.compile(r"(?:[\w-]+/)*[\w-]+\.\w+")
# Files of a repository's root may name code; those of vocabularies and tensors are large and do not.
_CODE_FILES: dict[str, Any] = {
    "allow_patterns": ["*.json"],
    "ignore_patterns": ["*/*", "tokenizer.json", "vocab.json", "*.index.json"],
}


# How the name of an encoder begins that is a feature set of the package opensmile.
OPENSMILE = "opensmile:"


def is_hub_id(source: str) -> bool:
    """Whether a source is not on this machine and could be the id of a Hub repository (`owner/name`)."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def local_path(
    source: str, where: str | None = None, revision: str | None = None, names: Iterable[str] = ()
) -> Path | None:
    """Finds a source on this machine.

    Args:
        source: a path or a Hub id.
        where: what messages call it; `source` by default.
        revision: requested revision.
        names: what could have been meant beside it.

    Returns:
        Its path, or None for a Hub id.

    Raises:
        FileNotFoundError: it is neither on this machine nor a Hub id.
        ValueError: it is on this machine, where nothing has a revision.
    """
    if is_hub_id(source):
        return None
    if not Path(source).exists():
        raise FileNotFoundError(f"{where or source}: not a file, folder or Hub id (owner/name){_near(source, names)}")
    if revision is not None:
        raise ValueError(f"{where or source}: a folder has no revisions, found revision {revision!r}")
    return Path(source)


def _near(source: str, names: Iterable[str]) -> str:
    """What else was meant by a path that leads nowhere: one of some names, or what lies in its folder."""
    path = Path(source)
    known = {name: name for name in names}
    if path.parent.is_dir():
        known |= {
            entry.name: str(path.parent / entry.name) for entry in islice(path.parent.iterdir(), _MOST_NEIGHBOURS)
        }
    nearest = nearest_name(path.name, known, 0.6)
    return f"; did you mean {known[nearest]!r}?" if nearest else ""


def find_config(
    source: str, where: str, revision: str | None = None, model_type: str | None = None
) -> dict[str, Any] | None:
    """Finds a model by its config, before anything large is imported to load it.

    Args:
        source: a folder or Hub id.
        where: what messages call it.
        revision: branch, tag or commit of the Hub repository.
        model_type: it must have.

    Returns:
        The content of its config; None for a repository without one.

    Raises:
        FileNotFoundError: there is no such folder, repository or revision, or the folder has no config.
        NotADirectoryError: it is a file.
        ValueError: the config is damaged, or of another type; or a folder got a `revision`.
    """
    folder = local_path(source, where, revision)
    if folder is None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import RemoteEntryNotFoundError

        with download_errors(where):
            try:
                folder = Path(hf_hub_download(source, CONFIG_FILE, revision=revision)).parent
            except RemoteEntryNotFoundError:
                return None
    return read_config(folder, where, model_type)


def read_config(folder: Path, where: str, model_type: str | None = None) -> dict[str, Any]:
    """Reads the config in the folder of a model, empty for an adapter's; see [`find_config`]."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{where}: found a file, expected the folder of a model")
    if model_type is None and (folder / ADAPTER_FILE).is_file():
        return {}
    if not (folder / CONFIG_FILE).is_file():
        kind = "a model of rank-aware fusion" if model_type == FUSION else "a model of transformers"
        raise FileNotFoundError(f"{where}: found no {CONFIG_FILE}, expected {kind}")
    config = read_json(folder / CONFIG_FILE, f"{where}: {CONFIG_FILE}")
    if model_type is not None and config.get("model_type") != model_type:
        raise ValueError(
            f"{where}: found model_type {config.get('model_type')!r} in {CONFIG_FILE}, expected {model_type!r}"
        )
    # Transformers makes a name for each label before anything is checked.
    number = config.get("num_labels")
    if isinstance(number, int) and number > limits().max_labels:
        raise ValueError(limits().excess(f"{where}: {CONFIG_FILE}", f"num_labels {number:,}", "max_labels"))
    return config


@contextmanager
def download_errors(where: str) -> Iterator[None]:
    """Words errors of a download from the Hub in one line.

    Args:
        where: what messages call the repository.

    Raises:
        FileNotFoundError: the Hub cannot be reached, or has no such repository or revision for this user.
    """
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except Exception as error:
        reason = hub_refusal(error)
        if reason is not None:
            raise FileNotFoundError(f"{where}: {reason}") from error
        if isinstance(error, LocalEntryNotFoundError):
            reason = "the Hub cannot be reached and its cache does not hold the repository"
            raise FileNotFoundError(f"{where}: no such folder, and {reason}") from None
        # `datasets` has errors of its own for the same cases.
        if isinstance(error, (HfHubHTTPError, ConnectionError, FileNotFoundError)):
            raise FileNotFoundError(f"{where}: no such folder, and from the Hub: {one_line(error)}") from error
        raise


def hub_refusal(error: BaseException) -> str | None:
    """Why the Hub refused a request, in words that say what to do.

    Args:
        error: of a library, whichever wraps the Hub's answer.

    Returns:
        The reason; None where the Hub refused nothing that a user can change.
    """
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, HfHubHTTPError):
        cause = cause.__cause__ or cause.__context__
    # `datasets` passes on the words alone.
    if isinstance(cause, GatedRepoError) or "is a gated dataset" in str(error):
        return "the repository is gated: ask for access on its page of the Hub, and log in with `hf auth login`"
    if isinstance(cause, RevisionNotFoundError):
        return "the repository has no such revision"
    if isinstance(cause, RepositoryNotFoundError):
        return "no such folder, and no Hub repository that can be read; a private one needs `hf auth login`"
    if getattr(getattr(cause, "response", None), "status_code", None) == 401:
        hint = "log in with `hf auth login` or set HF_TOKEN"
        return f"the Hub rejected the token, which may be wrong or have expired: {hint}"
    return None


def load_dataset(path: str, where: str, **options: Any) -> Any:
    """Loads a data set of the Hub, or files, with `datasets`.

    Args:
        path: a Hub id, a folder, or the name of a reader of `datasets` with its `data_files` among the options.
        where: what messages call it.
        options: of `datasets.load_dataset`.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: its files cannot be read, or it has no such split.
    """
    import datasets

    if "data_files" not in options:
        local_path(path, where, names=[BUILT_IN_DATA])
    with download_errors(where):
        try:
            return datasets.load_dataset(path, **options)
        except (datasets.exceptions.DatasetGenerationError, datasets.data_files.EmptyDatasetError) as error:
            raise ValueError(f"{where}: cannot be read: {error.__cause__ or error}") from error
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def load_part(auto_class: Any, source: str, where: str, **options: Any) -> Any:
    """Loads a model, or a part of one such as its config or tokenizer, with transformers.

    Args:
        auto_class: of transformers.
        source: a folder or Hub id.
        where: what messages call it.
        options: of `from_pretrained`; those that are None are left out.

    Raises:
        FileNotFoundError: there is no such part, or it cannot be read.
        ValueError: the weights have other shapes than the config says.
    """
    folder = local_path(source, where)
    if folder is not None and (folder / CONFIG_FILE).is_file():
        read_config(folder, where)
    # Without a word on it, transformers asks on the terminal whether to run the code of a repository.
    options.setdefault("trust_remote_code", False)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return auto_class.from_pretrained(source, **given)
    except RuntimeError as error:
        raise ValueError(f"{where}: {auto_class.__name__} cannot be loaded: {one_line(error)}") from error
    # Each architecture and file format has errors of its own.
    except Exception as error:
        reason = hub_refusal(error) or f"{auto_class.__name__} found nothing to load: {one_line(error)}"
        raise FileNotFoundError(f"{where}: {reason}") from error


def code_references(content: Any) -> Iterator[str]:
    """The classes that a settings file has transformers load from code, at any depth.

    Args:
        content: of the file.

    Yields:
        References `module.Class`, or `owner/name--module.Class` for code of another repository; and `owner/name--` for
        the base model of an adapter, which is loaded with its code.
    """
    if isinstance(content, list):
        for entry in content:
            yield from code_references(entry)
    if not isinstance(content, dict):
        return
    for key, entry in content.items():
        if key == "auto_map":
            yield from _texts(entry)
        elif key == "base_model_name_or_path" and entry:
            yield f"{entry}--"
        else:
            yield from code_references(entry)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, (dict, list)):
        for entry in tree.values() if isinstance(tree, dict) else tree:
            yield from _texts(entry)


def refuse_code_of_others(source: str, where: str, revision: str | None = None) -> None:
    """Refuses a model whose files name code that does not lie beside them: no commit pins it, no folder holds it.

    Args:
        source: a folder or Hub id.
        where: what messages call it.
        revision: commit of the Hub repository.

    Raises:
        ValueError: a file refers to such code.
        FileNotFoundError: as in [`download_errors`].
    """
    folder = local_path(source, where)
    if folder is None:
        from huggingface_hub import snapshot_download

        with download_errors(where):
            folder = Path(snapshot_download(source, revision=revision, **_CODE_FILES))
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        # transformers reads nothing from such a file either.
        except ValueError:
            continue
        for reference in code_references(content):
            if "--" in reference or not _OWN_CODE.fullmatch(reference):
                repository = reference.removesuffix("--")
                raise ValueError(
                    f"{where}: {path.name} refers to the code {repository} of another repository, which no commit pins"
                )


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from printing a progress bar, warnings and its own report of a loading."""
    from transformers.utils import logging

    verbosity, shows_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_bars:
            logging.enable_progress_bar()

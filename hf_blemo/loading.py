"""Loading data and models from a folder or the Hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_blemo.errors import one_line


def is_hub_id(source: str) -> bool:
    """Whether a source is not on this machine and could be the id of a Hub repository (`owner/name`)."""
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not Path(source).exists()


def local_path(source: str, where: str | None = None, revision: str | None = None) -> Path | None:
    """Finds a source on this machine.

    Args:
        source: a path or a Hub id.
        where: what messages call it; `source` by default.
        revision: requested revision.

    Returns:
        Its path, or None for a Hub id.

    Raises:
        FileNotFoundError: it is neither on this machine nor a Hub id.
        ValueError: it is on this machine, where nothing has a revision.
    """
    if is_hub_id(source):
        return None
    if not Path(source).exists():
        raise FileNotFoundError(f"{where or source}: not a file, folder or Hub id (owner/name)")
    if revision is not None:
        raise ValueError(f"{where or source}: a folder has no revisions, found revision {revision!r}")
    return Path(source)


@contextmanager
def download_errors(where: str) -> Iterator[None]:
    """Words errors of a download from the Hub in one line.

    Args:
        where: what messages call the repository.

    Raises:
        FileNotFoundError: the Hub cannot be reached, or has no such repository or revision for this user.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{where}: the repository has no such revision") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(
            f"{where}: no such folder, and no Hub repository that can be read; a private one needs `hf auth login`"
        ) from None
    except LocalEntryNotFoundError:
        raise FileNotFoundError(
            f"{where}: no such folder, and the Hub cannot be reached and its cache does not hold the repository"
        ) from None
    # `datasets` has errors of its own for the same cases.
    except (HfHubHTTPError, ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{where}: no such folder, and from the Hub: {one_line(error)}") from error


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
        local_path(path, where)
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
    from safetensors import SafetensorError

    local_path(source, where)
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return auto_class.from_pretrained(source, **given)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        message = f"{where}: {auto_class.__name__} found nothing to load: {one_line(error)}"
        raise FileNotFoundError(message) from error
    except RuntimeError as error:
        raise ValueError(f"{where}: {auto_class.__name__} cannot be loaded: {one_line(error)}") from error


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

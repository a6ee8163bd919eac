"""Names that load on first use, and models of transformers that load without its bars and reports."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def lazy_names(module_name: str, definers: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes the `__getattr__` and `__dir__` (PEP 562) of a module whose public names load on first use.

    Args:
        module_name: `__name__` of the module.
        definers: public name -> full name of the module that defines it; for a submodule, its own full name.

    Returns:
        `__getattr__` and `__dir__`.
    """

    def load(name: str) -> Any:
        if name not in definers:
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        definer = import_module(definers[name])
        value = definer if definers[name] == f"{module_name}.{name}" else getattr(definer, name)
        setattr(sys.modules[module_name], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[module_name]), *definers})

    return load, names


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

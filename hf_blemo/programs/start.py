"""A program's start, most of which is the import of large libraries."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from hf_blemo._registration import ImportWatcher

# Where transformers finds out which classes each of its files has, and which packages are installed.
_IMPORTS = "transformers.utils.import_utils"


@contextmanager
def importing() -> Iterator[None]:
    """Imports large libraries in half of the time.

    What they make is no garbage, so none is looked for, then and as the process ends. Transformers reads the files of
    its models once, where it reads them twice on its own. It does without scipy, which it imports for losses of
    detectors, wherever it is installed; models that are imported later have it.
    A process that has imported torch before is left as it is.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    is_starting = True

    def set_up(name: str) -> None:
        imports: Any = sys.modules[name]
        # Transformers keeps what it found in 128 folders, and has more models than that.
        scan = imports.create_import_structure_from_path
        imports.create_import_structure_from_path = cache(getattr(scan, "__wrapped__", scan))
        has_scipy = imports.is_scipy_available
        imports.is_scipy_available = lambda: not is_starting and has_scipy()

    watcher = ImportWatcher([_IMPORTS], set_up)
    watcher.install()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)
        sys.meta_path.remove(watcher)
        is_starting = False

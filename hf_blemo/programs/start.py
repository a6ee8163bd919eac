"""A program's start, most of which is the import of large libraries."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Imports large libraries in two thirds of the time: what they make is no garbage, so none is looked for.

    All that is there afterwards stays out of later collections, too, and out of the last one as the process ends.
    A process that has imported torch before is left as it is.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.freeze)

"""The start of a program: imports without collections."""

import atexit
import gc
import sys

import pytest

from hf_blemo.programs.start import importing


def test_nothing_is_collected_while_libraries_are_imported_for_the_first_time(monkeypatch):
    registered = []
    monkeypatch.setattr(atexit, "register", registered.append)
    monkeypatch.setitem(sys.modules, "torch", sys)
    with importing():
        assert gc.isenabled()
    assert registered == []
    monkeypatch.delitem(sys.modules, "torch")
    try:
        with pytest.raises(ImportError), importing():
            assert not gc.isenabled()
            raise ImportError("a library is broken")
        assert gc.isenabled() and gc.get_freeze_count() > 1000
    finally:
        gc.unfreeze()
    assert registered == [gc.freeze]

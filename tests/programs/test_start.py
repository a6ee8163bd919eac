"""The start of a program: imports without collections, and without what is not used."""

import atexit
import gc
import importlib.util
import json
import subprocess
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


# What `hf-blemo predict` has imported by its end, and how often it has read files of a model that it does not use.
PREDICTION = """
import collections, json, sys

opened = collections.Counter()
sys.addaudithook(lambda event, values: event == "open" and opened.update([str(values[0])]))
from hf_blemo import cli

code = cli.main(["predict", "--built-in"])
reads = [count for path, count in opened.items() if "/transformers/models/albert/" in path]
from transformers.utils import is_scipy_available

print(json.dumps([code, sorted({name.partition(".")[0] for name in sys.modules}), reads, is_scipy_available()]))
"""
UNUSED = {
    *("datasets", "pandas", "pyarrow", "matplotlib", "scipy", "sklearn", "peft", "evaluate", "torchvision", "timm"),
    *("open_clip", "onnx", "onnxruntime", "onnxscript", "gradio", "tensorboard", "fsspec", "requests"),
}


def test_a_prediction_imports_no_large_library_that_it_does_not_use(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PREDICTION], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    code, modules, reads, has_scipy = json.loads(done.stdout.splitlines()[-1])
    assert code == 0 and {"torch", "transformers", "av"} <= set(modules)
    assert UNUSED & set(modules) == set()
    assert set(reads) == {1}
    # Only the start does without it.
    assert has_scipy is (importlib.util.find_spec("scipy") is not None)

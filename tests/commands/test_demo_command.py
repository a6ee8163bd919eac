"""`hf-blemo demo` in a real browser: a clip is dropped on the page, and its blend by a real model comes out."""

import os
import socket
import subprocess
import sys

import pytest
from browser import MISSING, Browser
from clip_files import write_clip
from tiny_extraction import save_encoders, save_fusion

from hf_blemo.prediction.clip_report import blend_words
from hf_blemo.prediction.clips import fusion_encoders, predict_clips
from hf_blemo.prediction.fusion import load_fusion


def test_a_clip_that_is_dropped_on_the_page_is_recognised(tmp_path):
    pytest.importorskip("gradio")
    if MISSING:
        pytest.skip(MISSING)
    model, clip = tmp_path / "fusion", tmp_path / "clip.mp4"
    save_fusion(model, save_encoders(tmp_path / "encoders"))
    write_clip(clip)
    member = load_fusion(model)
    [expected] = predict_clips([clip], [member], fusion_encoders([member]))
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    command = [sys.executable, "-m", "hf_blemo.cli", "demo", "--model", str(model), "--port", str(port)]
    environment = os.environ | {"GRADIO_TEMP_DIR": str(tmp_path / "uploads")}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as server:
        try:
            line = server.stdout.readline()
            assert f"http://127.0.0.1:{port}/" in line, server.stderr.read()
            with Browser() as browser:
                browser.open(f"http://127.0.0.1:{port}/")
                browser.wait_for("return document.querySelector('#demo-video input[type=file]')")
                browser.upload("#demo-video input[type=file]", clip)
                browser.wait_for("return !document.querySelector('#demo-video input[type=file]')")
                browser.click("#demo-video-button")
                browser.wait_for("return document.querySelector('#demo-result h2')")
                shown = browser.run("return document.querySelector('#demo-result').innerText")
        finally:
            # Ctrl+C is tested elsewhere: in the background of a shell it would not be heard here.
            server.terminate()
            server.communicate(timeout=60)
    assert blend_words(expected["blend"]) in shown
    for name, weight in expected["encoder_weights"].items():
        assert name in shown and f"{100 * weight:.1f} %" in shown

"""The demo page, served to a real browser: a clip goes in, its result comes out, and nothing else is asked for."""

import base64
import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import wave
from http.client import HTTPConnection
from pathlib import Path
from urllib.request import urlopen

import pytest
from browser import MISSING, Browser, interrupted

from hf_blemo.blemore import EMOTIONS
from hf_blemo.errors import MissingExtraError
from hf_blemo.prediction import demo_page
from hf_blemo.prediction.demo_page import launch_demo, make_demo

RESULT = {
    "clip": "hello.wav",
    "blend": [{"emotion": "hap", "salience": 70.0}, {"emotion": "sad", "salience": 30.0}],
    **dict.fromkeys(("probabilities", "presence", "salience"), dict.fromkeys(EMOTIONS, 0.1) | {"hap": 0.912}),
    "encoder_weights": {"wavlm": 0.75, "hubert": 0.25},
    "selected_encoders": ["wavlm"],
    "duration": 0.1,
    "notes": ["odd <b>clip</b>"],
}
TOLD = "document.getElementById('demo-told')"


def recognise(path):
    with open(path, "rb") as file:
        if file.read(4) != b"RIFF":
            raise ValueError(f"{path}: expected a clip,\nfound 5 bytes")
        if file.read(4) == b"late":
            # As `predict_clips` answers.
            return {"clip": "late", "error": f"{path}: ended early", "notes": [f"{os.path.realpath(path)}: odd"]}
    return {**RESULT, "thumbnails": [b"a picture"] * 2}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("clips") / "hello.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", None))
        file.writeframes(bytes(1600))
    return path


@pytest.fixture(scope="module")
def page(sound, tmp_path_factory):
    """Address of a page, served by another process: Gradio leaves sockets open, which are errors in this one."""
    pytest.importorskip("gradio")
    environment = os.environ | {
        "GRADIO_TEMP_DIR": str(tmp_path_factory.mktemp("uploads")),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1] / "helpers"), *sys.path]),
    }
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, __file__, str(sound)], env=environment, **streams) as server:
        line = server.stdout.readline()
        assert line.startswith("Serving blended emotion recognition at http://127.0.0.1:"), server.stderr.read()
        yield line.split()[5]
        _, errors = interrupted(server)
    assert server.returncode == 0 and errors == ""


@pytest.fixture(scope="module")
def browser(page):
    if MISSING:
        pytest.skip(MISSING)
    with Browser() as browser:
        browser.open(page)
        browser.wait_for("return document.querySelector('#demo-video input[type=file]')")
        yield browser
        # The page and all it did asked this server alone.
        assert [address for address in browser.requests() if not address.startswith(page)] == []


def choose(browser, kind, path):
    browser.upload(f"#demo-{kind} input[type=file]", path)
    browser.wait_for(f"return !document.querySelector('#demo-{kind} input[type=file]')")


def names_of(browser, role):
    """Names that a screen reader reads of the parts of one role."""
    nodes = browser.command("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in nodes if not node["ignored"] and node["role"]["value"] == role]
    return [node.get("name", {}).get("value", "") for node in shown]


def test_sound_is_recognised(browser, sound):
    assert "you/<model>" in browser.text() and "not what somebody feels" in browser.text()
    tabs = "[...document.querySelectorAll('button[role=tab]')]"
    browser.run(f"{tabs}.findLast(tab => tab.innerText == 'Sound only').click()")
    browser.wait_for("return document.querySelector('#demo-sound input[type=file]')")
    assert sound.name in names_of(browser, "button") and "" not in names_of(browser, "button")
    # What a screen reader says is what changes within a region that was there before.
    browser.wait_for(
        f"return {TOLD}?.getAttribute('aria-live') == 'polite' && {TOLD}.getAttribute('role') == 'status'"
    )
    browser.run(
        f"window.said = []; new MutationObserver(() => window.said.push({TOLD}.innerText.trim()))"
        f".observe({TOLD}, {{childList: true, characterData: true, subtree: true}})"
    )
    choose(browser, "sound", sound)
    for times in (1, 2):
        browser.click("#demo-sound-button")
        browser.wait_for(f"return new Set(window.said).size == {times}")
        time.sleep(1)
    said = [text.partition(", ")[2] for text in browser.run("return [...new Set(window.said)]")]
    assert said == ["hello.wav: 70 % happiness, 30 % sadness. odd <b>clip</b>"] * 2
    assert browser.run(f"return {TOLD}.getBoundingClientRect().width") == 1
    result = browser.run("return document.querySelector('#demo-result').innerText")
    for words in ("hello.wav", "70 % happiness, 30 % sadness", "91.2 %", "75.0 %"):
        assert words in result
    assert browser.run("return document.querySelectorAll('#demo-result img').length") == 2
    browser.click("#demo-json button")
    link = browser.wait_for("return document.querySelector('.demo-download')?.href")
    assert json.loads(base64.b64decode(link.partition(",")[2])) == RESULT
    assert browser.run("return document.querySelector('.demo-download').download") == "hello.json"


def test_bad_clip_is_told_in_one_line(browser, page, tmp_path):
    browser.open(page)
    browser.wait_for("return document.querySelector('#demo-video input[type=file]')")
    browser.click("#demo-video-button")
    browser.wait_for_text("There is no clip yet")
    path = tmp_path / "bad.mp4"
    path.write_bytes(b"empty")
    choose(browser, "video", path)
    browser.click("#demo-video-button")
    assert "This clip failed. bad.mp4: expected a clip, found 5 bytes\n" in browser.wait_for_text("This clip failed.")
    assert browser.run("return document.querySelector('#demo-result h2')") is None
    assert "failed: bad.mp4: expected a clip, found 5 bytes" in browser.run(f"return {TOLD}.innerText")


def test_neither_an_error_nor_a_result_shows_the_servers_folders(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    for content, words in ((b"RIFFlate", "late.wav: ended early"), (b"no clip", "late.wav: expected a clip, found")):
        (tmp_path / "late.wav").write_bytes(content)
        shown = demo_page._shown(recognise, str(tmp_path / "link" / "late.wav"))
        assert words in shown[0] and shown[2]["error"].startswith(words) and words in shown[3]
        assert str(tmp_path) not in repr(shown) + base64.b64decode(shown[1].split(",")[1].split('"')[0]).decode()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:7860", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1", 200),
        ("[::1]:7860", 200),
        ("192.168.0.7", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:7860", 421),
        ("localhost.evil.example", 421),
        ("[", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(page, host, status):
    for path in ("/", "/config", "/gradio_api/info"):
        connection = HTTPConnection(page.removeprefix("http://").rstrip("/"), timeout=30)
        connection.request("GET", path, headers={"Host": host})
        assert connection.getresponse().status == status
        connection.close()


def test_served_page_names_no_font_or_script_of_others(page):
    html, styles = (urlopen(f"{page}{path}").read().decode() for path in ("", "theme.css"))
    addresses = set(re.findall(r"https?://[^/'\"]+", styles))
    assert "system-ui" in styles and "@font-face" not in styles and addresses <= {"http://www.w3.org"}  # names of SVG
    loaded = [line for line in html.splitlines() if "<script" in line or "<link" in line]
    assert loaded and not any('src="http' in line or 'href="http' in line for line in loaded)
    assert '"analytics_enabled":false' in html.replace(" ", "")


def test_a_page_of_other_labels_says_its_own_names():
    """In another process, as Gradio is imported."""
    pytest.importorskip("gradio")
    code = (
        "from hf_blemo.prediction.demo_page import make_demo\n"
        "demo = make_demo(lambda path: {}, 'mine', names=('cat', 'dog <b>'))\n"
        "print(demo.title, *(part['props'].get('value') for part in demo.get_config_file()['components']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.startswith("Clip recognition") and "2 classes (cat, dog &lt;b&gt;)" in run.stdout
    assert "emotion" not in run.stdout.lower()


def test_taken_port_is_an_error_of_one_line():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = rf"^127\.0\.0\.1, port {port}: cannot serve there \(Address already in use"
        with pytest.raises(ValueError, match=message):
            launch_demo(None, port=port)
    with pytest.raises(ValueError, match=r"^192\.0\.2\.1: cannot serve there"):
        launch_demo(None, host="192.0.2.1")


def test_missing_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    # Importing the module takes no gradio.
    with pytest.raises(MissingExtraError, match='the demo page needs gradio: pip install "gradio>='):
        importlib.reload(demo_page).make_demo(recognise, "model")


if __name__ == "__main__":
    # Where tests run in the background of a shell, the signal is ignored unless asked for.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    launch_demo(make_demo(recognise, "you/<model>", sys.argv[1:]))

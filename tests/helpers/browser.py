"""A headless Chromium that tests drive through ChromeDriver's HTTP interface, with the standard library alone."""

import base64
import contextlib
import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
MISSING = "needs chromium and chromedriver" if CHROMIUM is None or CHROMEDRIVER is None else ""

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1100,1400",
)


class Browser:
    """One page at a time; `with Browser() as browser` starts and ends it."""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(prefix="hf_blemo_browser_", ignore_cleanup_errors=True)
        self._driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        started = (re.search(r"started successfully on port (\d+)", line) for line in self._driver.stdout)
        self._address = f"http://127.0.0.1:{next(filter(None, started))[1]}"
        try:
            options = {"binary": CHROMIUM, "args": [*_ARGUMENTS, f"--user-data-dir={self._profile.name}"]}
            capabilities = {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        except BaseException:
            self._end()
            raise
        self._address += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *_: Any) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._end()

    def open(self, address: str | Path, width: int = 1100, height: int = 1400, scheme: str = "light") -> None:
        """Shows a page, of a file or an address, in a window of this size and colour scheme."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._ask("POST", "/url", {"url": address.as_uri() if isinstance(address, Path) else address})

    def command(self, name: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def run(self, script: str) -> Any:
        """What the body of a JavaScript function returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def text(self) -> str:
        """What a reader of the page sees."""
        return self.run("return document.body.innerText")

    def wait_for(self, script: str, seconds: float = 30.0) -> Any:
        """What a script returns as soon as that is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < end, f"not true after {seconds} s: {script}, in: {self.text()}"
            time.sleep(0.05)
        return found

    def wait_for_text(self, text: str, seconds: float = 30.0) -> str:
        """The page's text as soon as this is part of it."""
        self.wait_for(f"return document.body.innerText.includes({json.dumps(text)})", seconds)
        return self.text()

    def click(self, selector: str) -> None:
        self._ask("POST", f"/element/{self._find(selector)}/click", {})

    def upload(self, selector: str, path: Path) -> None:
        """Chooses a file in an input, hidden or not."""
        self._ask("POST", f"/element/{self._find(selector)}/value", {"text": str(path)})

    def screenshot(self) -> bytes:
        """The window as a PNG file."""
        return base64.b64decode(self._ask("GET", "/screenshot"))

    def console(self) -> list[str]:
        """Errors and warnings that pages have logged since the last call."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Addresses of servers and files that pages have asked for since the last call."""
        messages = [
            json.loads(entry["message"])["message"] for entry in self._ask("POST", "/se/log", {"type": "performance"})
        ]
        asked = [entry["params"] for entry in messages if entry["method"] == "Network.requestWillBeSent"]
        return [
            url for entry in asked if not (url := entry["request"]["url"]).startswith(("data:", "blob:", "chrome:"))
        ]

    def _find(self, selector: str) -> str:
        return self._ask("POST", "/element", {"using": "css selector", "value": selector})[_ELEMENT]

    def _ask(self, method: str, path: str, content: Any = None) -> Any:
        data = None if content is None else json.dumps(content).encode()
        request = Request(self._address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except HTTPError as error:
            with error:
                raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def _end(self) -> None:
        self._driver.terminate()
        self._driver.wait()
        self._driver.stdout.close()
        self._profile.cleanup()


def interrupted(server: subprocess.Popen) -> tuple[str, str]:
    """What a server printed that is ended as by Ctrl+C; one that has not heard it at once is told again."""
    for _ in range(3):
        server.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            return server.communicate(timeout=20)
    server.kill()
    raise AssertionError(f"the server did not end: {server.communicate()}")

"""A headless Chromium, driven over its DevTools protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--mute-audio",
    "--disable-background-networking", "--disable-component-update", "--disable-extensions", "--hide-scrollbars",
    "--remote-debugging-port=0",
)  # fmt: skip
_PATIENCE_SECONDS = 60
_KEYS = {"Tab": 9, "Enter": 13, "Space": 32, "ArrowUp": 38, "ArrowDown": 40, "Home": 36, "End": 35}
_CTRL, _SHIFT = 2, 8


def find_chromium() -> str | None:
    """The path of a Chromium that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A connection to a browser, in which every tab has cookies and permissions of its own."""

    def __init__(self, address: str) -> None:
        from websockets.sync.client import connect

        self._socket = connect(address, max_size=None, compression=None)
        self._numbers = itertools.count(1)
        self._tabs: dict[str, Tab] = {}

    def send(self, method: str, session: str | None = None, **what: Any) -> dict[str, Any]:
        """What the browser answers to a command; events that come before go to their tabs."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": what}
        if session is not None:
            message["sessionId"] = session
        self._socket.send(json.dumps(message))
        while True:
            told = json.loads(self._socket.recv(timeout=_PATIENCE_SECONDS))
            if told.get("id") == number:
                if "error" in told:
                    raise RuntimeError(f"{method}: {told['error']['message']}")
                return dict(told["result"])
            if told.get("sessionId") in self._tabs:
                self._tabs[told["sessionId"]].take(told["method"], told["params"])

    @contextlib.contextmanager
    def tab(self, url: str, width: int = 1280, height: int = 900, **media: str) -> Iterator[Tab]:
        """A tab that shows a page, as wide as said; `media` are features such as `prefers_color_scheme="dark"`."""
        context = self.send("Target.createBrowserContext")["browserContextId"]
        target = self.send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self._tabs[session] = Tab(self, session)
        for domain in ("Page", "Runtime", "Log"):
            tab.send(f"{domain}.enable")
        tab.resize(width, height)
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        tab.send("Emulation.setEmulatedMedia", features=features)
        self.send(
            "Browser.grantPermissions",
            browserContextId=context,
            permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        )
        try:
            tab.open(url)
            yield tab
        finally:
            del self._tabs[session]
            self.send("Target.disposeBrowserContext", browserContextId=context)

    def close(self) -> None:
        """Ends the browser."""
        self.send("Browser.close")
        self._socket.close()


class Tab:
    """A page, and the keys that are pressed in it."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        """What the console told as errors, exceptions and refused requests among them."""
        self._loads = 0

    def send(self, method: str, **what: Any) -> dict[str, Any]:
        """See `Browser.send`."""
        return self._browser.send(method, self._session, **what)

    def take(self, event: str, told: dict[str, Any]) -> None:
        """Notes what happened."""
        if event == "Page.loadEventFired":
            self._loads += 1
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert", "warning"):
            self.errors.append(str([each.get("value", each.get("description")) for each in told["args"]]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Goes there and waits until it is loaded."""
        before = self._loads
        self.send("Page.navigate", url=url)
        self._until(lambda: self._loads > before, url)

    def resize(self, width: int, height: int) -> None:
        """The size of the window, in CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def run(self, script: str) -> Any:
        """The value of an expression, awaited."""
        options = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        found = self.send("Runtime.evaluate", expression=script, **options)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def until(self, script: str) -> Any:
        """The expression's value once it is true."""
        return self._until(lambda: self.run(script), script)

    def _until(self, holds: Any, what: str) -> Any:
        end = time.monotonic() + _PATIENCE_SECONDS
        while not (found := holds()):
            if time.monotonic() > end:
                raise TimeoutError(f"{what} did not become true; the console told {self.errors}")
            time.sleep(0.02)
            self._browser.send("Browser.getVersion")  # reads the events that came meanwhile
        return found

    def text(self, selector: str) -> str:
        """What is read in the first element that matches, as it is laid out."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """The same of every element."""
        found = f"[...document.querySelectorAll({json.dumps(selector)})]"
        return list(self.run(f"{found}.map((each) => each.innerText.trim())"))

    def press(self, key: str, *, ctrl: bool = False, shift: bool = False) -> None:
        """A key goes down and up, wherever the focus is."""
        text = {"Enter": "\r", "Space": " "}.get(key, key if len(key) == 1 else "")
        code = _KEYS.get(key) or ord(key.upper())
        modifiers = _CTRL * ctrl + _SHIFT * shift
        name = " " if key == "Space" else key
        what = {"key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        down = {**what, "text": text} if text and not ctrl else what
        self.send("Input.dispatchKeyEvent", type="keyDown", **down)
        self.send("Input.dispatchKeyEvent", type="keyUp", **what)

    def type(self, text: str) -> None:
        """Text comes in where the focus is, in place of what is selected."""
        self.send("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        """The whole page as a PNG; the window grows to its height."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        self.resize(int(self.run("innerWidth")), int(size["height"]))
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def chromium(program: str, profile: Path) -> Iterator[Browser]:
    """A browser that is started and ended, with its files in the folder `profile`."""
    flags = [*_FLAGS, f"--user-data-dir={profile}"]
    process = subprocess.Popen([program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = profile / "DevToolsActivePort"
        end = time.monotonic() + _PATIENCE_SECONDS
        while not (told.exists() and len(lines := told.read_text("ascii").split()) == 2):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{program} does not start: exit code {process.returncode}")
            time.sleep(0.05)
        port, path = lines
        browser = Browser(f"ws://127.0.0.1:{port}{path}")
        yield browser
        browser.close()
        process.wait(_PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()

"""Headless Chromium: what a page asks for and complains of, and whether it fits its window."""

from __future__ import annotations

import base64
import functools
import http.server
import itertools
import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
SWITCHES = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
]
SECONDS = 60
# Formulas are set and charts drawn after the page has loaded.
SETTLED = """(async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const count = (what) => document.querySelectorAll(what).length;
  for (let i = 0; i < 100 && count("script.tma-chart") > count(".tma-chart-box svg"); i++)
    await new Promise((done) => setTimeout(done, 100));
  await document.fonts.ready;
  if (count(".tma-chart-box")) await new Promise((done) => setTimeout(done, 300));
})()"""
ARRIVED = """(async () => {
  for (let i = 0; i < 2; i++) await new Promise((done) => requestAnimationFrame(done));
  document.getAnimations().forEach((moving) => moving.finish());
})()"""
# Of the page over its window, or of a chart over its box.
OVERFLOW = """Math.max(
  document.documentElement.scrollWidth - document.documentElement.clientWidth,
  ...[...document.querySelectorAll(".tma-chart-box svg")].map(
    (chart) => Math.ceil(chart.getBoundingClientRect().right
      - chart.closest(".tma-chart-box").getBoundingClientRect().right)))"""


@dataclass(frozen=True)
class View:
    width: int
    scheme: str


@dataclass(frozen=True)
class Seen:
    """What came of opening a page."""

    requests: list[str]
    complaints: list[str]
    overflow: int
    """Pixels by which the page is wider than its window, or a chart than its box."""
    dark: bool
    picture: bytes
    """The whole page as PNG."""


class Browser:
    """One tab; events are kept as they come in."""

    def __init__(self, address: str) -> None:
        import websocket

        # Chromium refuses a connection that names an origin it was not told of.
        self._socket = websocket.create_connection(address, timeout=SECONDS, suppress_origin=True)
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        if "method" in message:
            self.events.append(message)
        return message

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        request: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            request["sessionId"] = self._session
        self._socket.send(json.dumps(request))
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def evaluate(self, script: str) -> Any:
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, address: str, view: View) -> Seen:
        """Open a page in a window of this width and colour scheme, and wait until it is still."""
        self._resize(view.width, 900)
        scheme = {"name": "prefers-color-scheme", "value": view.scheme}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        loader = self.call("Page.navigate", url=address)["loaderId"]
        while not self._loaded(loader):
            self._receive()
        self.evaluate(SETTLED)
        page = "document.documentElement"
        return Seen(
            requests=self._told("Network.requestWillBeSent", lambda e: e["request"]["url"]),
            complaints=self._complaints(),
            overflow=self.evaluate(OVERFLOW),
            dark=self.evaluate(f"{page}.dataset.theme") == "dark",
            picture=self._picture(view.width, self.evaluate(f"{page}.scrollHeight")),
        )

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _picture(self, width: int, height: int) -> bytes:
        """Return the page in a window as high as it; what slides to a new place has arrived."""
        self._resize(width, height)
        self.evaluate(ARRIVED)
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def _loaded(self, loader: str) -> bool:
        """Return whether this page, and not the one before it, has fired its load event."""
        for place, event in enumerate(self.events):
            frame = event["params"].get("frame", {})
            if event["method"] == "Page.frameNavigated" and frame["loaderId"] == loader:
                return any(e["method"] == "Page.loadEventFired" for e in self.events[place:])
        return False

    def _told(self, method: str, what: Any) -> list[str]:
        return [str(what(e["params"])) for e in self.events if e["method"] == method]

    def _complaints(self) -> list[str]:
        thrown = self._told("Runtime.exceptionThrown", json.dumps)
        logged = self._told("Runtime.consoleAPICalled", json.dumps)
        entries = self._told("Log.entryAdded", lambda e: json.dumps(e["entry"]))
        errors = [c for c in logged if json.loads(c)["type"] in ("error", "assert")]
        return thrown + errors + [e for e in entries if json.loads(e)["level"] == "error"]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a new profile, and end it."""
    assert PROGRAM
    command = [PROGRAM, *SWITCHES, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet) as process:
        try:
            yield Browser(_address(profile, process))
        finally:
            process.terminate()


def _address(profile: Path, process: subprocess.Popen[bytes]) -> str:
    told = profile / "DevToolsActivePort"
    end = time.monotonic() + SECONDS
    while not (told.is_file() and len(told.read_text().splitlines()) == 2):
        assert process.poll() is None, "Chromium ended while it started"
        assert time.monotonic() < end, "Chromium named no port"
        time.sleep(0.05)
    port, path = told.read_text().splitlines()
    return f"ws://127.0.0.1:{port}{path}"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yields its address."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()

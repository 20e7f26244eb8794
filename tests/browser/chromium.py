"""A headless Chromium, driven over a pipe by its own protocol.

`chromium` starts one and ends it with the block, all its processes with it. A tab collects whatever
the browser complains of; waiting is the page's own: a promise that is kept when it has changed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

PROGRAM = Path("/usr/bin/chromium")
# It only decides how long a broken test takes to say so.
PATIENCE_S = 60
STOP_S = 15.0
_WORDS = [
    "--headless=new",
    "--no-first-run",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-breakpad",
    "--disable-dev-shm-usage",
    "--no-sandbox",
    "--remote-debugging-pipe",
    "about:blank",
]
# Keeps its promise as soon as the page is as it is waited for, whatever changes it.
_UNTIL = """new Promise((done) => {
  const watch = new MutationObserver(() => look());
  const look = () => {
    let fits = false;
    try { fits = %s; } catch { fits = false; }
    if (fits) { watch.disconnect(); done(true); }
  };
  const all = { subtree: true, childList: true, characterData: true, attributes: true };
  watch.observe(document, all);
  look();
})"""

Json = dict[str, Any]


class Chromium:
    """A running browser."""

    def __init__(self, to: IO[bytes], said: IO[bytes]) -> None:
        self._to = to
        self._said = said
        self._number = 0
        self._tabs: dict[str, Tab] = {}

    def tab(self) -> Tab:
        """Open a tab of its own."""
        target = self.ask("Target.createTarget", {"url": "about:blank"})["targetId"]
        given = {"targetId": target, "flatten": True}
        tab = Tab(self, self.ask("Target.attachToTarget", given)["sessionId"])
        self._tabs[tab.session] = tab
        for domain in ("Log", "Runtime", "Page"):
            tab.ask(f"{domain}.enable")
        return tab

    def ask(self, method: str, given: Json | None = None, session: str | None = None) -> Json:
        """Send a command, and give its result."""
        self._number += 1
        command: Json = {"id": self._number, "method": method, "params": given or {}}
        if session is not None:
            command["sessionId"] = session
        self._to.write(json.dumps(command).encode() + b"\0")
        while True:
            heard = self.hear()
            if heard.get("id") == self._number:
                assert "error" not in heard, heard
                return heard["result"]

    def hear(self) -> Json:
        """Wait for what it says next, and let its tab know."""
        said = bytearray()
        while (byte := self._said.read(1)) != b"\0":
            assert byte, "the browser has ended"
            said += byte
        heard: Json = json.loads(said)
        if (tab := self._tabs.get(heard.get("sessionId", ""))) is not None and "method" in heard:
            tab.hear(heard["method"], heard["params"])
        return heard


@dataclass
class Tab:
    """A page in the browser."""

    browser: Chromium
    session: str
    complaints: list[str] = field(default_factory=list[str])
    # Where it is, how many pages it was on before, and whether this one is there whole.
    url: str = ""
    pages: int = 0
    loaded: bool = False

    def ask(self, method: str, **given: Any) -> Json:
        return self.browser.ask(method, given, self.session)

    def hear(self, method: str, said: Json) -> None:
        if method == "Page.frameNavigated" and "parentId" not in said["frame"]:
            self.url, self.loaded = said["frame"]["url"], False
            self.pages += 1
        elif method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Log.entryAdded":
            self.complaints.append(f"{said['entry']['source']}: {said['entry']['text']}")
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(str(said["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(str(said["args"]))

    def go(self, address: str) -> None:
        """Open an address, and wait until it is there."""
        with self.loading():
            told = self.ask("Page.navigate", url=address)
            assert "errorText" not in told, told

    @contextmanager
    def loading(self) -> Generator[None]:
        """Wait at the end of the block for the page that it makes the browser open."""
        before = self.pages
        yield
        while self.pages == before or not self.loaded:
            self.browser.hear()

    def led_to(self, url: str) -> None:
        """Wait until the page has led on to another one."""
        while self.url != url or not self.loaded:
            self.browser.hear()

    def says(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        told = self.ask(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until the page is so, without loading it again."""
        assert self.says(_UNTIL % condition) is True


@contextmanager
def chromium(logs: Path) -> Generator[Chromium]:
    """Run a browser, with a home and a profile of its own, until the block ends."""
    # A socket of its lies there and has to have a short name; pytest's folders have long ones.
    with (
        tempfile.TemporaryDirectory(prefix="web-") as home,
        _running(Path(home), logs / "chromium.log") as browser,
    ):
        yield browser


@contextmanager
def _running(home: Path, told: Path) -> Generator[Chromium]:
    for_it, to = os.pipe()
    said, from_it = os.pipe()
    # It takes the pipe on these two numbers. `timeout` ends one that a broken test waits for.
    shell = f'exec timeout {PATIENCE_S} "$@" 3<&{for_it} 4>&{from_it}'
    words = [str(PROGRAM), f"--user-data-dir={home / 'profile'}", *_WORDS]
    with os.fdopen(to, "wb", buffering=0) as writing, os.fdopen(said, "rb") as reading:
        with told.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", shell, "chromium", *words],
                pass_fds=(for_it, from_it),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(home), "TMPDIR": str(home)},
                start_new_session=True,
            )
        os.close(for_it)
        os.close(from_it)
        try:
            browser = Chromium(writing, reading)
            yield browser
            with suppress(AssertionError, OSError):
                browser.ask("Browser.close")
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser and everything that it started."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            break
        with suppress(ChildProcessError):
            os.waitpid(-process.pid, 0)

"""A guest with a real agent, for tests, and a daemon whose model API is a script.

An image is made once and kept in `.cache` of the repository, as the one without it is. Its program
is the package that `make judges` has installed: what npm kept of it is not fetched again.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from machines import CACHE, ROOT
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.programs import PROGRAMS, Release
from microvm_orchestrator.images.store import ImageStore
from model_api import open_model_api

if TYPE_CHECKING:
    from microvm_orchestrator.images.store import Image
    from model_api import ModelApi, Turns

NAME = "claude"
# What the program takes, and what it runs well with.
MEMORY_MIB = 768
VCPUS = 2
# The model answers nobody who comes without it, and it is in the daemon's keeping alone.
KEY = "sk-ant-api03-the-key-of-the-tests-" + "0123456789" * 4

# The same for a client of the other API.
OPENAI_KEY = "sk-proj-the-key-of-the-tests-" + "0123456789" * 4

# Where each is installed by `make judges`.
_INSTALLED = {
    "claude": "@anthropic-ai/claude-code-linux-x64",
    "codex": "@openai/codex-linux-x64",
    "opencode": "opencode-linux-x64-baseline",
}
_FETCH_S = 600


async def claude_image() -> Image:
    """The embedded guest with the release that the driver is written for."""
    return await program_image(NAME)


async def program_image(name: str) -> Image:
    """The embedded guest with a program of agents, by the program's name."""
    kept = CACHE / "build" / name
    release = _release(name)
    await anyio.to_thread.run_sync(_take_from_npm, release, kept)
    spec = ImageSpec(name, programs={name: release.version})
    return await build(spec, ImageStore(CACHE / "images"), CACHE / "build")


def _release(name: str) -> Release:
    lock = json.loads((ROOT / "tests/judges/package-lock.json").read_text())
    told = lock["packages"][f"node_modules/{_INSTALLED[name]}"]
    program = PROGRAMS[name]
    version = told["version"].removesuffix(program.platform)
    return Release(program, version, told["integrity"].removeprefix("sha512-"))


def _take_from_npm(release: Release, kept: Path) -> None:
    """Have the package where the builder looks for it; from npm's own cache, if it is there."""
    place = release.place(kept)
    if place.exists():
        return
    kept.mkdir(parents=True, exist_ok=True)
    words = ["pack", release.wanted, "--ignore-scripts", "--prefer-offline"]
    npm = ROOT / ".venv/bin/npm"
    # A folder of its own: another worker may fetch the same at the same time.
    with tempfile.TemporaryDirectory(dir=kept) as fetched:
        # Node keeps what it has compiled where temporary files are.
        env = {**os.environ, "TMPDIR": fetched}
        subprocess.run(
            [npm, *words, "--silent"], cwd=fetched, env=env, check=True, timeout=_FETCH_S
        )
        [package] = Path(fetched).glob("*.tgz")
        package.replace(place)


@dataclass(frozen=True, slots=True)
class Model:
    """A scripted model API on a port of this host, in a thread of its own."""

    api: ModelApi
    portal: BlockingPortal
    # What it does, by words that occur in the prompt; may be added to at any time.
    scripts: dict[str, Turns]

    @property
    def settings(self) -> dict[str, Any]:
        """What a daemon is told so that its runs ask this one."""
        return {"anthropic_url": self.api.url, "openai_url": self.api.url}

    def gate(self) -> Gate:
        return Gate(self.portal, self.portal.call(anyio.Event), self.portal.call(anyio.Event))


@dataclass(frozen=True, slots=True)
class Gate:
    """A place in an answer at which the model stops, until it is let on."""

    portal: BlockingPortal
    _reached: anyio.Event
    _open: anyio.Event

    async def hold(self, event: int) -> None:
        """For `Turn.pause`: an answer stops behind its first words."""
        if event == 3:
            self._reached.set()
            await self._open.wait()

    def reached(self) -> None:
        """Wait until an answer stops here."""
        self.portal.call(_within, self._reached)

    def open(self) -> None:
        self.portal.call(self._open.set)


async def _within(event: anyio.Event) -> None:
    with anyio.fail_after(_FETCH_S):
        await event.wait()


@contextmanager
def scripted_model() -> Generator[Model]:
    """Answer by scripts until the block ends."""
    scripts: dict[str, Turns] = {}
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_model_api(scripts, keys=[KEY, OPENAI_KEY])) as api,
    ):
        yield Model(api, portal, scripts)

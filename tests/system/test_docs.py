"""The examples of the documentation, run as they stand on a fresh daemon.

A block after `<!-- run -->` must succeed, one after `<!-- fails N -->` must exit with N. Lines with
`$` are commands for a shell; the others are what they print, where `…` stands for anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from daemon import Daemon, running_daemon
from machines import CACHE, LONG_S, built_image
from microvm_orchestrator import places
from microvm_orchestrator.cli.client import Client

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"<!-- (?:run|fails (\d+)) -->\n+```console\n(.*?)```", re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if _BLOCK.search(page.read_text()))
# What they show is seen by other tests as well, at half a minute less.
LONG = {"repeat-a-run"}


@dataclass(frozen=True, slots=True)
class Example:
    command: str
    printed: str
    status: int


def _examples(page: Path) -> Iterator[Example]:
    for block in _BLOCK.finditer(page.read_text()):
        for part in re.split(r"^\$ ", block[2], flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            yield Example(command, printed, int(block[1] or 0))


def _agrees(printed: str, expected: str) -> bool:
    # How wide a column is depends on the names in it.
    printed, expected = (re.sub(" +", " ", text.strip()) for text in (printed, expected))
    parts = re.split("(…)", expected)
    pattern = "".join(".*" if part == "…" else re.escape(part) for part in parts)
    # A line of nothing but … may stand for no line at all.
    pattern = pattern.replace(".*\\\n", "(?:.*\n)?").replace("\\\n.*", "(?:\n.*)?")
    return re.fullmatch(pattern, printed, re.DOTALL) is not None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.long] * (page.stem in LONG))
        for page in PAGES
    ],
)
def test_the_examples_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    examples = list(_examples(page))
    assert examples
    state = tmp_path / "state"
    if any(
        re.search(" machine (start|run) | cluster (define|start) | run start ", each.command)
        for each in examples
    ):
        _share_images(state)
    with running_daemon(state) as daemon, _machines_ended(daemon):
        env = {
            **os.environ,
            "MICROVM_ORCHESTRATOR_SOCKET": str(daemon.socket),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        for example in examples:
            ran = subprocess.run(
                ["sh", "-c", example.command],
                cwd=tmp_path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONG_S,
                check=False,
            )
            assert ran.returncode == example.status, (example.command, ran.stdout)
            assert _agrees(ran.stdout, example.printed), (example.command, ran.stdout)


def _share_images(state: Path) -> None:
    """Let the daemon boot the guest that is kept for tests."""
    anyio.run(built_image)
    state.mkdir(mode=0o700)
    (state / places.IMAGES).symlink_to(CACHE / "images")


@contextmanager
def _machines_ended(daemon: Daemon) -> Generator[None]:
    """End what an example that failed has left running."""
    client = Client(daemon.socket)
    try:
        yield
    finally:
        for machine in client.call("machine_list", {"state": ["running"]}).value["items"]:
            client.call("machine_kill", {"machine": machine["machine_id"]})


def test_the_example_worker_finishes_a_graph(tmp_path: Path) -> None:
    worker = DOCS / "how-to" / "examples" / "worker.py"
    with running_daemon(tmp_path / "state") as daemon:
        command = [Path(sys.executable).with_name("microvm-orchestrator"), "task", "submit"]
        submit = [*command, "--socket", daemon.socket]
        subprocess.run([*submit, "first", "--key", "first"], check=True, stdout=subprocess.PIPE)
        subprocess.run(
            [*submit, "second", "--key", "second", "--depends-on", "first"],
            check=True,
            stdout=subprocess.PIPE,
        )
        ran = subprocess.run(
            [sys.executable, worker, daemon.socket, "w1"],
            stdout=subprocess.PIPE,
            text=True,
            timeout=30,
            check=True,
        )
    assert ran.stdout.splitlines() == ["w1: complete first", "w1: complete second", "w1: all_done"]

"""The examples of the documentation, run as they stand on a fresh daemon.

A block after `<!-- run -->` must succeed, one after `<!-- fails N -->` must exit with N. Lines with
`$` are commands for a shell; the others are what they print, where `…` stands for anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from daemon import running_daemon

DOCS = Path(__file__).parents[2] / "docs"
_BLOCK = re.compile(r"<!-- (?:run|fails (\d+)) -->\n+```console\n(.*?)```", re.DOTALL)
PAGES = sorted(page for page in DOCS.rglob("*.md") if _BLOCK.search(page.read_text()))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    examples = list(_examples(page))
    assert examples
    with running_daemon(tmp_path / "state") as daemon:
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
                timeout=30,
                check=False,
            )
            assert ran.returncode == example.status, (example.command, ran.stdout)
            assert _agrees(ran.stdout, example.printed), (example.command, ran.stdout)


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

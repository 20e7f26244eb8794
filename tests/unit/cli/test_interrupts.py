from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from answering import Asked, answering
from microvm_orchestrator.cli import failure

PATIENCE_S = 20.0
MAIN = "import sys; from microvm_orchestrator.cli.main import main; sys.exit(main())"


@contextmanager
def interrupted(path: Path, *words: str, after: int = 1) -> Generator[subprocess.Popen[str]]:
    """Run a command and interrupt it while its request number `after` is being answered."""
    asked = threading.Event()
    ended = threading.Event()
    count = 0

    def answer(_: Asked) -> tuple[int, dict[str, Any]]:
        nonlocal count
        count += 1
        if count >= after:
            asked.set()
            ended.wait(PATIENCE_S)
        return 200, {"events": [], "cursor": "c7", "more": False}

    with answering(path, answer) as here:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *words, "--socket", str(here.socket)],
            env={**os.environ, "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        with process:
            try:
                assert asked.wait(PATIENCE_S)
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE_S)
                yield process
            finally:
                ended.set()
                process.kill()


@pytest.mark.parametrize(
    ("words", "resume"),
    [
        (["task", "wait", "build", "--group", "g"], "task wait build --group g"),
        (["task", "watch", "--group", "g"], "task watch --group g"),
    ],
)
def test_an_interrupted_wait_cancels_nothing_and_says_how_to_go_on(
    tmp_path: Path, words: list[str], resume: str
) -> None:
    with interrupted(tmp_path / "socket", *words) as process:
        _, told = process.communicate()
    assert process.returncode == failure.INTERRUPTED
    assert "nothing was cancelled" in told
    assert told.rstrip().endswith(f"microvm-orchestrator {resume}")
    assert "Traceback" not in told


def test_an_interrupted_follow_says_where_it_was(tmp_path: Path) -> None:
    with interrupted(tmp_path / "socket", "event", "follow", after=2) as process:
        _, told = process.communicate()
    assert process.returncode == failure.INTERRUPTED
    assert "to go on: microvm-orchestrator event follow --after c7" in told


def test_an_interrupted_change_may_have_happened(tmp_path: Path) -> None:
    with interrupted(tmp_path / "socket", "task", "claim", "--wait-s", "60") as process:
        _, told = process.communicate()
    assert process.returncode == failure.INTERRUPTED
    assert "task_claim may have taken effect" in told
    assert "task list --state running" in told

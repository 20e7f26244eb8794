"""How people see what came of a run."""

from __future__ import annotations

import pytest

from microvm_orchestrator.cli.run_result import ended, show, used
from microvm_orchestrator.model.artifact import Artifact, LeftOut
from microvm_orchestrator.model.run import (
    ChangedFile,
    Commit,
    ConflictFile,
    MergeOutcome,
    MergeState,
    Result,
    RunRecord,
    Usage,
)
from microvm_orchestrator.model.values import moment

COMMIT = Commit(commit="c" * 40, subject="Add a thing", author="agent", at=moment(0))
HUNK = "<<<<<<< the branch, line 2\nleft\n=======\nright\n>>>>>>> the task\n"


def told(usage: Usage) -> str:
    return used(usage.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (Result(success=True, exit_code=0), "exit 0"),
        (Result(success=False, exit_code=3), "exit 3"),
        (Result(success=False, signal=9), "signal 9 (SIGKILL)"),
        (Result(success=False, signal=40), "signal 40"),
        (
            Result(success=False, signal=15, timed_out=True),
            "signal 15 (SIGTERM), as its time was up",
        ),
        (Result(success=False), ""),
    ],
)
def test_the_end_of_a_program_is_said_by_its_status_or_its_signal(
    result: Result, words: str
) -> None:
    assert ended(result.model_dump(mode="json")) == words


def test_what_was_used_is_one_line_without_what_was_not_measured() -> None:
    assert told(Usage()) == ""
    measured = Usage(wall_s=12.34, cpu_s=4.5, memory_peak_mib=181.2)
    assert told(measured) == "12.3 s, 4.5 s of processors, 181 MiB of memory at most"
    asked = {"tokens_in": 1200, "tokens_out": 30, "requests": 4, "cost_usd": 0.0123}
    assert told(measured.model_copy(update=asked)).endswith(
        ", 4 requests, tokens 1200 in 30 out, $0.0123"
    )


def test_a_run_is_shown_with_all_that_came_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord(
        run_id="t.1",
        task_id="t",
        owner="me",
        started_at=moment(0),
        usage=Usage(wall_s=2, cpu_s=1, memory_peak_mib=99),
        result=Result(
            success=False,
            exit_code=3,
            commits=[COMMIT],
            commit_count=7,
            files_changed=[
                ChangedFile(path="b.txt", status="renamed", old_path="a.txt"),
                ChangedFile(path="\x1b[2Jc", status="added"),
            ],
            file_count=2,
            rest="patch",
        ),
        merge=MergeOutcome(
            state=MergeState.CONFLICT,
            conflicts=[ConflictFile(path="src/x", kind="content", hunks=[HUNK])],
        ),
        artifacts=[Artifact(name="dist/a", size=5, digest="sha256:" + "0" * 64)],
        left_out=[LeftOut(name="dist/link", reason="it is a link")],
    )
    run = record.model_dump(mode="json")
    task = {"task_id": "t", "state": "failed", "title": "T"}
    show({"task": task, "run": run, "saying": ""})
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for wanted in (
        "used 2.0 s, 1.0 s of processors, 99 MiB of memory at most",
        "ended exit 3",
        "rest patch",
        "cccccccccccc Add a thing agent 1970-01-01T00:00:00.000Z",
        "and 6 more",
        "renamed b.txt (was a.txt)",
        "conflict in src/x: content",
        "<<<<<<< the branch, line 2",
    ):
        assert wanted in lines, lines
    assert any(line.startswith("dist/a 5 file") for line in lines)
    assert err == "left out: dist/link: it is a link\n"
    assert "\x1b" not in out


def test_a_run_that_has_not_begun_is_shown_by_its_task(capsys: pytest.CaptureFixture[str]) -> None:
    show({"task": {"task_id": "t", "state": "ready", "title": "T"}, "run": None, "saying": ""})
    assert "ready" in capsys.readouterr().out

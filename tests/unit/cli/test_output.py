from __future__ import annotations

import json
import os
import pty
import tty
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.cli import execs, failure, output
from microvm_orchestrator.cli.journal import event_line

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

HOSTILE = "a\x1b]0;pwned\x07b\x9b31mc\u202ed\r\x00"


def every_kind(kind: type[errors.OrchestratorError]) -> list[type[errors.OrchestratorError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in every_kind(child))]


# By the classes that front ends translate by; what lies below one goes with it.
EXPECTED = {
    errors.OrchestratorError: 1,
    errors.InvalidInput: 2,
    errors.TooLarge: 2,
    errors.NotFound: 3,
    errors.Conflict: 4,
    errors.Denied: 5,
    errors.Unauthenticated: 5,
    errors.Unavailable: 6,
    errors.UnknownOutcome: 7,
}


def test_every_kind_of_error_has_its_exit_status() -> None:
    assert {kind: failure.status_of(kind) for kind in EXPECTED} == EXPECTED
    for kind in every_kind(errors.OrchestratorError):
        above = next(each for each in kind.__mro__ if each in EXPECTED)
        assert failure.status_of(kind) == EXPECTED[above]
    assert set(errors.OrchestratorError.__subclasses__()) <= set(EXPECTED)
    assert failure.status_of(errors.LeaseLost) == failure.CONFLICT
    assert failure.status_of(errors.Stopping) == failure.UNAVAILABLE


def test_an_error_is_a_sentence_and_a_hint_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert failure.tell(errors.NotFound("no task x", hint="see task list")) == failure.NOT_FOUND
    assert failure.tell(errors.Conflict("taken")) == failure.CONFLICT
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        "error: no task x (not-found)\n\nhint: see task list\nerror: taken (conflict)\n"
    )


def test_nothing_that_is_shown_can_command_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    output.line(HOSTILE)
    output.table(("title",), [{"title": HOSTILE}])
    output.record({"title": HOSTILE})
    output.show({"items": [{"title": HOSTILE}], "note": HOSTILE})
    failure.say(HOSTILE)
    told = capsys.readouterr()
    shown = told.out + told.err
    assert shown.count("pwned") == 6
    assert not set(shown) & set("\x1b\x07\x9b\u202e\r\x00")


def test_json_is_written_as_it_came(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    raw = b'{"b":1,  "a":"\\u001b \xc3\xa4"}'
    output.emit(raw)
    assert capfdbinary.readouterr().out == raw + b"\n"


@contextmanager
def a_terminal() -> Generator[Callable[[], str]]:
    """Let standard output be a terminal, and tell what it was written."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    with open(theirs, "w", encoding="utf-8") as file, redirect_stdout(file):  # noqa: PTH123 - a descriptor
        yield lambda: os.read(ours, 65536).decode()
    os.close(ours)


def test_what_a_program_said_commands_no_terminal_and_is_in_lines() -> None:
    with a_terminal() as shown:
        execs.write("stdout", f"10%\r100%\r\n\x1b[1;31mred\x1b[0m {HOSTILE}", None)
        assert shown() == "10%\n100%\nred a\\x1b]0;pwned\\x07b\\x9b31mc\\x202ed\n\\x00"


def test_json_that_a_terminal_is_given_is_the_same_and_commands_it_not() -> None:
    raw = json.dumps({"title": HOSTILE}, ensure_ascii=False).encode()
    with a_terminal() as shown:
        output.emit(raw)
        told = shown()
    assert json.loads(told) == {"title": HOSTILE}
    assert not set(told) & set("\x1b\x07\x9b\u202e\r\x00")


def test_a_table_off_a_terminal_is_aligned_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    rows: list[dict[str, Any]] = [
        {"key": "a", "title": long, "worker": None, "progress": {"fraction": 0.25, "message": "m"}},
        {"key": "build", "title": "two\nlines", "worker": "w", "progress": None},
    ]
    output.table(("key", "title", "worker", "progress"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["KEY", "TITLE", "WORKER", "PROGRESS"]
    assert lines[1].split("  ")[0] == "a"
    assert long in lines[1]
    assert lines[1].endswith("25% m")
    assert lines[1].index(long) == lines[2].index("two lines") == lines[0].index("TITLE")


def test_a_record_leaves_out_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    output.record({"state": "ready", "worker": None, "labels": {}, "depends_on": [], "n": 0})
    assert capsys.readouterr().out.splitlines() == ["state  ready", "n      0"]


def test_an_answer_with_lists_is_shown_as_tables(capsys: pytest.CaptureFixture[str]) -> None:
    output.show({"group": "g", "steps": [{"key": "a", "run_s": 1.5}], "none": []})
    assert capsys.readouterr().out.splitlines() == [
        "group  g",
        "",
        "steps",
        "KEY  RUN_S",
        "a    1.5",
    ]


def test_a_page_says_aside_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    output.page({"items": [{"a": 1}], "next_cursor": "abc"}, ("a",), "nothing")
    output.page({"items": [], "next_cursor": None}, ("a",), "nothing")
    told = capsys.readouterr()
    assert told.out == "A\n1\n"
    assert told.err == "there is more: --cursor abc\nnothing\n"


def test_an_event_is_one_line_whatever_it_tells() -> None:
    event = {
        "seq": 7,
        "at": "2026-11-21T01:05:10.546Z",
        "kind": "task.done",
        "subject": "t_1",
        "group": "g",
        "actor": "uid:0",
        "body": {
            "task_id": "t_1",
            "key": "build",
            "state": "done",
            "was": "running",
            "worker": "w",
        },
    }
    line = event_line(event)
    for part in ("10.546", " 7 ", "task.done", "build", "running -> done", "worker=w", "by uid:0"):
        assert part in line
    for body in (None, [1], "text", {"a": {"b": [json.dumps]}} and {"reason": "two\nlines"}):
        assert "\n" not in event_line({**event, "body": body})

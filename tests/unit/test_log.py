"""Log lines: one road for everybody, and no secret on it."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from typing import TYPE_CHECKING

import pytest
import structlog
from mcp.server.mcpserver import MCPServer

from microvm_orchestrator import log
from microvm_orchestrator.config import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_json_object_with_what_was_bound() -> None:
    out = io.StringIO()
    log.configure("info", "auto", out)
    with structlog.contextvars.bound_contextvars(task="t-1"):
        log.get("orchestrator.x").info("task_claimed", worker="w\nx")
    log.get("orchestrator.x").info("idle")
    first, second = lines(out)
    assert list(first)[:3] == ["at", "level", "event"]
    assert str(first.pop("at")).endswith("Z")
    assert first == {
        "level": "info",
        "event": "task_claimed",
        "logger": "orchestrator.x",
        "task": "t-1",
        "worker": "w\nx",
    }
    assert "task" not in second


def test_a_line_of_a_library_takes_the_same_road() -> None:
    out = io.StringIO()
    log.configure("info", "json", out)
    logging.getLogger("library").warning("took %d s", 3, extra={"peer": "p"})
    (line,) = lines(out)
    assert (line["event"], line["logger"], line["peer"]) == ("took 3 s", "library", "p")


def test_lines_below_the_level_are_not_written() -> None:
    out = io.StringIO()
    log.configure("warning", "json", out)
    log.get("x").info("quiet")
    logging.getLogger("library").info("quiet")
    log.get("x").warning("loud")
    assert [line["event"] for line in lines(out)] == ["loud"]


def test_a_terminal_gets_lines_for_people() -> None:
    out = Terminal()
    log.configure("info", "auto", out)
    log.get("x").info("task_claimed", worker="w")
    assert "task_claimed" in out.getvalue()
    assert not out.getvalue().startswith("{")


@pytest.mark.parametrize("form", ["json", "console"])
def test_no_line_shows_a_secret_or_a_local_variable(form: log.Format) -> None:
    out = io.StringIO()
    log.configure("debug", form, out)
    token = Secret("hunter2")

    def fail() -> None:
        plain = token.get_secret_value()
        raise ValueError("wrong length" if plain else "none")

    log.get("x").info("token_made", token=token, several=[token], named={"token": token})
    logging.getLogger("library").info("token %s", token)
    try:
        fail()
    except ValueError:
        log.get("x").exception("token_refused")
        logging.getLogger("library").exception("refused")
    assert out.getvalue().count("ValueError: wrong length") == 2
    assert "hunter2" not in out.getvalue()


def test_warnings_become_lines() -> None:
    out = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        log.configure("info", "json", out)
        warnings.warn("old name", DeprecationWarning, stacklevel=1)
    assert "old name" in str(lines(out)[0]["event"])


def test_no_library_puts_its_own_handler_on_the_root() -> None:
    log.configure("info", "json", io.StringIO())
    (ours,) = logging.getLogger().handlers
    MCPServer("any")
    logging.basicConfig(stream=sys.stdout)
    assert logging.getLogger().handlers == [ours]

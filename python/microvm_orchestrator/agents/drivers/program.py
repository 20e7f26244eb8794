"""Programs that are no agents: a script that an interpreter runs, and a command as it is given.

So the lifecycle of a run treats all alike. Such a program succeeds by its exit status, and its
summary is the last line that it wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.agents.drivers.base import (
    Ended,
    Event,
    Invocation,
    encode,
    how_it_ended,
    own_file,
)
from microvm_orchestrator.agents.drivers.stream import Lines, one_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Of a line, as much as is looked at for the summary.
_MAX_LINE_BYTES = 4096
_MAX_SUMMARY = 1000


def prepare_command(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> Invocation:
    """Raises: InvalidInput, TooLarge."""
    if not argv or not argv[0]:
        raise errors.InvalidInput("a command has at least its program's name")
    return Invocation(tuple(argv), env or {}, stdin=stdin)


def prepare_script(
    text: str,
    home: str,
    *,
    interpreter: Sequence[str] = ("/bin/sh",),
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
) -> Invocation:
    """Run a text by an interpreter, which finds it in a file behind its own words.

    Raises: InvalidInput, TooLarge.
    """
    if not interpreter or not interpreter[0]:
        raise errors.InvalidInput("a script has an interpreter")
    script = own_file(home, "script", encode("the script", text), 0o700)
    return Invocation((*interpreter, script.path), env or {}, (script,), stdin)


class ProgramReader:
    """Keeps the last line that says something."""

    def __init__(self) -> None:
        self._lines = Lines(_MAX_LINE_BYTES)
        self._last = b""

    def feed(self, data: bytes) -> list[Event]:
        for line, _ in self._lines.feed(data):
            self._last = line if line.strip() else self._last
        return []

    def finish(
        self, exit_code: int | None, signal: int | None = None, stderr: bytes = b""
    ) -> Ended:
        rest = self._lines.rest()
        last = rest[0] if rest and rest[0].strip() else self._last
        error = how_it_ended(exit_code, signal)
        if error is not None:
            # Why a program fails is the last it says, and it says so on standard error.
            said = [line for line in stderr.splitlines() if line.strip()]
            last = said[-1] if said else last
        summary = one_line(last.decode(errors="replace"), _MAX_SUMMARY)
        return Ended(success=error is None, summary=summary, error=error)

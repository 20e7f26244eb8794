"""The history of a test: who asked for what, when, and what became of it.

An operation has two events, as in Jepsen: it is invoked, and later it is `ok`, has `fail`ed, or
nobody knows (`info`). Events are appended to a file as they happen, one line of JSON each, so a
test that dies leaves what it has done. `Operation` is both events as one, for the checkers. Pure
but for `Recorder`, which writes small lines to a file of its own. Above stand campaigns; beside it
the checkers and the two ways to write a history for others.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field, JsonValue, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from microvm_orchestrator import errors
from microvm_orchestrator.model.values import Json, Line

MAX_EVENTS = 1_000_000
_MAX_LINE = 1 << 21
_NAME = r"^[A-Za-z][A-Za-z0-9._?!*<>=+-]{0,99}$"


class EventType(StrEnum):
    """What happened to an operation."""

    INVOKE = "invoke"
    OK = "ok"
    FAIL = "fail"
    # Nobody knows whether it took place: it may yet.
    INFO = "info"


Process = Annotated[int, Field(strict=True, ge=0, lt=2**53)] | Annotated[str, Field(pattern=_NAME)]


@checked(frozen=True, slots=True, config={"extra": "forbid"})
class HistoryEvent:
    """An operation begins or ends."""

    # A client; each has one operation at a time. `nemesis` is who breaks things.
    process: Process
    type: EventType
    f: Annotated[str, Field(pattern=_NAME)]
    value: Json
    # Nanoseconds since the history began.
    time: Annotated[int, Field(strict=True, ge=0, lt=2**63)]
    # Where many registers are tested at once: which.
    key: Json = None
    error: Line | None = None


_EVENT = TypeAdapter(HistoryEvent)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a process asked for, and what became of it."""

    process: int | str
    f: str
    # What it was given, and what it gave.
    value: JsonValue
    result: JsonValue
    outcome: EventType
    start: int
    # None while nobody knows whether it has ended.
    end: int | None
    key: JsonValue = None


class Recorder:
    """Writes events down as they happen."""

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Begin a history. Raises: AlreadyExists where there is a file."""
        self._clock = clock
        self._began = clock()
        self._running: dict[int | str, tuple[str, JsonValue]] = {}
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        except FileExistsError:
            raise errors.AlreadyExists(f"there is a history at {path}") from None

    def invoke(
        self, process: int | str, f: str, value: JsonValue = None, *, key: JsonValue = None
    ) -> None:
        """A process begins an operation.

        Raises: StateForbids while it is at another; InvalidInput.
        """
        if process in self._running:
            raise errors.StateForbids(
                f"process {process} is at {self._running[process][0]} already",
                hint="a process whose operation is lost goes on as another one",
            )
        self._write(process, EventType.INVOKE, f, value, key, None)
        self._running[process] = f, key

    def ok(self, process: int | str, value: JsonValue = None) -> None:
        """It took place, and gave this. Raises: StateForbids."""
        self._complete(process, EventType.OK, value, None)

    def fail(self, process: int | str, value: JsonValue = None, error: str | None = None) -> None:
        """It has not taken place and never will. Raises: StateForbids."""
        self._complete(process, EventType.FAIL, value, error)

    def info(self, process: int | str, value: JsonValue = None, error: str | None = None) -> None:
        """It may have taken place, or may yet. Raises: StateForbids."""
        self._complete(process, EventType.INFO, value, error)

    def close(self) -> None:
        os.close(self._fd)

    def _complete(
        self, process: int | str, how: EventType, value: JsonValue, error: str | None
    ) -> None:
        if process not in self._running:
            raise errors.StateForbids(f"process {process} is at nothing")
        f, key = self._running[process]
        self._write(process, how, f, value, key, error)
        del self._running[process]

    def _write(
        self,
        process: int | str,
        how: EventType,
        f: str,
        value: JsonValue,
        key: JsonValue,
        error: str | None,
    ) -> None:
        now = self._clock() - self._began
        try:
            event = HistoryEvent(
                process=process, type=how, f=f, value=value, time=now, key=key, error=error
            )
        except ValidationError as wrong:
            raise errors.InvalidInput(f"{f} of process {process}: {_why(wrong)}") from None
        data = to_json(event).encode() + b"\n"
        if os.write(self._fd, data) != len(data):
            raise errors.StoreFull("the disk has no room for the history")


@contextmanager
def recorded(path: Path, clock: Callable[[], int] = time.monotonic_ns) -> Generator[Recorder]:
    """Record a history until the block ends; it stays."""
    recorder = Recorder(path, clock)
    try:
        yield recorder
    finally:
        recorder.close()


def to_json(event: HistoryEvent) -> str:
    """Write an event as a line of JSON, with what it has."""
    fields = _EVENT.dump_python(event, mode="json")
    kept = {name: value for name, value in fields.items() if name == "value" or value is not None}
    return json.dumps(kept, separators=(",", ":"))


def read(path: Path) -> list[HistoryEvent]:
    """Read a history. A last line that was cut off is left out: whoever wrote it died.

    Raises: NotFound; InvalidInput with the line that is none; TooLarge.
    """
    events: list[HistoryEvent] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 1):
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    break
                if number > MAX_EVENTS:
                    raise errors.TooLarge(f"{path} has more than {MAX_EVENTS} events")
                events.append(event_of(line, f"{path} line {number}"))
    except FileNotFoundError:
        raise errors.NotFound(f"there is no history at {path}") from None
    return events


def event_of(line: bytes | str, where: str) -> HistoryEvent:
    """Read an event. Raises: InvalidInput."""
    try:
        return _EVENT.validate_json(line)
    except ValidationError as error:
        raise errors.InvalidInput(f"{where} is no event: {_why(error)}") from None


def operations(events: Iterable[HistoryEvent]) -> list[Operation]:
    """Put the two events of each operation together, in the order of their beginnings.

    What has not ended may yet: it counts as `info`. Raises: InvalidInput for what was never begun,
        or begun while its process was at something else.
    """
    begun: dict[int | str, int] = {}
    found: list[Operation] = []
    for index, event in enumerate(events):
        at = begun.get(event.process)
        if event.type is EventType.INVOKE:
            if at is not None:
                raise errors.InvalidInput(
                    f"event {index}: process {event.process} begins {event.f} while it is at "
                    f"{found[at].f}"
                )
            begun[event.process] = len(found)
            found.append(_begun(event))
        elif at is not None:
            if found[at].f != event.f:
                raise errors.InvalidInput(
                    f"event {index}: process {event.process} ends {event.f}, but is at "
                    f"{found[at].f}"
                )
            found[at] = _ended(found[at], event)
            del begun[event.process]
        elif event.type is not EventType.INFO:  # whoever breaks things may tell of one event only
            raise errors.InvalidInput(
                f"event {index}: process {event.process} ends {event.f}, which it never began"
            )
    return found


def _begun(event: HistoryEvent) -> Operation:
    return Operation(
        process=event.process,
        f=event.f,
        value=event.value,
        result=None,
        outcome=EventType.INFO,
        start=event.time,
        end=None,
        key=event.key,
    )


def _ended(operation: Operation, event: HistoryEvent) -> Operation:
    known = event.type is not EventType.INFO
    return Operation(
        process=operation.process,
        f=operation.f,
        value=operation.value,
        result=event.value,
        outcome=event.type,
        start=operation.start,
        end=event.time if known else None,
        key=operation.key,
    )


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"

"""Lines of JSON from a guest, one record each: bounded in length, depth and count.

`Lines` cuts a stream into lines, `RecordReader` makes records of them and asks its driver what they
mean. A line that is none is counted and told, cut short. Nothing here keeps more than one line.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, WrapValidator

from microvm_orchestrator.agents.drivers.base import (
    Cause,
    Ended,
    Event,
    Failure,
    Unread,
    how_it_ended,
)
from microvm_orchestrator.model.values import check_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import ValidatorFunctionWrapHandler

# The longest answer of a model is a quarter of this; what tools read may be longer, and is let go.
MAX_LINE_BYTES = 2 << 20
# Lists and objects of one line. Each takes a hundred times its two characters once it is read.
MAX_CONTAINERS = 100_000
# Of one event, and of a summary.
MAX_TEXT = 65_536
MAX_BRIEF = 200
MAX_MESSAGE = 2_000
_ELLIPSIS = "…"

# What colours a terminal, as programs do with what they complain of.
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}m")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# Every escape of a line, so that a backslash is taken for one only where it is one.
_ESCAPE = re.compile(
    rb"\\(?:(u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)

_T = TypeVar("_T")
_R = TypeVar("_R", bound=BaseModel)


def _or_none(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    try:
        return handler(value)
    except ValidationError:
        return None


# A field of a record: None where it is missing or not what we know it as. The programs change from
# release to release, and one field that did shall not cost us the record.
Maybe: TypeAlias = Annotated[_T | None, WrapValidator(_or_none)]
Count: TypeAlias = Annotated[int, Field(strict=True, ge=0, lt=2**53)]
Dollars: TypeAlias = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class Record(BaseModel):
    """A part of what a program says; what we have no use for is not even built."""

    model_config = ConfigDict(extra="ignore", frozen=True)


def tidy(text: str, limit: int = MAX_TEXT) -> str:
    """Take out what would act on a terminal, or could not be stored, and cut it short."""
    # Four times: what is cut off here cannot come into the result.
    text = _COLOUR.sub("", text[: 4 * limit].replace("\r\n", "\n"))
    text = _CONTROL.sub("\ufffd", text)
    return text if len(text) <= limit else text[: limit - 1] + _ELLIPSIS


def one_line(text: str, limit: int = MAX_BRIEF) -> str:
    return tidy(" ".join(text[: 4 * limit].split()), limit)


def brief(given: dict[str, JsonValue] | None) -> str:
    """Say in a line what a tool is used for."""
    if not given:
        return ""
    for key in ("command", "file_path", "path", "pattern", "url", "query", "description", "prompt"):
        found = given.get(key)
        if isinstance(found, str):
            return one_line(found)
        if isinstance(found, list) and found:
            return one_line(" ".join(str(word) for word in found[:20]))
    return one_line(", ".join(f"{key}={value}" for key, value in list(given.items())[:5]))


def safe_json(value: JsonValue) -> JsonValue:
    """Give back what every reader of JSON can take, else None."""
    try:
        return check_json(value)
    except ValueError:
        return None


class Lines:
    """Cuts a stream into lines. Keeps at most one line of `limit` bytes."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._begun = bytearray()
        # The line that is coming is longer than it may be; its beginning is kept.
        self._too_long = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Give each line that is complete, and whether it was cut because it is too long."""
        at = 0
        while (end := data.find(b"\n", at)) >= 0:
            self._add(data[at:end])
            at = end + 1
            yield self._take()
        self._add(data[at:])

    def rest(self) -> tuple[bytes, bool] | None:
        """Give the last line if it had no end."""
        return self._take() if self._begun else None

    def _add(self, piece: bytes) -> None:
        left = self._limit - len(self._begun)
        self._begun += piece[:left]
        self._too_long |= len(piece) > left

    def _take(self) -> tuple[bytes, bool]:
        taken = bytes(self._begun), self._too_long
        self._begun = bytearray()
        self._too_long = False
        return taken


class RecordReader(ABC, Generic[_R]):
    """Reads records of one form; a driver says what each means, and how it went in the end."""

    def __init__(self, form: type[_R]) -> None:
        self._form = form
        self._lines = Lines()
        self._unread = 0
        # The last line that was no record: a program that dies says why in plain words.
        self._stray = ""

    def feed(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for line, too_long in self._lines.feed(data):
            events += self._read(line, too_long=too_long)
        return events

    def finish(
        self, exit_code: int | None, signal: int | None = None, stderr: bytes = b""
    ) -> Ended:
        last = self._lines.rest()
        if last is not None:
            # Nobody waits for its events any more, but it may be the result.
            line, too_long = last
            list(self._read(line, too_long=too_long))
        said = tidy(stderr[-MAX_MESSAGE:].decode(errors="replace").strip(), MAX_MESSAGE)
        return self.conclude(how_it_ended(exit_code, signal), said or self._stray)

    @property
    def unread(self) -> int:
        return self._unread

    @abstractmethod
    def take(self, record: _R) -> Iterable[Event]:
        """Say what a record means."""

    @abstractmethod
    def conclude(self, exit_failure: Failure | None, complaint: str) -> Ended:
        """Say how it went, when all is read and the program has ended."""

    def no_result(self, exit_failure: Failure | None, complaint: str) -> Failure:
        """Explain an end without a result."""
        how = exit_failure.message if exit_failure else "ended with status 0"
        told = f": {complaint}" if complaint else ""
        killed = exit_failure is not None and exit_failure.code is Cause.SIGNAL
        code = Cause.SIGNAL if killed else Cause.NO_RESULT
        return Failure(code, tidy(f"it {how} without a result{told}", MAX_MESSAGE))

    def _read(self, line: bytes, *, too_long: bool) -> Iterable[Event]:
        if not line.strip():
            return ()
        record = None if too_long else self._parse(line)
        if record is not None:
            return self.take(record)
        self._unread += 1
        self._stray = one_line(line[: 4 * MAX_MESSAGE].decode(errors="replace"), MAX_MESSAGE)
        return (Unread(self._stray),)

    def _parse(self, line: bytes) -> _R | None:
        if line.count(b"[") + line.count(b"{") > MAX_CONTAINERS:
            return None
        for attempt in (line, None):
            # Not before it is needed: nearly every line is in order.
            text = mend(line) if attempt is None else attempt
            try:
                return self._form.model_validate_json(text)
            except ValidationError:
                continue
        return None


def mend(line: bytes) -> bytes:
    """Replace what is no text: bytes that are not UTF-8, and halves of surrogate pairs.

    Programs that cut a text short in the middle of a character write such.
    """
    whole = line.decode(errors="replace").encode()
    return _ESCAPE.sub(lambda found: rb"\ufffd" if found[2] else found[0], whole)

"""Value types that every model is made of, each with its limits."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    JsonValue,
    PlainSerializer,
    StrictBool,
)

from microvm_orchestrator.model.names import NAME_PATTERN

# Enough for a long prompt with files quoted in it; larger things are artifacts.
MAX_TEXT = 262_144
# What a task may take and give as JSON, once written out.
MAX_JSON_BYTES = 1_048_576
# Deeper than people write by hand, far below what a recursive reader dies of.
MAX_JSON_DEPTH = 64
MAX_DEPENDENCIES = 10_000
MAX_GRAPH = 10_000
MAX_YEAR = 9998

_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")


# Both sets: a terminal takes U+009B for the beginning of a command as it does escape and bracket.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Python's own reader of JSON lets halves of pairs through; they can neither be stored nor sent.
_HALF = re.compile(r"[\ud800-\udfff]")


def _no_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("has a control character")
    return _whole(text)


def _whole(text: str) -> str:
    if not text.isascii() and _HALF.search(text):
        raise ValueError("has half of a surrogate pair")
    return text


def check_json(value: JsonValue) -> JsonValue:
    """Give the value back if every reader of JSON can take it.

    Raises: ValueError.
    """
    layer = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        inner: list[JsonValue] = []
        nested = False
        for item in layer:
            match item:
                case list():
                    inner += item
                    nested = True
                case dict():
                    inner += item
                    inner += item.values()
                    nested = True
                case str():
                    _whole(item)
                case int() | float():
                    _check_number(item)
                case _:
                    pass
        if not nested:
            return value
        layer = inner
    raise ValueError(f"is nested deeper than {MAX_JSON_DEPTH} levels")


def _check_number(number: float) -> None:
    # NaN is no JSON, and the database that searches what is kept refuses the whole of it; most
    # readers know no greater number than a double, and comparing with one fails.
    try:
        if math.isfinite(number):
            return
    except OverflowError:
        pass
    raise ValueError("holds a number that JSON has not: NaN, or beyond 1.8e308")


def _written_out(moment: object) -> object:
    # A bare number would be taken for seconds since 1970, and is more likely meant as from now on.
    if isinstance(moment, datetime) or (isinstance(moment, str) and _DATE.match(moment)):
        return moment
    raise ValueError("is written as in 2026-01-31T12:00:00Z")


def _utc(moment: datetime) -> datetime:
    try:
        utc = moment.astimezone(UTC)
    except OverflowError:
        utc = None
    # A second more, as rounding may bring it, would be in a year that cannot be written.
    if utc is None or utc.year > MAX_YEAR:
        raise ValueError(f"lies outside of the years 1 to {MAX_YEAR}")
    return utc


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# As the store keeps it.
Int = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = StrictBool
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Line = Annotated[str, Field(max_length=1000)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_no_control)]
Json = Annotated[JsonValue, AfterValidator(check_json)]
Moment = Annotated[
    AwareDatetime,
    BeforeValidator(_written_out),
    AfterValidator(_utc),
    PlainSerializer(rfc3339, return_type=str, when_used="json"),
]
Seconds = Annotated[float, Field(strict=True, ge=0, le=31_536_000, allow_inf_nan=False)]
Capability = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/+=-]{0,127}$")]
LabelKey = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, Field(max_length=200), AfterValidator(_no_control)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]

# Named levels are what people write; the number is what is stored and sorted by.
PRIORITIES = {"low": -100, "normal": 0, "high": 100, "urgent": 1000}
Priority = (
    Annotated[int, Field(strict=True, ge=-1000, le=1000)]
    | Literal["low", "normal", "high", "urgent"]
)


def priority_number(priority: int | str) -> int:
    return PRIORITIES[priority] if isinstance(priority, str) else priority


def moment(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)

"""Value types that every model is made of, each with its limits."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, Field, JsonValue, PlainSerializer, StrictBool

from microvm_orchestrator.model.names import NAME_PATTERN

# Enough for a long prompt with files quoted in it; larger things are artifacts.
MAX_TEXT = 262_144
# What a task may take and give as JSON, once written out.
MAX_JSON_BYTES = 1_048_576
# Deeper than people write by hand, far below what a recursive reader dies of.
MAX_JSON_DEPTH = 64
MAX_DEPENDENCIES = 10_000
MAX_GRAPH = 10_000


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def _no_control(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError("has a control character")
    return text


def json_depth(value: JsonValue) -> int:
    """How many lists and objects lie inside each other in `value`."""
    depth, layer = 0, [value]
    while True:
        inner: list[JsonValue] = []
        nested = False
        for item in layer:
            if isinstance(item, list):
                inner += item
                nested = True
            elif isinstance(item, dict):
                inner += item.values()
                nested = True
        if not nested:
            return depth
        depth += 1
        if depth > MAX_JSON_DEPTH:
            return depth
        layer = inner


def _shallow(value: JsonValue) -> JsonValue:
    if json_depth(value) > MAX_JSON_DEPTH:
        raise ValueError(f"is nested deeper than {MAX_JSON_DEPTH} levels")
    return value


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)


def rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Int = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Flag = StrictBool
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Line = Annotated[str, Field(max_length=1000)]
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Key = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_no_control)]
Json = Annotated[JsonValue, AfterValidator(_shallow)]
Moment = Annotated[
    AwareDatetime, AfterValidator(_utc), PlainSerializer(rfc3339, return_type=str, when_used="json")
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

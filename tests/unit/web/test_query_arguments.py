from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Flag, Int, Json, Labels, Number, Priority
from microvm_orchestrator.service.calls import Answer, Caller, Request, declare
from microvm_orchestrator.web.arguments import Layout


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Look(Request):
    thing: str
    limit: Annotated[Int, Field(le=100)] = 10
    share: Number | None = None
    deep: Flag = False
    colour: Colour | None = None
    colours: list[Colour] = Field(default=[])
    numbers: Annotated[list[Int], Field(max_length=3)] = Field(default=[])
    labels: Labels = Field(default={})
    either: dict[str, list[str]] = Field(default={})
    priority: Priority = 0
    need: Literal["all", "any"] | Annotated[int, Field(strict=True)] = "all"
    anything: Json = None


class Seen(Answer):
    pass


async def _look(service: object, caller: Caller, request: Look) -> Seen:
    """Look at a thing."""
    del service, caller, request
    return Seen()


LAYOUT = Layout(declare("thing_look", "GET /v1/things/{thing}", role=Role.VIEWER)(_look))


@pytest.mark.parametrize(
    ("pairs", "arguments"),
    [
        ([("limit", "7")], {"limit": 7}),
        ([("limit", "-7")], {"limit": -7}),
        ([("share", "0.5")], {"share": 0.5}),
        ([("deep", "true")], {"deep": True}),
        ([("colour", "red")], {"colour": "red"}),
        ([("colours", "red")], {"colours": ["red"]}),
        ([("colours", "red"), ("colours", "blue")], {"colours": ["red", "blue"]}),
        ([("numbers", "1"), ("numbers", "2")], {"numbers": [1, 2]}),
        (
            [("labels[team]", "red"), ("labels[tier]", "1")],
            {"labels": {"team": "red", "tier": "1"}},
        ),
        ([("either[a]", "1"), ("either[a]", "2")], {"either": {"a": ["1", "2"]}}),
        ([("priority", "urgent")], {"priority": "urgent"}),
        ([("priority", "5")], {"priority": 5}),
        ([("need", "2")], {"need": 2}),
        ([("need", "any")], {"need": "any"}),
        ([("unknown", "x")], {"unknown": "x"}),
    ],
)
def test_text_becomes_what_the_field_is(
    pairs: list[tuple[str, str]], arguments: dict[str, object]
) -> None:
    assert LAYOUT.from_query(pairs) == arguments


@pytest.mark.parametrize(
    "pairs",
    [
        [("limit", "seven")],
        [("limit", "1_000")],
        [("limit", "٣")],
        [("limit", "1" * 5000)],
        [("share", "1e999")],
        [("share", "nan")],
        [("deep", "yes")],
        [("numbers", "1"), ("numbers", "x")],
    ],
)
def test_text_that_is_no_such_value_stays_text_and_the_model_refuses_it(
    pairs: list[tuple[str, str]],
) -> None:
    found = LAYOUT.from_query(pairs)
    with pytest.raises(ValueError, match=pairs[0][0]):
        Look.model_validate({"thing": "x", **found})


@pytest.mark.parametrize(
    "pairs",
    [
        [("limit", "1"), ("limit", "2")],
        [("labels[a]", "1"), ("labels[a]", "2")],
        [("labels", "a=1")],
        [("labels[a]", "1"), ("labels", "a=1")],
        [("limit[a]", "1")],
        [("colours[0]", "red")],
        [("unknown[a]", "1")],
    ],
)
def test_a_query_that_says_two_things_or_none_is_refused(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(errors.InvalidInput):
        LAYOUT.from_query(pairs)


def test_a_path_gives_its_parameters() -> None:
    assert LAYOUT.in_path == ("thing",)
    assert LAYOUT.from_path({"thing": "7"}) == {"thing": "7"}

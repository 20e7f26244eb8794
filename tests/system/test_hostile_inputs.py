"""Every row of the table over every door, against one daemon that must not mind any of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from system import doors
from system.hostile import PARTS, UNSAYABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from system.hostile import Row
    from system.world import World

# An idle daemon with MCP loaded has some 100 MiB; on top come a few messages of 10 MB.
MAY_HOLD_MIB = 220
MAY_GROW_MIB = 12

every_part = pytest.mark.parametrize("part", PARTS)


def _said(
    world: World,
    part: str,
    say: Callable[[Row], doors.Reply],
    code: Callable[[Row], str | None],
    every: int = 1,
) -> dict[str, str]:
    """Say all of a part, or some, and give what was answered otherwise than the table says."""
    wrong: dict[str, str] = {}
    for row in PARTS[part][::every]:
        if (expected := code(row)) is not None:
            reply = say(row)
            if reply.code != expected:
                wrong[row.name] = f"{reply.code}, not {expected}: {str(reply.value)[:400]}"
    assert world.daemon.alive
    return wrong


@every_part
def test_a_stream_answers_each_with_its_code(world: World, part: str) -> None:
    def say(row: Row) -> doors.Reply:
        return doors.stream(world.place, world.tokens[row.by], row.call, world.filled(row.given))

    assert _said(world, part, say, lambda row: row.mcp or row.code) == {}


@every_part
def test_mcp_over_http_answers_each_with_its_code(world: World, part: str) -> None:
    def say(row: Row) -> doors.Reply:
        return doors.streamable(
            world.place, world.tokens[row.by], row.call, world.filled(row.given)
        )

    assert _said(world, part, say, lambda row: row.http or row.mcp or row.code) == {}


@every_part
def test_rest_answers_each_with_its_code(world: World, part: str) -> None:
    def say(row: Row) -> doors.Reply:
        return doors.rest(world.place, world.tokens[row.by], row.call, world.filled(row.given))

    def code(row: Row) -> str | None:
        return None if row.rest == UNSAYABLE else row.rest or row.code

    assert _said(world, part, say, code) == {}


@every_part
def test_the_command_line_answers_each_with_its_code(
    world: World, part: str, *, whole: bool
) -> None:
    def say(row: Row) -> doors.Reply:
        assert row.words is not None
        return doors.command(
            world.place, world.tokens[row.by], world.words(row.words), world.filled(row.stdin)
        )

    def code(row: Row) -> str | None:
        return None if row.words is None else row.cli or row.code

    # A process each, which takes its time.
    assert _said(world, part, say, code, every=1 if whole else 3) == {}


# Strange, and nobody's business but the one's who says it.
ODD: dict[str, object] = {
    "__proto__": {"__proto__": {"polluted": True}, "constructor": {"prototype": 1}},
    "toString": None,
    "hasOwnProperty": False,
    "emoji \U0001f9d1\u200d\U0001f680": "\U0001f4a9",
    "right to left \u202e": "\u0645\u0631\u062d\u0628\u0627\u061c",
    "combining e\u0301": "Z\u0351\u036b\u0343",
    "zero width \u200b\ufeff": "\u2028\u2029",
    "control \x00\x01\x1b[2J\x7f\x9b": "\r\n\t\x00",
    "not characters \ufffe": "\uffff\U0010ffff",
    "'; DROP TABLE task; --": '"); alert(1); //',
    "{{7*7}}": "${jndi:ldap://x}",
    "../../etc/passwd": "%2e%2e%2f",
    "numbers": [0, -0.0, 1e308, 5e-324, 2**53 + 1, -(2**63), 2**64, 10**300],
    "": [[], {}, [[[]]]],
}


@pytest.mark.parametrize("door", [doors.stream, doors.streamable, doors.rest])
def test_what_is_only_odd_comes_back_as_it_was(
    world: World, door: Callable[[doors.Place, str | None, str, bytes], doors.Reply]
) -> None:
    said = {"title": "\x1b[31m\u202e\U0001f4a9", "key": "__proto__", "input": ODD}
    made = door(world.place, None, "task_submit", json.dumps(said).encode())
    assert made.code == "ok", made
    told = door(world.place, None, "task_get", b'{"task_id": "__proto__"}').value
    assert {name: told[name] for name in said} == said
    found = world.every("task_list", text="\U0001f4a9")
    assert [task["task_id"] for task in found] == [made.value["task_id"]]
    gone = door(world.place, None, "task_delete", b'{"task_id": "__proto__"}')
    assert gone.value == {"task_ids": [made.value["task_id"]]}


def test_the_command_line_shows_what_is_odd_without_obeying_it(world: World) -> None:
    said = {"title": "\x1b[31m\x9b2J\u202eevil", "key": "constructor", "input": ODD}
    tasks = json.dumps({"tasks": [said]}).encode()
    assert doors.command(world.place, None, ["graph", "submit", "-"], tasks).code == "ok"
    told = doors.command(world.place, None, ["task", "get", "constructor"]).value
    assert {name: told[name] for name in said} == said
    shown = doors.shown(world.place, ["task", "get", "constructor"])
    assert "evil" in shown
    assert not {"\x1b", "\x9b", "\u202e", "\x00"} & set(shown)
    assert doors.command(world.place, None, ["task", "delete", "constructor"]).code == "ok"


@pytest.mark.long
def test_after_all_of_it_nothing_has_changed_and_no_memory_is_lost(world: World) -> None:
    def say_it_all() -> int:
        for row in (row for part in PARTS.values() for row in part):
            token, given = world.tokens[row.by], world.filled(row.given)
            doors.stream(world.place, token, row.call, given)
            doors.streamable(world.place, token, row.call, given)
            if row.rest != UNSAYABLE:
                doors.rest(world.place, token, row.call, given)
        return world.daemon.resident_kib // 1024

    # The first three fill caches and the allocator's reserve, now more by the one and now by the
    # other; what is still in use at one of the later ones may be given back at the next.
    _, *filling, fourth, fifth = (say_it_all() for _ in range(5))
    print(f"resident after the table: {filling} MiB, after it again: {fourth}, {fifth}")
    assert max(filling) < MAY_HOLD_MIB
    assert min(fourth, fifth) - max(filling) < MAY_GROW_MIB
    assert world.belongings() == world.before
    health = world.ask("doctor_run")
    assert health["healthy"], health
    assert world.daemon.alive
    log = world.daemon.log.read_text()
    assert '"level": "error"' not in log, log

"""One suite for whoever is talked to in a coordination: agents of a host, and those of a script.

What is an answer of a program in a machine is seen in `system/test_teams.py`.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import pytest

from calling import house
from coordinating import ALICE, Table
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.records import new_message_id
from microvm_orchestrator.conversations.room import QUEUE_MOST, TEXT_MOST
from microvm_orchestrator.model.values import MAX_TEXT

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from microvm_orchestrator.conversations.coordinations import Talk

    # Who is talked to, the id of one who never answers, and a way to end it.
    Party = tuple[Talk, str, Callable[[], Awaitable[object]]]

pytestmark = pytest.mark.anyio

PATIENCE_S = 20.0


@asynccontextmanager
async def scripted(folder: Path) -> AsyncGenerator[Party]:
    del folder
    table = Table({"mute": lambda _: None})

    async def end() -> None:
        table.end("mute")

    yield table, "a_mute", end


@asynccontextmanager
async def real(folder: Path) -> AsyncGenerator[Party]:
    """An agent whose machine never comes up hears nothing."""
    async with house(folder, machines={"qemu": str(fake_program(folder))}) as here:
        publish_no_image(here.service.host.images, "mute", "fake.silent")
        agent_id = (await here.ask("agent_spawn", image="mute", wait_s=0))["target"]

        async def end() -> None:
            await here.ask("agent_end", agent=agent_id, force=True)

        yield here.service.host.agents, agent_id, end
        await end()


PARTIES = {"scripted": scripted, "real": real}


@pytest.fixture(params=list(PARTIES))
async def party(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Party]:
    async with PARTIES[request.param](tmp_path) as party:
        yield party


async def test_what_has_an_id_is_said_once(party: Party) -> None:
    talk, agent, _ = party
    message_id = new_message_id(agent)
    first = await talk.send(agent, "hello", ALICE, message_id=message_id)
    second = await talk.send(agent, "something else", ALICE, message_id=message_id)
    assert (first.message_id, first.state, first.text) == (message_id, "queued", "hello")
    assert (second.message_id, second.text) == (message_id, "hello")


async def test_who_waits_hears_that_a_message_was_withdrawn(party: Party) -> None:
    talk, agent, _ = party
    ids = [new_message_id(agent) for _ in range(2)]
    for message_id in ids:
        await talk.send(agent, "hello", ALICE, message_id=message_id)
    with anyio.fail_after(PATIENCE_S):
        await talk.withdraw(ids[1], ALICE)
        assert (await talk.settled(ids[1], ALICE)).state == "cancelled"
        # Who is told twice does it once.
        await talk.withdraw(ids[1], ALICE)
        await talk.withdraw(ids[0], ALICE)
        assert (await talk.settled(ids[0], ALICE)).state == "cancelled"


async def test_nothing_more_is_said_to_one_for_whom_too_much_waits(party: Party) -> None:
    talk, agent, _ = party
    ids = [new_message_id(agent) for _ in range(QUEUE_MOST + 1)]
    for message_id in ids[:-1]:
        await talk.send(agent, "hello", ALICE, message_id=message_id)
    with pytest.raises(errors.Unavailable):
        await talk.send(agent, "more", ALICE, message_id=ids[-1])
    await talk.withdraw(ids[1], ALICE)
    with anyio.fail_after(PATIENCE_S):
        await talk.settled(ids[1], ALICE)
    assert (await talk.send(agent, "more", ALICE, message_id=ids[-1])).state == "queued"


async def test_no_more_is_said_at_once_than_an_agent_has_room_for(party: Party) -> None:
    talk, agent, _ = party
    long = "x" * MAX_TEXT
    ids = [new_message_id(agent) for _ in range(TEXT_MOST // MAX_TEXT + 1)]
    for message_id in ids[:-2]:
        await talk.send(agent, long, ALICE, message_id=message_id)
    refused: list[str] = []

    async def say(message_id: str) -> None:
        try:
            await talk.send(agent, long, ALICE, message_id=message_id)
        except errors.Unavailable:
            refused.append(message_id)

    async with anyio.create_task_group() as group:
        for message_id in ids[-2:]:
            group.start_soon(say, message_id)
    [left_out] = refused
    with pytest.raises(errors.Unavailable):
        await talk.send(agent, "more", ALICE, message_id=left_out)
    await talk.withdraw(ids[1], ALICE)
    with anyio.fail_after(PATIENCE_S):
        await talk.settled(ids[1], ALICE)
    assert (await talk.send(agent, long, ALICE, message_id=left_out)).state == "queued"


async def test_one_that_ends_hears_nothing_and_is_told_nothing_more(party: Party) -> None:
    talk, agent, end = party
    message_id = new_message_id(agent)
    await talk.send(agent, "hello", ALICE, message_id=message_id)
    with anyio.fail_after(PATIENCE_S):
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                assert (await talk.settled(message_id, ALICE)).state == "cancelled"

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await end()
    # What was said stays known, and is not said anew.
    again = await talk.send(agent, "hello", ALICE, message_id=message_id)
    assert again.state == "cancelled"
    with pytest.raises(errors.StateForbids):
        await talk.send(agent, "more", ALICE, message_id=new_message_id(agent))


async def test_nobody_and_nothing_are_not_found(party: Party) -> None:
    talk, agent, _ = party
    with pytest.raises(errors.NotFound):
        await talk.send("a_nobody", "hello", ALICE, message_id=new_message_id("a_nobody"))
    for verb in (talk.settled, talk.withdraw):
        with pytest.raises(errors.NotFound):
            await verb(new_message_id(agent), ALICE)

"""A guest that keeps to the frames and wants more than its share: of memory, of time, of the host.

Which rules it may break is told in `test_hostile_guest.py`; here it breaks hardly any.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio
import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.link import Link
from microvm_orchestrator.machine.channel.requests import ask
from microvm_orchestrator.together import beside
from scripted_guest import ScriptedGuest, scripted

# Only a test that fails waits so long.
PATIENCE_S = 60
MIB = 1 << 20


@asynccontextmanager
async def linked() -> AsyncGenerator[tuple[ScriptedGuest, Link]]:
    """Give a guest that has said who it is, and the link to it."""
    async with scripted() as (guest, host):
        link = Link(host)
        with anyio.fail_after(PATIENCE_S):
            async with beside(link.run):
                try:
                    async with anyio.create_task_group() as group:
                        group.start_soon(guest.greet)
                        await link.greeting()
                    yield guest, link
                finally:
                    link.fail(errors.MachineUnreachable("the test is over"))


async def test_a_guest_that_opens_streams_and_reads_no_answer_is_given_up() -> None:
    opened = wire.encode({"listener": 1})
    opens = b"".join(wire.frame(wire.OPEN, number, opened) for number in range(2, 60_000, 2))
    async with linked() as (guest, link), anyio.create_task_group() as group:
        # A socket takes in fewer answers than these.
        group.start_soon(guest.stream.send, opens)
        await link.gone.wait()
        with pytest.raises(errors.ProtocolBroken, match="reads no answer"):
            link.check()
        group.cancel_scope.cancel()


@pytest.mark.parametrize("drip", [wire.DATA, wire.NOTE, wire.CREDIT])
async def test_a_guest_that_says_something_again_and_again_has_not_answered(drip: int) -> None:
    said = {wire.DATA: b"x", wire.NOTE: wire.encode({}), wire.CREDIT: wire.credit(1)}[drip]
    async with linked() as (guest, link), anyio.create_task_group() as group:

        async def talk() -> None:
            number, _ = await guest.hear(wire.OPEN)
            while True:
                await guest.say(drip, number, said)
                await anyio.sleep(0.05)

        group.start_soon(talk)
        failures = (errors.MachineUnreachable, errors.ProtocolBroken)  # it grants what is not used
        with pytest.raises(failures):
            await ask(link, {"verb": b"ping"}, within_s=1.0)
        assert link.alive is (drip != wire.CREDIT)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("of", ["events", "streams", "what is over"])
async def test_a_guest_that_floods_with_what_nobody_asked_for_is_read_no_faster_than_it_may(
    of: str,
) -> None:
    sent = 0

    async with linked() as (guest, link), anyio.create_task_group() as group:
        began = anyio.current_time()

        async def flood() -> None:
            nonlocal sent
            event = wire.frame(wire.EVENT, 0, wire.encode({"event": b"log", "text": bytes(2000)}))
            last = 0
            while link.alive:
                if of == "events":
                    batch = event * 20
                elif of == "streams":
                    numbers = range(last + 2, last + 82, 2)
                    opened = wire.encode({"listener": 1})
                    batch = b"".join(wire.frame(wire.OPEN, number, opened) for number in numbers)
                    last = numbers[-1]
                else:
                    first = wire.frame(wire.OPEN, 2, wire.encode({"listener": 1}))
                    batch = b"" if last else first
                    batch += wire.frame(wire.DATA, 2, bytes(40_000))
                    last = 2
                await guest.stream.send(batch)
                sent += len(batch)

        group.start_soon(flood)
        group.start_soon(guest.ignore_the_rest)
        await anyio.sleep(3.0)
        took = anyio.current_time() - began
        # Beside that: the buffers of the socket, and the piece that is being read.
        assert 0 < sent <= 4 * MIB + took * 2 * MIB + 2 * MIB
        assert link.alive
        group.cancel_scope.cancel()

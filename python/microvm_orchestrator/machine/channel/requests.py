"""Streams with an owner, and the plainest exchange: a question and its answer."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from microvm_orchestrator.machine import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from microvm_orchestrator.machine.channel.link import Link
    from microvm_orchestrator.machine.channel.stream import Stream

# For what the agent does at once. A guest may stand still for seconds while its host is busy.
ANSWER_S = 15.0
# As long as TCP itself tries, nearly: a guest may route to somewhere far.
CONNECT_S = 60.0
# Between two pieces of something that is under way.
IDLE_S = 60.0


@asynccontextmanager
async def opened(
    link: Link, fields: Mapping[str, int | bytes | list[bytes]]
) -> AsyncGenerator[Stream]:
    """Hold a stream; what is not over when the block is left is cancelled."""
    stream = await link.open(fields)
    try:
        yield stream
    finally:
        stream.leave()


async def ask(
    link: Link, fields: Mapping[str, int | bytes | list[bytes]], *, within_s: float = ANSWER_S
) -> wire.Fields:
    """Ask for something that has one answer.

    Raises: what the guest refused it with, MachineUnreachable, ProtocolBroken.
    """
    async with opened(link, fields) as stream:
        return await stream.answer(within_s)

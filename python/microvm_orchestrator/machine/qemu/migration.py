"""Moving a machine's state in and out of a QEMU, told by events and never asked for.

One way each: `send` to an open file or socket, `loading` from one. What runs and what stands still
afterwards is the caller's business. Above stand the saving and the hypervisor.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
from anyio.abc import ObjectReceiveStream
from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.machine.qemu.qmp import Event, Qmp, Refused

# 256 MiB move in a fifth of a second; the deadline is for a disk that hangs.
_MOVE_S = 60.0
# How long the machine may go on changing its memory while that is sent. Then it is held still.
_LIVE_S = 3.0
# For how long it may stand still at the end, if it can be helped.
_DOWNTIME_MS = 30
_MOMENT_S = 0.001
# No limit at all: both ends are on this host.
_BANDWIDTH = 1 << 40
# The name of the file that was handed over for it.
_FILE = "state"


async def prepare(qmp: Qmp) -> None:
    """Let the monitor tell of migrations by events; once for each connection."""
    await _set(qmp, "events", on=True)


async def send(qmp: Qmp, fd: int, *, without_shared: bool = False) -> None:
    """Write the machine into an open file, at first while it runs, if it does.

    With `without_shared`, memory that is in a shared file stays there and is not written again. The
    machine stands still afterwards. Raises: MachineFailed, and it goes on as before.
    """
    await _set(qmp, "x-ignore-shared", on=without_shared)
    await qmp.execute(
        "migrate-set-parameters", {"max-bandwidth": _BANDWIDTH, "downtime-limit": _DOWNTIME_MS}
    )
    await qmp.execute("getfd", {"fdname": _FILE}, fds=[fd])
    seen: list[Event] = []
    with qmp.listen() as events:
        await qmp.execute("migrate", {"uri": f"fd:{_FILE}"})
        with anyio.move_on_after(_MOVE_S):
            with anyio.move_on_after(_LIVE_S):
                await _until_moved(events, seen)
            if not _moved(seen):
                await qmp.execute("stop")
                await _until_moved(events, seen)
    if _moved(seen) != "completed":
        await qmp.execute("migrate_cancel")
        raise errors.MachineFailed("the machine's state could not be written")


async def go_on(qmp: Qmp) -> None:
    """Let a machine run again, also one that was sent this very moment. Raises: Refused."""
    try:
        await qmp.execute("cont")
    except Refused:
        # Between telling that the machine has been sent and letting it run lies a moment in which
        # QEMU puts things away.
        with anyio.move_on_after(_MOVE_S):
            while await _is_put_away(qmp):  # noqa: ASYNC110 # there is no event at its end
                await anyio.sleep(_MOMENT_S)
        await qmp.execute("cont")


@asynccontextmanager
async def loading(qmp: Qmp, fd: int, *, without_shared: bool = False) -> AsyncGenerator[None]:
    """Begin to read a machine from a file that the QEMU has inherited; leaving the block waits.

    The machine stands still afterwards. Raises: MachineFailed; the QEMU may have ended then.
    """
    await _set(qmp, "x-ignore-shared", on=without_shared)
    seen: list[Event] = []
    with qmp.listen() as events:
        await qmp.execute("migrate-incoming", {"uri": f"fd:{fd}"})
        yield
        with anyio.move_on_after(_MOVE_S):
            await _until_moved(events, seen)
    if _moved(seen) != "completed":
        raise errors.MachineFailed("the saved state could not be loaded")


async def _is_put_away(qmp: Qmp) -> bool:
    status = await qmp.execute("query-status")
    return isinstance(status, dict) and status.get("status") == "finish-migrate"


async def _until_moved(events: ObjectReceiveStream[Event], seen: list[Event]) -> None:
    async for event in events:
        seen.append(event)
        if _moved(seen):
            return


def _moved(seen: Sequence[Event]) -> str | None:
    """Tell how it ended, if it did."""
    states = [event.data.get("status") for event in seen if event.name == "MIGRATION"]
    last = states[-1] if states else None
    return str(last) if last in {"completed", "failed", "cancelled"} else None


async def _set(qmp: Qmp, name: str, *, on: bool) -> None:
    capability: JsonValue = {"capability": name, "state": on}
    await qmp.execute("migrate-set-capabilities", {"capabilities": [capability]})

"""One suite for whatever can suffer: machines of this host, and those only written down."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import pytest

from faulting import ALICE
from machines import LONG_S, fake_rig, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.harms import Harms
from microvm_orchestrator.machine import base
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.fault import UNHARMED, Harm
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.store.sqlite import SqliteStore
from sufferers import PlainSufferers

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from pathlib import Path

    from microvm_orchestrator.faults.grounds import Sufferers

SLOW = Harm(disk_bytes_s=1 << 20)
STILL = Harm(paused=True)
BOTH = Harm(paused=True, disk_bytes_s=1 << 20)


@dataclass(frozen=True)
class Ward:
    """Machines of which one runs, and what else becomes of it."""

    sufferers: Sufferers
    machine: str
    stop: Callable[[], Awaitable[object]]
    # It is told what it is to suffer.
    start: Callable[[Harm], Awaitable[object]]


@asynccontextmanager
async def written_down(_: Path) -> AsyncGenerator[Ward]:
    plain = PlainSufferers(["a"])

    async def stop() -> None:
        plain.stop("a")

    async def start(harm: Harm) -> None:
        plain.start("a", harm)

    yield Ward(plain, "a", stop, start)


@asynccontextmanager
async def of_this_host(folder: Path) -> AsyncGenerator[Ward]:
    rig = fake_rig(folder)
    wanted = [UNHARMED]

    async def on_begin(machine_id: str, running: base.Machine) -> None:
        await harms.begin(machine_id, running, wanted[-1])

    store = SqliteStore(folder / "store.db")
    async with store.opened(), rig.open() as qemu, removed_in_the_end(qemu):
        slots = Slots(Capacity(1, 1024, 8))
        machines = Machines(store, qemu, slots, lambda _: rig.boot, on_begin=on_begin)
        harms = Harms(machines)
        async with machines.running():
            wish = Wish("none", memory_mib=64, vcpus=1, accel=base.Accel.TCG, disk_mib=16)
            machine_id = (await machines.define(wish, ALICE)).machine_id

            async def start(harm: Harm) -> None:
                wanted.append(harm)
                await machines.start(machine_id, ALICE)

            async def stop() -> None:
                await machines.kill(machine_id, ALICE)

            await start(UNHARMED)
            yield Ward(harms, machine_id, stop, start)


@pytest.fixture(params=[written_down, of_this_host])
async def ward(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Ward]:
    with anyio.fail_after(LONG_S):
        async with request.param(tmp_path) as ward:
            yield ward


async def test_a_machine_suffers_what_it_is_told_as_far_as_that_is_touched(ward: Ward) -> None:
    its, machine = ward.sufferers, ward.machine
    assert machine in await its.found()
    await its.check(machine, BOTH)
    assert await its.harmed(machine, BOTH.touched) == UNHARMED
    for _ in range(2):
        await its.harm(machine, SLOW, SLOW.touched)
        assert await its.harmed(machine, BOTH.touched) == SLOW
    await its.harm(machine, STILL, STILL.touched)
    assert await its.harmed(machine, BOTH.touched) == BOTH
    assert await its.harmed(machine, STILL.touched) == STILL
    # Beside another fault that lets it stand still.
    await its.check(machine, BOTH)
    await its.harm(machine, UNHARMED, BOTH.touched)
    assert await its.harmed(machine, BOTH.touched) == UNHARMED


async def test_one_that_does_not_run_suffers_nothing_until_it_begins(ward: Ward) -> None:
    its, machine = ward.sufferers, ward.machine
    await its.harm(machine, BOTH, BOTH.touched)
    await ward.stop()
    assert await its.harmed(machine, BOTH.touched) is None
    await its.harm(machine, BOTH, BOTH.touched)
    with pytest.raises(errors.StateForbids):
        await its.check(machine, BOTH)
    with pytest.raises(errors.NotFound):
        await its.check("nobody", BOTH)
    await ward.start(BOTH)
    assert await its.harmed(machine, BOTH.touched) == BOTH
    await ward.stop()
    await ward.start(UNHARMED)
    assert await its.harmed(machine, BOTH.touched) == UNHARMED

"""The kernel log of a real machine: marked, read, watched, and what is left when it has died."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, built_image, qemu_rig, removed_in_the_end
from microvm_orchestrator import errors
from microvm_orchestrator.clusters.kernel_logs import KernelLogs
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.machines import Machines, Wish
from microvm_orchestrator.model.kernel_log import KernelNews, News, Since, Source, Trouble
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.slots import Capacity, Slots
from microvm_orchestrator.store.base import Store
from microvm_orchestrator.store.sqlite import SqliteStore

MEMORY_MIB = 160
# More than it has.
EATS = "eaten = []\nwhile True: eaten.append(b'x' * (1 << 20))"
FORGED = "Kernel panic - not syncing: says a program"


@dataclass(frozen=True)
class House:
    store: Store
    machines: Machines
    logs: KernelLogs

    async def box(self) -> Machine:
        return await self.machines.get("box", SYSTEM)

    async def run(self, *argv: str) -> None:
        shell = await self.machines.live(await self.box()).reached()
        await shell.exec(Command(argv))

    async def until(self, state: MachineState) -> None:
        async with self.store.hints() as changes:
            while (await self.box()).state is not state:
                await anext(changes)


@asynccontextmanager
async def house_in(folder: Path) -> AsyncGenerator[House]:
    boot = await built_image()
    rig = qemu_rig(folder, boot)
    store = SqliteStore(folder / "store.db")
    async with store.opened(), rig.open() as qemu, removed_in_the_end(qemu):
        slots = Slots(Capacity(2, 1024, 8))
        machines = Machines(store, qemu, slots, lambda _: boot)
        async with machines.running():
            wish = Wish("none", MEMORY_MIB, 1, Accel.TCG, "box")
            await machines.define(wish, SYSTEM)
            yield House(store, machines, KernelLogs(store, machines))


@asynccontextmanager
async def heard(house: House, box: Machine) -> AsyncGenerator[AsyncIterator[KernelNews]]:
    """Give what is told of a machine from now on."""
    send, receive = anyio.create_memory_object_stream[KernelNews](100)
    start = await house.logs.begin(box)
    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(house.logs.follow, box.machine_id, start, send.send)
            yield receive
            tasks.cancel_scope.cancel()


async def trouble(news: AsyncIterator[KernelNews]) -> Trouble:
    """Read on to the next report."""
    async for each in news:
        if each.report is not None:
            return each.report.trouble
    raise AssertionError("nothing more is told")


@pytest.mark.long
async def test_a_kernel_is_marked_read_and_watched_and_heard_when_it_dies(tmp_path: Path) -> None:
    with anyio.fail_after(3 * LONG_S):
        async with house_in(tmp_path) as house:
            logs, machines = house.logs, house.machines
            with pytest.raises(errors.StateForbids):
                await logs.mark(await house.box(), SYSTEM)
            await machines.start("box", SYSTEM)
            box = await house.box()

            # What is between a mark and now, and nothing else; a program's word is no trouble.
            first = await logs.mark(box, SYSTEM)
            said = f"printf '<4>one\\n' > /dev/kmsg; printf '<10>{FORGED}\\n' > /dev/kmsg"
            await house.run("sh", "-c", said)
            log = await logs.collect(box, first.mark)
            assert [(line.text, line.level, line.facility) for line in log.lines] == [
                *(("one", "warn", "user"), (FORGED, "crit", "user"))
            ]
            assert (log.source, log.since, log.reports) == (Source.RING, Since.MARK, ())
            whole = await logs.collect(box)
            assert (whole.since, whole.cut, whole.reports) == (Since.BEGINNING, False, ())
            assert whole.lines[0].text.startswith("Linux version")
            with pytest.raises(errors.NotFound, match="no mark other"):
                await logs.collect(box, "other")

            second = await logs.mark(box, SYSTEM)
            async with heard(house, box) as news:
                await house.run("python3", "-IS", "-c", EATS)
                # To clear what `dmesg` shows hides nothing.
                await house.run("dmesg", "-c")
                eaten = await logs.collect(box, first.mark)
                assert [report.trouble for report in eaten.reports] == [Trouble.OOM]
                assert (eaten.reports[0].process or "").startswith("python3/")

                reports = [await trouble(news)]

                # A kernel that dies tells so itself, and whoever watches it hears the end.
                with pytest.raises(errors.OrchestratorError):
                    await house.run("sh", "-c", "echo c > /proc/sysrq-trigger")
                reports.append(await trouble(news))
                assert reports == [Trouble.OOM, Trouble.PANIC]
            await house.until(MachineState.CRASHED)
            # A console does not tell who wrote to it: what was forged stands before what is true.
            for since, told in ((second.mark, 1), (None, 2)):
                dead = await logs.collect(await house.box(), since)
                assert (dead.source, dead.has(Trouble.PANIC)) == (Source.CONSOLE, True)
                # Nothing but panics is said aloud here: the kernel is told to be quiet.
                assert len(dead.reports) == told
                panic = dead.reports[-1]
                assert panic.headline == "Kernel panic - not syncing: sysrq triggered crash"
                assert (panic.process or "").startswith("sh/")
                assert "sysrq_handle_crash" in " ".join(panic.call_trace)
                assert "crashed" in dead.reason
            with pytest.raises(errors.StateForbids):
                await logs.mark(await house.box(), SYSTEM)

            # The next boot is another one: its ring knows nothing of the mark, the console does.
            await machines.start("box", SYSTEM)
            box = await house.box()
            again = await logs.collect(box, second.mark)
            assert (again.source, again.since) == (Source.RING, Since.LOST)
            assert [report.trouble for report in again.reports] == [Trouble.PANIC]
            assert "started again" in again.reason
            assert (await logs.collect(box)).reports == ()
            # Without a Python there, `dmesg` tells; to clear it loses a mark, which is told.
            third = await logs.mark(box, SYSTEM, "third")
            await house.run("mv", "/usr/bin/python3", "/usr/bin/away")
            await house.run("sh", "-c", "echo '<12>two' > /dev/kmsg")
            log = await logs.collect(box, third.mark)
            assert [line.text for line in log.lines] == ["two"]
            assert (log.since, log.lines[0].seq) == (Since.MARK, None)
            async with heard(house, box) as news:
                await house.run("sh", "-c", "echo '<12>three' > /dev/kmsg")
                while (line := (await anext(news)).line) is None or line.text != "three":
                    pass
                # One that stands still is told so, and that it goes on.
                await machines.pause("box", SYSTEM)
                still = await anext(news)
                assert (still.what, still.state, still.answers, still.reason) == (
                    *(News.NODE, MachineState.PAUSED, False, "it is paused"),
                )
                await machines.resume("box", SYSTEM)
                assert ((again := await anext(news)).what, again.answers) == (News.NODE, True)
            await house.run("dmesg", "-c")
            log = await logs.collect(box, third.mark)
            assert (log.since, log.cut, log.lines) == (Since.LOST, True, ())
            assert "cleared" in log.reason
            with pytest.raises(errors.InvalidInput):
                await logs.mark(box, SYSTEM, "two words")
            # One that stands still, or was ended, has no clean log: it has none.
            await machines.pause("box", SYSTEM)
            with pytest.raises(errors.StateForbids, match="paused"):
                await logs.collect(await house.box())
            await machines.kill("box", SYSTEM)
            with pytest.raises(errors.StateForbids, match="stopped"):
                await logs.collect(await house.box())
            await machines.delete("box", SYSTEM)
            await logs.reconcile()
            with pytest.raises(errors.NotFound):
                await logs.collect(box, second.mark)

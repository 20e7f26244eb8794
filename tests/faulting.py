"""Ledgers of faults to test, over real stores and networks, with daemons that die at any step."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

from microvm_orchestrator.faults.grounds import Sufferers
from microvm_orchestrator.faults.ledger import Ledger
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.fault import Harm
from microvm_orchestrator.model.machine import Machine, MachineState
from microvm_orchestrator.model.records import Actor
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.network.addresses import assign
from microvm_orchestrator.network.base import Network, Networks, Port
from microvm_orchestrator.network.switch import Switch
from microvm_orchestrator.store.base import Store
from microvm_orchestrator.store.sqlite import SqliteStore
from networking import STAGES, KernelStage, Stage
from storing import HandClock
from sufferers import PlainSufferers

ALICE = Actor(name="alice", role=Role.OPERATOR, via="test", action="fault_inject")
BOB = Actor(name="bob", role=Role.OPERATOR, via="test", action="x", scope=Scope(everything=False))
NETWORK = Network("net", ("10.9.0.0/24",))
MACHINES = ("a", "b", "c", "d", "e")


class Killed(BaseException):
    """The daemon is no more."""


class Doom:
    """Counts what a daemon does, and ends it before or after one of those steps."""

    def __init__(self) -> None:
        self._left: int | None = None

    def comes_at(self, step: int) -> None:
        self._left = step

    def step(self) -> None:
        if self._left == 0:
            raise Killed
        if self._left is not None:
            self._left -= 1

    def over(self, real: object) -> Any:
        """Stand for a part of the daemon, whose steps these are."""
        return _Doomed(real, self)


class _Doomed:
    def __init__(self, real: object, doom: Doom) -> None:
        self._real = real
        self._doom = doom

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def step(*args: object, **more: object) -> object:
            self._doom.step()
            answer = await found(*args, **more)
            self._doom.step()
            return answer

        return step


class Ground:
    """A store, a network of five machines, and the ledger of a daemon that may be restarted."""

    def __init__(self, stage: Stage, store: Store) -> None:
        self.stage = stage
        self.store = store
        self.sufferers = PlainSufferers(MACHINES)
        self.ports: dict[str, Port] = {}
        self.networks: Networks
        self.ledger: Ledger
        self._life = AsyncExitStack()
        for name in MACHINES:
            self.ports[name] = assign(NETWORK, name, list(self.ports.values()))
        self.running: set[str] = set(MACHINES)

    async def begin(self) -> None:
        """Be a daemon that starts: networks are made, faults asserted, machines connected."""
        self.networks = await self._life.enter_async_context(self.stage.open())
        await self.networks.make(NETWORK)
        self.ledger = Ledger(self.store, self.networks, self.sufferers)
        await self.ledger.reconcile()
        for name in sorted(self.running):
            await self.networks.prepare(self.ports[name])
        await self.ledger.settle()

    async def end(self) -> None:
        await self._life.aclose()

    async def restart(self) -> None:
        await self.end()
        await self.begin()

    async def stop(self, name: str) -> None:
        await self.networks.release(self.ports[name])
        self.sufferers.stop(name)
        self.running.discard(name)

    async def start(self, name: str) -> None:
        await self.networks.prepare(self.ports[name])
        self.sufferers.start(name, self.ledger.suffers(name))
        self.running.add(name)

    async def join(self, name: str, owner: str = "alice") -> None:
        """Let one more machine be in the network, written down but not started."""
        self.ports[name] = assign(NETWORK, name, list(self.ports.values()))
        machine = Machine(
            machine_id=name,
            name=name,
            owner=owner,
            image="sha256:0",
            memory_mib=1,
            vcpus=1,
            accel=Accel.TCG,
            state=MachineState.DEFINED,
            created_at=moment(await self.store.now()),
        )
        await self.ledger.join(NETWORK.network_id, machine)

    def doomed(self, doom: Doom) -> Ledger:
        """A ledger on the same ground whose daemon may be killed."""
        store = cast("Store", doom.over(self.store))
        networks = cast("Networks", doom.over(self.networks))
        return Ledger(store, networks, cast("Sufferers", doom.over(self.sufferers)))

    def suffered(self) -> dict[str, Harm]:
        """Tell what machines that run do suffer."""
        return {
            name: harm for name, harm in sorted(self.sufferers.standing.items()) if not harm.nothing
        }

    async def dump(self) -> str:
        """Say all that there is, but for what every new interface has of its own."""
        suffered = repr(self.suffered())
        if isinstance(self.stage, KernelStage):
            return suffered + like_any(self.stage.dump())
        assert isinstance(self.networks, Switch)
        ways = repr(await self.networks.impaired("net"))
        return suffered + ways + repr(self.networks.way_usage("net"))


def like_any(dump: str) -> str:
    """Leave out numbers and addresses that the kernel gives out in the order it is asked."""
    dump = re.sub(r"(?m)^\d+: ", "", dump)
    dump = re.sub(r"([0-9a-f]{2}:){5}[0-9a-f]{2}", "MAC", dump)
    dump = re.sub(r"(port_id|port_no|designated_\w+|bridge_id) \S+", "", dump)
    return "\n".join(sorted(dump.splitlines()))


@asynccontextmanager
async def ground(kind: str, folder: Path, clock: HandClock | None = None) -> AsyncGenerator[Ground]:
    """Begin with nothing; time is the store's own unless a clock is moved by hand."""
    path = folder / "store.db"
    store = SqliteStore(path, clock.begin) if clock is not None else SqliteStore(path)
    async with STAGES[kind](folder) as stage, store.opened():
        ground = Ground(stage, store)
        await ground.begin()
        try:
            yield ground
        finally:
            await ground.networks.remove("net")
            await ground.end()

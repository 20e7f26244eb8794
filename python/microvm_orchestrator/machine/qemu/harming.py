"""What befalls the disks of a QEMU: they pass less, or fail, as its monitor is told and tells.

Only disks that the machine writes are meant: by those of its image, which are only read, it is run.
A disk fails by a filter that is put between the device and all of the disk's layers, and taken away
again; a machine that is saved meanwhile writes on in new layers below it. Whose monitor it is does
not matter: libvirt lends its own. Above stands the machine, of QEMU's or of libvirt's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.machine.qemu import disks
from microvm_orchestrator.machine.qemu.argv import device_name, node_name
from microvm_orchestrator.model.fault import Harm

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.machine.base import MachineSpec
    from microvm_orchestrator.machine.qemu.qmp import Monitor, Qmp

_READS: Sequence[str] = ("read",)
# A disk that takes nothing also keeps nothing.
_WRITES: Sequence[str] = ("write", "write-zeroes", "discard", "flush")
_FAILS = {
    "reads": (Harm(reads_fail=True), _READS),
    "writes": (Harm(writes_fail=True), _WRITES),
    "both": (Harm(reads_fail=True, writes_fail=True), (*_READS, *_WRITES)),
}
_EIO = 5
_QDEV = re.compile(r"(?:/machine/peripheral/)?disk(\d+)(?:/.*)?")
_FILTER = re.compile(r"fault(\d+)-(reads|writes|both)")


class Monitored(Protocol):
    """A machine with a monitor."""

    @property
    def spec(self) -> MachineSpec: ...

    @property
    def qmp(self) -> Qmp: ...


def writable(spec: MachineSpec) -> list[int]:
    """Number the disks that a machine writes. Raises: FaultNotOffered when there is none."""
    found = [number for number, disk in enumerate(spec.all_disks) if not disk.read_only]
    if not found:
        raise errors.FaultNotOffered(
            f"machine {spec.machine_id} has no disk that it writes",
            hint="disk_mib gives a machine one",
        )
    return found


def check_slower(spec: MachineSpec, harm: Harm) -> None:
    """Raises: InvalidInput for what is no slower than the machine's own limits."""
    own, wanted = limits_of(spec, Harm()), limits_of(spec, harm)
    asked = (harm.disk_bytes_s, harm.disk_operations_s)
    if any(each is not None and wanted[n] == own[n] for n, each in enumerate(asked)):
        raise errors.InvalidInput(f"the disks of machine {spec.machine_id} are no faster already")


def limits_of(spec: MachineSpec, harm: Harm) -> tuple[int, int]:
    """Tell how many bytes and operations pass; zero is no limit."""
    pairs = (
        (spec.limits.disk_bytes, harm.disk_bytes_s),
        (spec.limits.disk_operations, harm.disk_operations_s),
    )
    bytes_, operations = (min((each for each in pair if each), default=0) for pair in pairs)
    return bytes_, operations


def slowed(spec: MachineSpec, seen: Sequence[tuple[int, int]]) -> Harm:
    """Tell what befalls disks of which so many bytes and operations pass, each."""
    own = limits_of(spec, Harm())
    bytes_, operations = (
        None
        if any(each in {0, own[n]} for each in (disk[n] for disk in seen))
        else max(disk[n] for disk in seen)
        for n in range(2)
    )
    return Harm(disk_bytes_s=bytes_, disk_operations_s=operations)


class SlowDisks:
    """Disks that pass less, beside what the machine's own limits say."""

    fields = frozenset({"disk_bytes_s", "disk_operations_s"})

    def __init__(self, machine: Monitored) -> None:
        self._machine = machine

    async def check(self, harm: Harm) -> None:
        writable(self._machine.spec)
        check_slower(self._machine.spec, harm)

    async def make(self, harm: Harm) -> None:
        bytes_, operations = limits_of(self._machine.spec, harm)
        for number in writable(self._machine.spec):
            await disks.throttle(self._machine.qmp, number, operations, bytes_)

    async def see(self) -> Harm:
        spec = self._machine.spec
        mine = writable(spec)
        answer = await self._machine.qmp.execute("query-block")
        seen: list[tuple[int, int]] = []
        for block in answer if isinstance(answer, list) else []:
            match block:
                case {"qdev": str(qdev), "inserted": {"bps": int(bps), "iops": int(iops)}}:
                    found = _QDEV.fullmatch(qdev)
                    if found and int(found[1]) in mine:
                        seen.append((bps, iops))
                case _:
                    pass
        if len(seen) != len(mine):
            raise errors.ProtocolBroken(f"machine {spec.machine_id} does not tell of its disks")
        return slowed(spec, seen)


@dataclass(frozen=True, slots=True)
class Drive:
    """A disk that a machine writes, as QEMU knows it: the device, and the top one of its layers."""

    device: str
    top: str


class Driven(Protocol):
    """A machine whose disks are known by their names in QEMU."""

    @property
    def monitor(self) -> Monitor: ...

    async def drives(self) -> Mapping[int, Drive]:
        """Find the disks that it writes. Raises: Unavailable, ProtocolBroken."""
        ...


class OwnDrives:
    """The disks of a QEMU that we have started, by the names that we gave them."""

    def __init__(self, machine: Monitored) -> None:
        self._machine = machine

    @property
    def monitor(self) -> Monitor:
        return self._machine.qmp

    async def drives(self) -> Mapping[int, Drive]:
        tops = await disks.find_tops(self._machine.qmp)
        mine = writable(self._machine.spec)
        return {each: Drive(device_name(each), node_name(each, tops[each])) for each in mine}


class FailingDisks:
    """Disks that cannot be read, or written, or both."""

    fields = frozenset({"reads_fail", "writes_fail"})

    def __init__(self, spec: MachineSpec, machine: Driven) -> None:
        self._spec = spec
        self._machine = machine

    async def check(self, harm: Harm) -> None:
        del harm
        writable(self._spec)

    async def make(self, harm: Harm) -> None:
        monitor = self._machine.monitor
        wanted = _kind(harm)
        for number, drive in (await self._machine.drives()).items():
            name = f"fault{number}-{wanted}"
            if wanted is not None and await self._node_of(drive) == name:
                continue
            await self._attach(drive, drive.top)
            # One that a daemon made which died before it was put in its place is here too.
            for node in await self._filters(number):
                await monitor.execute("blockdev-del", {"node-name": node})
            if wanted is not None:
                rules: list[JsonValue] = [
                    {"event": "none", "iotype": iotype, "errno": _EIO}
                    for iotype in _FAILS[wanted][1]
                ]
                made = {"driver": "blkdebug", "node-name": name, "image": drive.top}
                await monitor.execute("blockdev-add", {**made, "inject-error": rules})
                await self._attach(drive, name)

    async def see(self) -> Harm:
        seen: set[str | None] = set()
        for drive in (await self._machine.drives()).values():
            found = _FILTER.fullmatch(await self._node_of(drive))
            seen.add(found[2] if found else None)
        if len(seen) > 1 or None in seen:
            return Harm()
        return _FAILS[str(seen.pop())][0]

    async def _node_of(self, drive: Drive) -> str:
        return str(await self._machine.monitor.execute("qom-get", _place_of(drive)))

    async def _attach(self, drive: Drive, node: str) -> None:
        if await self._node_of(drive) != node:
            place = _place_of(drive)
            await self._machine.monitor.execute("qom-set", {**place, "value": node})

    async def _filters(self, number: int) -> list[str]:
        asked = {"flat": True}
        answer = await self._machine.monitor.execute("query-named-block-nodes", asked)
        names = [
            node.get("node-name")
            for node in (answer if isinstance(answer, list) else [])
            if isinstance(node, dict)
        ]
        found = [_FILTER.fullmatch(name) for name in names if isinstance(name, str)]
        return [each[0] for each in found if each and int(each[1]) == number]


def _kind(harm: Harm) -> str | None:
    for kind, (fails, _) in _FAILS.items():
        if (harm.reads_fail, harm.writes_fail) == (fails.reads_fail, fails.writes_fail):
            return kind
    return None


def _place_of(drive: Drive) -> dict[str, JsonValue]:
    return {"path": f"/machine/peripheral/{drive.device}", "property": "drive"}

"""The network in userspace: a switch between the sockets of machines. It needs no privilege.

Each machine's QEMU listens, and the switch connects; so a switch that is started anew finds every
machine, and all that is lost are the frames of between. One task reads from each machine and one
writes what waits for it; a machine that floods is read no faster than leaves the daemon time for
others. It takes no part in the networks itself, so no machine reaches the host by them. Above
stands the daemon; below, segments and machines' sockets.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from microvm_orchestrator import errors, log
from microvm_orchestrator.machine import sockets
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.network.addresses import prefixes
from microvm_orchestrator.network.base import (
    Abilities,
    Ends,
    Network,
    OnPortEvent,
    Port,
    PortChange,
    PortEvent,
    PortUsage,
)
from microvm_orchestrator.network.impairment import AS_IT_SHOULD_BE, Behaviour, Impairment
from microvm_orchestrator.network.pace import Pace
from microvm_orchestrator.network.segment import Lying, Plug, Segment
from microvm_orchestrator.network.way import Late, Way, WayUsage

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

# Some forty frames of full size at once; more only makes others wait.
_CHUNK = 1 << 16


class _Line:
    """A connection to a machine, until it has been hung up."""

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.over = anyio.Event()


class Switch:
    """All networks of one daemon."""

    def __init__(self, group: TaskGroup, on_event: OnPortEvent, late: Late) -> None:
        self._group = group
        self._on_event = on_event
        self._segments: dict[str, Segment] = {}
        self._lines: dict[Plug, _Line] = {}
        # What is not as it should be, by network; also where there are no ports now.
        self._ways: defaultdict[str, dict[Ends, Way]] = defaultdict(dict)
        self._late = late
        # How many machines are not listened to for a while because they flood.
        self._held_back = 0

    async def make(self, network: Network) -> None:
        prefixes(network)
        self._segments.setdefault(network.network_id, Segment())

    async def remove(self, network_id: str) -> None:
        segment = self._segments.get(network_id)
        if segment is not None:
            for plug in list(segment.plugs.values()):
                await self.release(plug.port)
            del self._segments[network_id]
            self._ways.pop(network_id, None)

    async def found(self) -> list[str]:
        return sorted(self._segments)

    async def prepare(self, port: Port) -> Link:
        segment = self._segments.get(port.network_id)
        if segment is None:
            raise errors.NotFound(f"there is no network {port.network_id}")
        plug = segment.add(port)
        for (source, target), way in self._ways[port.network_id].items():
            if source == port.machine_id:
                plug.ways[target] = way.take
        return Link(port.mac, port.ipv4, ipv6=port.ipv6)

    async def connect(self, port: Port, link: Path) -> None:
        plug = self._plug(port)
        await self._hang_up(plug)
        await self._group.start(self._serve, plug, link)

    async def disconnect(self, port: Port) -> None:
        plug = self._find(port)
        if plug is not None:
            await self._hang_up(plug)

    async def release(self, port: Port) -> None:
        plug = self._find(port)
        if plug is not None:
            await self._hang_up(plug)
            segment = self._segments[port.network_id]
            segment.drop(plug)
            for ends, way in self._ways[port.network_id].items():
                if port.machine_id in ends:
                    way.forget()

    async def usage(self, port: Port) -> PortUsage:
        return self._plug(port).usage()

    async def sweep(self, networks: Collection[str], ports: Collection[Port]) -> list[str]:
        swept: list[str] = []
        for network_id, segment in list(self._segments.items()):
            if network_id not in networks:
                await self.remove(network_id)
                swept.append(f"network {network_id}")
                continue
            for plug in list(segment.plugs.values()):
                if plug.port not in ports:
                    await self.release(plug.port)
                    swept.append(f"port of {plug.port.machine_id} in network {network_id}")
        return swept

    async def abilities(self) -> Abilities:
        return Abilities("userspace", frozenset(Behaviour))

    async def check(self, impairments: Collection[Impairment]) -> None:
        """Whatever it is, it can be done here."""

    async def impair(self, network_id: str, ways: Mapping[Ends, Impairment]) -> None:
        if network_id not in self._segments:
            raise errors.NotFound(f"there is no network {network_id}")
        for ends, impairment in ways.items():
            if impairment == AS_IT_SHOULD_BE:
                self._mend(network_id, ends)
            else:
                self._impair(network_id, ends, impairment)

    async def mend(self, network_id: str, ways: Collection[Ends]) -> None:
        for ends in ways:
            self._mend(network_id, ends)

    async def impaired(self, network_id: str) -> dict[Ends, Impairment]:
        ways = self._ways.get(network_id, {})
        return {ends: way.impairment for ends, way in sorted(ways.items())}

    def way_usage(self, network_id: str) -> dict[Ends, WayUsage]:
        """Tell what has befallen frames on each way that is impaired."""
        return {ends: way.usage() for ends, way in self._ways.get(network_id, {}).items()}

    def _impair(self, network_id: str, ends: Ends, impairment: Impairment) -> None:
        ways, segment = self._ways[network_id], self._segments[network_id]
        if ends in ways:
            ways[ends].change(impairment)
            return

        def send(frame: bytes) -> None:
            plug = segment.plugs.get(ends.target)
            if plug is not None:
                plug.send(memoryview(frame), 1)

        way = ways[ends] = Way(impairment, f"{network_id} {ends}", self._late, send)
        if ends.source in segment.plugs:
            segment.plugs[ends.source].ways[ends.target] = way.take

    def _mend(self, network_id: str, ends: Ends) -> None:
        way = self._ways.get(network_id, {}).pop(ends, None)
        if way is not None:
            way.forget()
            plug = self._segments[network_id].plugs.get(ends.source)
            if plug is not None:
                del plug.ways[ends.target]

    def _find(self, port: Port) -> Plug | None:
        segment = self._segments.get(port.network_id)
        return segment.plugs.get(port.machine_id) if segment is not None else None

    def _plug(self, port: Port) -> Plug:
        plug = self._find(port)
        if plug is None:
            raise errors.NotFound(
                f"machine {port.machine_id} has no port in network {port.network_id}"
            )
        return plug

    async def _hang_up(self, plug: Plug) -> None:
        line = self._lines.get(plug)
        if line is not None:
            line.scope.cancel()
            await line.over.wait()

    async def _serve(
        self, plug: Plug, link: Path, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Pass a machine's frames on until somebody hangs up, and tell when it was not us."""
        ended: PortEvent | None = None
        connection = _dial(plug, link)
        line = self._lines[plug] = _Line()
        try:
            with line.scope:
                task_status.started()
                before = plug.accepted
                ended = await self._hear(plug, connection)
                if ended.change is PortChange.CUT_OFF and plug.accepted == before:
                    # QEMU finishes on a new connection the frame that it had begun on the last
                    # one, so a first one that makes no sense is no lie yet.
                    ended = await self._hear(plug, _dial(plug, link))
        except errors.MachineUnreachable:
            pass  # the second time; `ended` tells of the first
        finally:
            del self._lines[plug]
            line.over.set()
        if ended is not None and not line.scope.cancel_called:
            log.get(__name__).info(
                "port_closed", machine=ended.machine_id, network=ended.network_id, why=ended.reason
            )
            await self._on_event(ended)

    async def _hear(self, plug: Plug, connection: socket.socket) -> PortEvent:
        try:
            plug.plug_in(connection)
            segment = self._segments[plug.port.network_id]
            async with _draining(plug, connection):
                change, reason = await self._listen(segment, plug, connection)
            return PortEvent(plug.port.network_id, plug.port.machine_id, change, reason)
        finally:
            plug.pull()
            connection.close()

    async def _listen(
        self, segment: Segment, plug: Plug, connection: socket.socket
    ) -> tuple[PortChange, str]:
        """Pass on what a machine sends, until it hangs up or makes no sense."""
        rest = b""
        pace = Pace()
        while True:
            await anyio.wait_readable(connection)
            try:
                data = connection.recv(_CHUNK)
            except BlockingIOError:
                continue
            except ConnectionError as error:
                return PortChange.HUNG_UP, f"its connection broke: {error.strerror}"
            if not data:
                return PortChange.HUNG_UP, "its side was closed"
            began = time.thread_time()
            data = rest + data
            try:
                rest = data[segment.forward(plug, data) :]
            except Lying as lie:
                return PortChange.CUT_OFF, str(lie)
            took_s = time.thread_time() - began
            wait_s = pace.wait_s(anyio.current_time(), took_s, self._held_back)
            if wait_s:
                await self._hold_back(wait_s)

    async def _hold_back(self, wait_s: float) -> None:
        self._held_back += 1
        try:
            await anyio.sleep(wait_s)
        finally:
            self._held_back -= 1


@asynccontextmanager
async def _draining(plug: Plug, connection: socket.socket) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(plug.drain, connection)
        try:
            yield
        finally:
            group.cancel_scope.cancel()


def _dial(plug: Plug, link: Path) -> socket.socket:
    try:
        return sockets.dial(link)
    except OSError as error:
        raise errors.MachineUnreachable(
            f"machine {plug.port.machine_id} does not answer on its link {link.name}:"
            f" {error.strerror}"
        ) from error


async def unheard(_: PortEvent) -> None:
    """Tell nobody."""


@asynccontextmanager
async def open_switch(on_event: OnPortEvent = unheard) -> AsyncGenerator[Switch]:
    """Hold networks in userspace; machines go on without them when the block is left."""
    async with anyio.create_task_group() as group:
        late = Late()
        group.start_soon(late.deliver)
        yield Switch(group, on_event, late)
        group.cancel_scope.cancel()

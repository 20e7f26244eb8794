"""One segment of the userspace switch: whose frame goes to whom, and what waits for it.

Owns queues and counters; reads from no socket and waits for nothing, so what it decides is decided
when it returns. Frames travel as QEMU writes them, each behind its length in four bytes, and those
in a row for the same machine are passed on as they lie. Every MAC is known from the start, so
nothing is learned, nothing can be unlearned, and a frame for nobody goes nowhere. Above stands the
switch.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.network.base import Port, PortUsage
from microvm_orchestrator.network.guard import ETHERNET_BYTES, Guard

# The length in front of each frame.
LENGTH_BYTES = 4
# What fits into an IP packet, behind Ethernet's own header with a tag. QEMU takes a little more.
MAX_FRAME = 65_535 + 18
# For one machine: about what a network card of the kernel lets wait.
MAX_WAITING = 1 << 20

# Takes a frame on its way between two machines, to deliver it or not, now or later.
OnWay = Callable[[bytes], None]


class Lying(Exception):
    """The length in front of a frame is none that a frame can have."""


class Plug:
    """A machine's place in a segment, with or without a connection."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.guard = Guard(port)
        # By the machine at the other end; most have none.
        self.ways: dict[str, OnWay] = {}
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_waiting = anyio.Event()
        self.rx_packets = self.rx_bytes = self.tx_packets = self.tx_bytes = 0
        self.dropped = self.refused = 0

    def usage(self) -> PortUsage:
        return PortUsage(
            self.rx_packets,
            self.rx_bytes,
            self.tx_packets,
            self.tx_bytes,
            self.dropped,
            self.refused,
        )

    @property
    def accepted(self) -> int:
        """How many frames the machine has sent in its own name."""
        return self.tx_packets - self.refused

    def plug_in(self, connection: socket.socket) -> None:
        """Send to a connection, which does not block, until it is pulled."""
        self._socket = connection

    def pull(self) -> None:
        self._socket = None
        self._waiting.clear()
        self._waiting_bytes = 0

    def send(self, frames: memoryview, count: int) -> None:
        """Pass frames on to the machine, now or soon; what it takes too slowly is dropped."""
        if self._socket is None:
            return
        if self._waiting:
            self._queue(frames)
            return
        sent = 0
        with suppress(BlockingIOError, ConnectionError):  # who reads finds the end
            sent = self._socket.send(frames)
        self._count(len(frames), count)
        if sent < len(frames):
            # A frame that has begun has to be finished, so the rest of this is taken as it is.
            self._keep(bytes(frames[sent:]))

    def _queue(self, frames: memoryview) -> None:
        at = 0
        while at < len(frames):
            after = at + LENGTH_BYTES + int.from_bytes(frames[at : at + LENGTH_BYTES])
            if self._waiting_bytes + after - at > MAX_WAITING:
                self.dropped += 1
            else:
                self._count(after - at, 1)
                self._keep(bytes(frames[at:after]))
            at = after

    def _count(self, size: int, count: int) -> None:
        self.rx_packets += count
        self.rx_bytes += size - count * LENGTH_BYTES

    def _keep(self, piece: bytes) -> None:
        self._waiting.append(piece)
        self._waiting_bytes += len(piece)
        self._has_waiting.set()

    async def drain(self, connection: socket.socket) -> None:
        """Send what waits whenever the machine can take it; until cancelled, or it hangs up."""
        while True:
            if not self._waiting:
                self._has_waiting = anyio.Event()
                await self._has_waiting.wait()
            await anyio.wait_writable(connection)
            try:
                self._send_waiting(connection)
            except BlockingIOError:
                continue
            except ConnectionError:
                return

    def _send_waiting(self, connection: socket.socket) -> None:
        while self._waiting:
            piece = self._waiting[0]
            sent = connection.send(piece)
            self._waiting_bytes -= sent
            if sent < len(piece):
                self._waiting[0] = piece[sent:]
                return
            self._waiting.popleft()


class Segment:
    """The machines that hear each other."""

    def __init__(self) -> None:
        self.plugs: dict[str, Plug] = {}
        self._by_mac: dict[bytes, Plug] = {}

    def add(self, port: Port) -> Plug:
        """Make a machine's place, or find it.

        Raises: Conflict when the MAC, or the machine's port, is another's; InvalidInput.
        """
        old = self.plugs.get(port.machine_id)
        if old is not None:
            if old.port != port:
                raise errors.Conflict(
                    f"machine {port.machine_id} has another port in network {port.network_id}"
                )
            return old
        plug = Plug(port)
        if self._by_mac.setdefault(plug.guard.mac, plug) is not plug:
            raise errors.Conflict(f"two machines of network {port.network_id} have MAC {port.mac}")
        self.plugs[port.machine_id] = plug
        return plug

    def drop(self, plug: Plug) -> None:
        del self.plugs[plug.port.machine_id]
        del self._by_mac[plug.guard.mac]

    def forward(self, source: Plug, data: bytes) -> int:
        """Pass on all frames that have arrived as a whole; return where the rest begins.

        Raises: Lying; what came before is passed on.
        """
        view = memoryview(data)
        allows, find, ways = source.guard.allows, self._by_mac.get, source.ways
        at, end = 0, len(data)
        # Frames in a row for one machine, not yet sent to it.
        row_at, row_count, target = 0, 0, None
        try:
            while end - at >= LENGTH_BYTES:
                size = int.from_bytes(data[at : at + LENGTH_BYTES])
                if not ETHERNET_BYTES <= size <= MAX_FRAME:
                    raise Lying(f"a frame of {size} bytes was announced")
                frame, after = at + LENGTH_BYTES, at + LENGTH_BYTES + size
                if after > end:
                    break
                source.tx_packets += 1
                source.tx_bytes += size
                new = aside = None
                if not allows(data, frame, after):
                    source.refused += 1
                elif data[frame] & 1:  # for many
                    aside = self.plugs.values()
                else:
                    new = find(data[frame : frame + 6])
                    if new is source:
                        new = None
                    elif ways and new is not None and new.port.machine_id in ways:
                        new, aside = None, (new,)
                if new is not target:
                    if target is not None:
                        target.send(view[row_at:at], row_count)
                    row_at, row_count, target = at, 0, new
                if aside is not None:
                    self._spread(source, aside, view[at:after])
                row_count += 1
                at = after
        finally:
            if target is not None:
                target.send(view[row_at:at], row_count)
        return at

    def _spread(self, source: Plug, targets: Iterable[Plug], frame: memoryview) -> None:
        for target in targets:
            if target is source:
                continue
            way = source.ways.get(target.port.machine_id)
            if way is None:
                target.send(frame, 1)
            else:
                way(bytes(frame))

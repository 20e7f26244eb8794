"""What the switch makes of what a machine writes, however it is cut and whatever it announces."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import frames
from microvm_orchestrator.network.base import Port
from microvm_orchestrator.network.segment import MAX_FRAME, MAX_WAITING, Lying, Plug, Segment

ROOM = 1 << 22


class Room:
    """Three machines in a segment, whose sockets have room for everything."""

    def __init__(self, stack: ExitStack) -> None:
        self.segment = Segment()
        self.plugs: list[Plug] = []
        self._ends: list[socket.socket] = []
        for number in range(3):
            port = Port("net", f"m-{number}", f"02:00:00:00:00:0{number}")
            self.segment.add(port)
            plug = self.segment.plugs[port.machine_id]
            ours, theirs = socket.socketpair()
            for end in (ours, theirs):
                stack.enter_context(end).setblocking(False)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
            plug.plug_in(ours)
            self.plugs.append(plug)
            self._ends.append(theirs)

    def write(self, pieces: list[bytes]) -> None:
        """Let the first machine write, as the task that reads from it sees it."""
        rest = b""
        for piece in pieces:
            data = rest + piece
            rest = data[self.segment.forward(self.plugs[0], data) :]
            assert len(rest) <= MAX_FRAME + 4

    def received(self, number: int) -> bytes:
        said = b""
        while True:
            try:
                said += self._ends[number].recv(ROOM)
            except BlockingIOError:
                return said


@contextmanager
def room() -> Generator[Room]:
    with ExitStack() as stack:
        yield Room(stack)


def mac(number: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, number])


def on_wire(frame: bytes) -> bytes:
    return len(frame).to_bytes(4) + frame


def joined(to: bytes, by: bytes, text: bytes) -> bytes:
    return to + by + b"\x88\xb5" + text


# To each machine, to itself, to all, to nobody; with its own name and with another.
FRAMES = st.builds(
    joined,
    st.sampled_from([mac(0), mac(1), mac(2), mac(9), frames.EVERYBODY, frames.NEIGHBOURS]),
    st.sampled_from([mac(0), mac(0), mac(0), mac(1), frames.EVERYBODY]),
    st.binary(max_size=200),
)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places} | {len(data)})
    return [data[a:b] for a, b in itertools.pairwise([0, *ends])]


@given(st.lists(FRAMES, max_size=20), st.lists(st.integers(0, 1 << 16), max_size=10))
def test_each_machine_gets_what_is_for_it_in_order_wherever_the_writes_are_cut(
    sent: list[bytes], places: list[int]
) -> None:
    with room() as each:
        each.write(cut(b"".join(map(on_wire, sent)), places))
        own = [frame for frame in sent if frame[6:12] == mac(0)]
        for number in (0, 1, 2):
            meant = [
                frame for frame in own if number and (frame[0] & 1 or frame[:6] == mac(number))
            ]
            assert each.received(number) == b"".join(map(on_wire, meant))
            assert each.plugs[number].rx_packets == len(meant)
            assert each.plugs[number].rx_bytes == sum(map(len, meant))
        assert each.plugs[0].refused == len(sent) - len(own)
        assert each.plugs[0].tx_bytes == sum(map(len, sent))


LIES = st.one_of(st.integers(0, 13), st.integers(MAX_FRAME + 1, 2**32 - 1))


@given(st.lists(FRAMES, max_size=5), LIES, st.binary(max_size=100))
def test_a_length_that_no_frame_has_is_a_lie_and_what_came_before_it_is_not_lost(
    sent: list[bytes], length: int, rest: bytes
) -> None:
    with room() as each:
        honest = on_wire(frames.plain(mac(1), mac(0)))
        data = b"".join(map(on_wire, sent)) + honest
        with pytest.raises(Lying, match=f"a frame of {length} bytes"):
            each.write([data + length.to_bytes(4) + rest])
        assert each.received(1).endswith(honest)


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=300), max_size=10))
def test_noise_reaches_nobody_and_breaks_nothing(noise: list[bytes]) -> None:
    with room() as each:
        with suppress(Lying):
            each.write(noise)
        # Nobody guesses a MAC of six bytes by chance.
        assert [each.received(number) for number in range(3)] == [b"", b"", b""]


def test_a_frame_announced_and_never_finished_takes_no_more_than_a_frame() -> None:
    with room() as each:
        each.write([(MAX_FRAME).to_bytes(4), *[bytes(1000)] * 60])
        assert each.received(1) == b""


def test_the_largest_frame_passes() -> None:
    with room() as each:
        frame = frames.plain(mac(1), mac(0)).ljust(MAX_FRAME, b"x")
        each.write([on_wire(frame)])
        assert each.received(1) == on_wire(frame)


def test_what_waits_for_a_slow_machine_is_bounded_and_only_whole_frames_are_dropped() -> None:
    frame = on_wire(frames.plain(mac(1), mac(0)).ljust(1500, b"x"))
    with room() as each:
        sent = 0
        while each.plugs[1].dropped < 100:
            each.write([frame * 10])
            sent += 10
        assert each.plugs[1].rx_packets + each.plugs[1].dropped == sent
        said = each.received(1)
        assert len(said) + MAX_WAITING >= each.plugs[1].rx_packets * len(frame)
        assert frame.startswith(said[len(said) // len(frame) * len(frame) :])

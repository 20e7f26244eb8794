"""The kernel's netem in its own words: what delays, spoils and loses frames in a queue.

pyroute2 knows neither its distributions nor its loss in bursts, so its messages are written here,
after linux/pkt_sched.h. A kernel tells of a queue all but the table its delays are drawn from; so
a queue's handle says which it was, and whether frames are delayed only for others to overtake.
Every function blocks for a moment, in the network namespace of the calling thread. Above stand
queues; below, a socket.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator, Iterable
from functools import lru_cache

from microvm_orchestrator import errors
from microvm_orchestrator.network.impairment import HOLD_S, Bursts, Impairment, Spread, aside

_NEW_QDISC, _GET_QDISC = 36, 38
_REQUEST, _ACK, _EXCLUSIVE, _CREATE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
_ERROR, _DONE = 2, 3
_KIND, _OPTIONS = 1, 2
_DISTRIBUTION, _REORDER, _CORRUPT, _LOSS, _LATENCY64, _JITTER64 = 2, 3, 4, 5, 10, 11
_GILBERT_ELLIOTT = 2
_NESTED = 0x8000

_HEADER = struct.Struct("=IHHII")
_QUEUE = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_NETEM = struct.Struct("=6I")
_ALL = (1 << 32) - 1
# Frames that wait; as many as on a way in userspace.
_LIMIT = 1000
# One deviation in a table of delays, and how long that is.
_SCALE, _TABLE = 8192, 4096
_SPREADS = tuple(Spread)
# In a handle, above the number of the class.
_OURS, _HOLDS, _NUMBER_BITS = 8, 4, 12


def add(index: int, parent: int, number: int, its: Impairment) -> None:
    """Let a class of an interface disturb frames like this. Raises: Unavailable."""
    mark = _OURS | _SPREADS.index(its.spread) | (_HOLDS if _holds(its) else 0)
    handle = (mark << _NUMBER_BITS | number) << 16
    body = _QUEUE.pack(0, index, handle, parent, 0)
    body += _attribute(_KIND, b"netem\0") + _attribute(_OPTIONS, options(its))
    for _ in _ask(_NEW_QDISC, _ACK | _CREATE | _EXCLUSIVE, body):
        pass


def found(index: int) -> dict[int, Impairment]:
    """Read what disturbs frames in the classes of an interface, by their numbers."""
    disturbed: dict[int, Impairment] = {}
    for body in _ask(_GET_QDISC, _DUMP, _QUEUE.pack(0, index, 0, 0, 0)):
        _, at, handle, _, _ = (0, *_QUEUE.unpack_from(body)[1:])
        attributes = dict(_attributes(body[_QUEUE.size :]))
        if at == index and attributes.get(_KIND) == b"netem\0":
            mark = handle >> 16 >> _NUMBER_BITS
            number = handle >> 16 & ((1 << _NUMBER_BITS) - 1)
            disturbed[number] = read(attributes[_OPTIONS], mark)
    return disturbed


def options(its: Impairment) -> bytes:
    """Write down what a queue is to do."""
    delay_s, reorder = its.delay_s, its.reorder
    if _holds(its):
        # All others overtake those that are held.
        delay_s, reorder = HOLD_S, 1 - its.reorder
    text = _NETEM.pack(0, _LIMIT, 0, 1 if reorder else 0, _share(its.duplicate), 0)
    text += _attribute(_LATENCY64, struct.pack("=q", _nanoseconds(delay_s)))
    text += _attribute(_JITTER64, struct.pack("=q", _nanoseconds(its.jitter_s)))
    if its.jitter_s and its.spread is not Spread.UNIFORM:
        text += _attribute(_DISTRIBUTION, table(its.spread))
    if reorder:
        text += _attribute(_REORDER, struct.pack("=II", _share(reorder), 0))
    if its.corrupt:
        text += _attribute(_CORRUPT, struct.pack("=II", _share(its.corrupt), 0))
    if (chain := its.chain) is not None:
        figures = (chain.worsens, chain.recovers, 1 - chain.loss_bad, chain.loss_good)
        model = struct.pack("=4I", *map(_share, figures))
        text += _attribute(_LOSS | _NESTED, _attribute(_GILBERT_ELLIOTT, model))
    return text


def read(said: bytes, mark: int) -> Impairment:
    """Read what a queue does."""
    _, _, _, _, duplicate, _ = _NETEM.unpack_from(said)
    attributes = dict(_attributes(said[_NETEM.size :]))
    (delay,) = struct.unpack_from("=q", attributes[_LATENCY64])
    (jitter,) = struct.unpack_from("=q", attributes[_JITTER64])
    delay_s, reorder = delay / 1e9, _first_share(attributes.get(_REORDER))
    if mark & _HOLDS:
        delay_s, reorder = 0.0, 1 - reorder
    bursts = None
    for kind, model in _attributes(attributes.get(_LOSS, b"")):
        if kind == _GILBERT_ELLIOTT:
            worsens, recovers, passes_bad, loss_good = (
                figure / _ALL for figure in struct.unpack_from("=4I", model)
            )
            bursts = Bursts(worsens, recovers, 1 - passes_bad, loss_good)
    return Impairment(
        bursts=bursts,
        delay_s=delay_s,
        jitter_s=jitter / 1e9,
        spread=_SPREADS[mark & 3] if jitter else Spread.UNIFORM,
        corrupt=_first_share(attributes.get(_CORRUPT)),
        duplicate=duplicate / _ALL,
        reorder=reorder,
    )


@lru_cache
def table(spread: Spread) -> bytes:
    """Tabulate delays as the kernel draws them: the same as in userspace."""
    drawn = [round(_SCALE * aside(spread, (place + 0.5) / _TABLE)) for place in range(_TABLE)]
    return struct.pack(f"={_TABLE}h", *(max(-32767, min(32767, each)) for each in drawn))


def _holds(its: Impairment) -> bool:
    return bool(its.reorder) and not its.delay_s


def _share(share: float) -> int:
    return round(share * _ALL)


def _first_share(pair: bytes | None) -> float:
    return struct.unpack_from("=I", pair)[0] / _ALL if pair else 0.0


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _attribute(kind: int, value: bytes) -> bytes:
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def _attributes(text: bytes) -> Iterable[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(text):
        size, kind = _ATTRIBUTE.unpack_from(text, at)
        if size < _ATTRIBUTE.size:
            return
        yield kind & ~_NESTED, text[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4


def _ask(kind: int, flags: int, body: bytes) -> Generator[bytes]:
    """Say one thing to the kernel, and give the messages that it answers with."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        asking.bind((0, 0))
        size = _HEADER.size + len(body)
        asking.send(_HEADER.pack(size, kind, flags | _REQUEST, 1, 0) + body)
        while True:
            answer = asking.recv(1 << 17)
            at = 0
            while at < len(answer):
                size, said, _, _, _ = _HEADER.unpack_from(answer, at)
                message = answer[at + _HEADER.size : at + size]
                at += size + -size % 4
                if said == _ERROR:
                    _check(struct.unpack_from("=i", message)[0])
                    return
                if said == _DONE:
                    return
                yield message


def _check(number: int) -> None:
    if number:
        raise errors.Unavailable(
            f"the kernel does not disturb frames: {os.strerror(-number)}",
            hint="the daemon needs CAP_NET_ADMIN for this" if -number == errno.EPERM else None,
        )

"""The kernel's netem in its own words: what delays, spoils and loses frames in a queue.

pyroute2 knows neither its distributions nor its loss in bursts, so its messages are written here,
after linux/pkt_sched.h. A kernel tells of a queue all but the table its delays are drawn from; so
a queue's handle says which it was, and whether frames are delayed only for others to overtake.
Every function blocks for a moment, in the network namespace of the calling thread. Above stand
queues; below, messages of netlink.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from functools import lru_cache

from microvm_orchestrator import errors
from microvm_orchestrator.network import messages
from microvm_orchestrator.network.impairment import HOLD_S, Bursts, Impairment, Spread, aside

_NEW_QDISC, _GET_QDISC = 36, 38
_KIND, _OPTIONS = 1, 2
_DISTRIBUTION, _REORDER, _CORRUPT, _LOSS, _LATENCY64, _JITTER64 = 2, 3, 4, 5, 10, 11
_GILBERT_ELLIOTT = 2

_QUEUE = struct.Struct("=BxxxiIII")
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
    body += messages.attribute(_KIND, b"netem\0") + messages.attribute(_OPTIONS, options(its))
    _ask(_NEW_QDISC, messages.ACK | messages.CREATE | messages.EXCLUSIVE, body)


def found(index: int) -> dict[int, Impairment]:
    """Read what disturbs frames in the classes of an interface, by their numbers."""
    disturbed: dict[int, Impairment] = {}
    for body in _ask(_GET_QDISC, messages.DUMP, _QUEUE.pack(0, index, 0, 0, 0)):
        _, at, handle, _, _ = (0, *_QUEUE.unpack_from(body)[1:])
        attributes = dict(messages.attributes(body[_QUEUE.size :]))
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
    text += messages.attribute(_LATENCY64, struct.pack("=q", _nanoseconds(delay_s)))
    text += messages.attribute(_JITTER64, struct.pack("=q", _nanoseconds(its.jitter_s)))
    if its.jitter_s and its.spread is not Spread.UNIFORM:
        text += messages.attribute(_DISTRIBUTION, table(its.spread))
    if reorder:
        text += messages.attribute(_REORDER, struct.pack("=II", _share(reorder), 0))
    if its.corrupt:
        text += messages.attribute(_CORRUPT, struct.pack("=II", _share(its.corrupt), 0))
    if (chain := its.chain) is not None:
        figures = (chain.worsens, chain.recovers, 1 - chain.loss_bad, chain.loss_good)
        model = struct.pack("=4I", *map(_share, figures))
        text += messages.nested(_LOSS, messages.attribute(_GILBERT_ELLIOTT, model))
    return text


def read(said: bytes, mark: int) -> Impairment:
    """Read what a queue does."""
    _, _, _, _, duplicate, _ = _NETEM.unpack_from(said)
    attributes = dict(messages.attributes(said[_NETEM.size :]))
    (delay,) = struct.unpack_from("=q", attributes[_LATENCY64])
    (jitter,) = struct.unpack_from("=q", attributes[_JITTER64])
    delay_s, reorder = delay / 1e9, _first_share(attributes.get(_REORDER))
    if mark & _HOLDS:
        delay_s, reorder = 0.0, 1 - reorder
    bursts = None
    for kind, model in messages.attributes(attributes.get(_LOSS, b"")):
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


def _ask(kind: int, flags: int, body: bytes) -> list[bytes]:
    """Say one thing to the kernel. Raises: Unavailable."""
    try:
        return messages.ask(socket.NETLINK_ROUTE, messages.message(kind, flags, body))
    except OSError as error:
        raise errors.Unavailable(
            f"the kernel does not disturb frames: {os.strerror(error.errno or 0)}",
            hint="the daemon needs CAP_NET_ADMIN for this" if error.errno == errno.EPERM else None,
        ) from error

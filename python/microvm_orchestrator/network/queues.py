"""The queues of interfaces: what leaves this host by one waits there, in classes of their own.

What goes out of a machine's tap goes to the machine, so the way from a source is a class of the
*target's* queue, which the rules of the bridge put its frames in; all others pass by. Every
function blocks for a millisecond or so, and works in the network namespace that the calling thread
is in. Above stand the kernel's ways; below, pyroute2.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, cast

from microvm_orchestrator import errors
from microvm_orchestrator.machine import tap
from microvm_orchestrator.network import netem, netlink
from microvm_orchestrator.network.impairment import Behaviour, Impairment

_ROOT = 0xFFFFFFFF
_MAJOR = 0x10000
# A name that no interface of a port has.
_PROBE = "mvp{}"


_WITHOUT_NETEM = frozenset(
    {Behaviour.CUT, Behaviour.LOSS, Behaviour.MTU, Behaviour.DNS, Behaviour.RATE}
)
# Of classes that are there for something else than a rate.
_UNLIMITED = 1 << 37
# What a class sends in its turn. Left out, the kernel works one out and complains in its log.
_QUANTUM = 65_536


def lacks(kind: str) -> bool:
    """Try whether this kernel has queues of a kind, on an interface that is there for no longer.

    Raises: Unavailable when it cannot be tried.
    """
    from pyroute2 import NetlinkError  # noqa: PLC0415 - it is slow, and few need it

    name = _PROBE.format(os.getpid())
    with tap.passing_tap(name), netlink.opened() as opened:
        try:
            opened.tc("add", kind, index=socket.if_nametoindex(name), handle=_MAJOR)
        except NetlinkError as error:
            if cast("int", error.code) == errno.ENOENT:
                return True
            raise
    return False


def queues_of(names: Collection[str]) -> dict[str, dict[int, Impairment]]:
    """Read the classes of those interfaces that have some of ours, by name and number."""
    with netlink.opened() as opened:
        ours = {
            int(each["index"])
            for each in list(opened.get_qdiscs())
            if each["parent"] == _ROOT and each["handle"] == _MAJOR and _is_htb(each)
        }
        found: dict[str, dict[int, Impairment]] = {}
        for name in names:
            if (index := _index(name)) in ours:
                found[name] = _classes_of(opened, index)
        return found


def _classes_of(opened: Any, index: int) -> dict[int, Impairment]:
    rates = {
        int(each["handle"]) - _MAJOR: _rate_of(each)
        for each in list(opened.get_classes(index=index))
    }
    disturbed = netem.found(index)
    return {
        number: replace(
            disturbed.get(number, Impairment()), rate_bytes=rate if rate < _UNLIMITED else None
        )
        for number, rate in rates.items()
    }


def give(name: str, queues: Mapping[int, Impairment]) -> None:
    """Let an interface have these classes and no others; what waited is lost.

    What the rules of the bridge do is none of its business.

    Raises: Unavailable, with no class of ours left.
    """
    take(name)
    if not queues:
        return
    try:
        with netlink.opened() as opened:
            index = _index(name)
            # Class 0 is none: what no rule names passes by.
            opened.tc("add", "htb", index, handle=_MAJOR, default=0)
            for number, its in sorted(queues.items()):
                opened.tc(
                    "add-class",
                    "htb",
                    index,
                    handle=_MAJOR + number,
                    parent=_MAJOR,
                    rate=its.rate_bytes or _UNLIMITED,
                    quantum=_QUANTUM,
                )
                if its.needs - _WITHOUT_NETEM:
                    netem.add(index, _MAJOR + number, number, its)
    except BaseException:
        take(name)
        raise


def take(name: str) -> None:
    """Give an interface back the queue that it was made with, unless it has that."""
    if name in queues_of([name]):
        with netlink.opened() as opened:
            opened.tc("del", index=_index(name), handle=0, parent=_ROOT)


def _is_htb(found: Any) -> bool:
    return bool(found.get_attr("TCA_KIND") == "htb")


def _rate_of(found: Any) -> int:
    options = found.get_attr("TCA_OPTIONS")
    large = options.get_attr("TCA_HTB_RATE64")
    return int(large or options.get_attr("TCA_HTB_PARMS")["rate"])


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise errors.NotFound(f"there is no network interface {name}") from None

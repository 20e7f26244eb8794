"""Bridges and taps of the network namespace that the calling thread is in, by pyroute2.

Every function blocks for a millisecond or so and is called in a worker thread. Above stand the
kernel's networks.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from microvm_orchestrator import errors
from microvm_orchestrator.machine import tap
from microvm_orchestrator.network import messages

# An interface that gives itself no IPv6 address says nothing of its own to the machines.
_SILENT = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
# A MAC that is known to be behind an interface, and belongs to no one here.
_STATIC = 0x40
_OF_THE_BRIDGE = 0x04
# Of a message about an interface, after linux/if_link.h.
_GET_LINK, _NAME, _ALIAS, _COUNTED = 18, 3, 20, 23
_LINK = struct.Struct("=BxHiII")
_COUNTS = struct.Struct("=8Q")


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as it stands, and what has gone through it, as this host sees it."""

    index: int
    name: str
    alias: str
    rx_packets: int
    rx_bytes: int
    tx_packets: int
    tx_bytes: int
    tx_dropped: int


def interfaces() -> list[Interface]:
    """Raises: Unavailable."""
    with _told():
        return _links(messages.DUMP)


def find(name: str) -> Interface | None:
    """Raises: Unavailable."""
    with _told():
        try:
            (found,) = _links(messages.ACK, messages.attribute(_NAME, name.encode() + b"\0"))
        except OSError as error:
            if error.errno == errno.ENODEV:
                return None
            raise
    return found


def unhook() -> None:
    """Let rules for routed packets take no part in bridges, in a namespace that is ours alone."""
    for name in ("arptables", "ip6tables", "iptables"):
        # There is none where the kernel cannot do it anyway.
        with suppress(FileNotFoundError):
            Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("0")


def make_bridge(name: str) -> None:
    """Make a bridge that speaks no protocol and floods what is for many."""
    with opened() as netlink:
        netlink.link(
            "add",
            ifname=name,
            kind="bridge",
            br_forward_delay=0,
            br_stp_state=0,
            br_mcast_snooping=0,
        )
        # In two steps, for an interface begins to speak as soon as it is up.
        netlink.link("set", index=_index(name), IFLA_AF_SPEC=_SILENT)
        netlink.link("set", index=_index(name), state="up")


def make_tap(name: str) -> None:
    """Make a tap that is down: what a machine writes to it goes nowhere."""
    try:
        tap.make_tap(name)
    except OSError as error:
        raise errors.Unavailable(f"no tap can be made here: {error.strerror}") from error
    with opened() as netlink:
        netlink.link("set", index=_index(name), IFLA_AF_SPEC=_SILENT)


def mark(name: str, alias: str) -> None:
    with opened() as netlink:
        netlink.link("set", index=_index(name), ifalias=alias)


def plug(name: str, bridge: str, mac: str) -> None:
    """Put a tap into a bridge, with the one MAC behind it. Nothing is learned, nothing guessed."""
    with opened() as netlink:
        index = _index(name)
        netlink.link("set", index=index, master=_index(bridge))
        netlink.brport("set", index=index, learning=0, unicast_flood=0)
        netlink.fdb("replace", ifindex=index, lladdr=mac, state=_STATIC, flags=_OF_THE_BRIDGE)
        netlink.link("set", index=index, state="up")


def unplug(name: str) -> None:
    with opened() as netlink:
        index = _index(name)
        # Down first: outside of a bridge its frames would be for this host.
        netlink.link("set", index=index, state="down")
        netlink.link("set", index=index, master=0)


def delete(name: str) -> None:
    """Take an interface away; also one that is not there."""
    try:
        index = socket.if_nametoindex(name)
    except OSError:
        return
    with opened() as netlink:
        netlink.link("del", index=index)


@contextmanager
def opened() -> Generator[Any]:
    """Talk to the kernel. Raises: Unavailable, with its reason."""
    from pyroute2 import IPRoute, NetlinkError  # noqa: PLC0415 - it is slow, and few need it

    with _told(), cast("Any", IPRoute()) as netlink:
        try:
            yield netlink
        except NetlinkError as error:
            raise _refused(cast("int", error.code)) from error


@contextmanager
def _told() -> Generator[None]:
    """Say why the kernel refuses something. Raises: Unavailable."""
    try:
        yield
    except OSError as error:
        raise _refused(error.errno or 0) from error


def _refused(number: int) -> errors.Unavailable:
    return errors.Unavailable(
        f"the kernel does not change its networks: {os.strerror(number)}",
        hint="the daemon needs CAP_NET_ADMIN for this" if number == errno.EPERM else None,
    )


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise errors.Unavailable(f"network interface {name} is gone") from None


def _links(flags: int, which: bytes = b"") -> list[Interface]:
    """Read interfaces, in less time than pyroute2 takes to begin. Raises: OSError."""
    asked = messages.message(_GET_LINK, flags, bytes(_LINK.size) + which)
    return [_read(body) for body in messages.ask(socket.NETLINK_ROUTE, asked)]


def _read(body: bytes) -> Interface:
    _, _, index, _, _ = _LINK.unpack_from(body)
    said = dict(messages.attributes(body[_LINK.size :]))
    counted = said.get(_COUNTED, b"").ljust(_COUNTS.size, b"\0")
    rx_packets, tx_packets, rx_bytes, tx_bytes, _, _, _, tx_dropped = _COUNTS.unpack_from(counted)
    name, alias = (
        said.get(each, b"").rstrip(b"\0").decode(errors="replace") for each in (_NAME, _ALIAS)
    )
    return Interface(index, name, alias, rx_packets, rx_bytes, tx_packets, tx_bytes, tx_dropped)

"""The seam between what machines are connected by and who connects them: a plan and a protocol.

A network is a segment of its own: frames go between the machines in it and nowhere else, neither to
this host nor to another network. Each machine has one port in it, with a MAC and addresses that are
its own; what claims to come from others is not passed on. The caller keeps networks and ports in
its records and is asked for nothing twice: after a restart it says them again, and everything here
can be said again. Above stand lifecycle, reconcile and the service; below, machines and their
links.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_interface
from pathlib import Path
from typing import NamedTuple, Protocol

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Link
from microvm_orchestrator.model.names import NAME
from microvm_orchestrator.network.impairment import Behaviour, Impairment


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise errors.InvalidInput(f"{name!r} is no name of a machine or a network")


def _check_address(text: str) -> None:
    try:
        written = str(ip_interface(text))
    except ValueError:
        written = None
    # As it is written here it stands in rules and aliases.
    if written != text or "%" in text:
        raise errors.InvalidInput(f"{text!r} is no address of a machine with its prefix")


@dataclass(frozen=True, slots=True)
class Network:
    """A segment, and the addresses that are given away in it."""

    network_id: str
    # At most one of each family: "10.80.3.0/24", "fd80:3::/64".
    prefixes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.network_id)


@dataclass(frozen=True, slots=True)
class Port:
    """A machine's place in a network; see `addresses.assign`."""

    network_id: str
    machine_id: str
    mac: str
    # Each with its prefix: "10.80.3.17/24". With none, the machine may say what it likes above
    # Ethernet; with any, it speaks ARP, IPv4 and IPv6 and from these addresses alone.
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.network_id)
        _check_name(self.machine_id)
        for text in self.addresses:
            _check_address(text)

    @property
    def ipv4(self) -> str | None:
        return self._of(4)

    @property
    def ipv6(self) -> str | None:
        return self._of(6)

    def _of(self, version: int) -> str | None:
        found = (text for text in self.addresses if ip_interface(text).version == version)
        return next(found, None)


@dataclass(frozen=True, slots=True)
class PortUsage:
    """What has gone through a port since it was prepared, as the machine sees it."""

    # What reached the machine.
    rx_packets: int = 0
    rx_bytes: int = 0
    # What the machine sent, wherever it came to.
    tx_packets: int = 0
    tx_bytes: int = 0
    # Meant for the machine, which took it too slowly.
    dropped: int = 0
    # Sent by the machine in the name of somebody else, or of a kind that it may not send.
    refused: int = 0


class PortChange(StrEnum):
    """What happens to a port without having been asked for."""

    # The machine broke the rules of the wire, so it is listened to no more.
    CUT_OFF = "cut_off"
    # The machine's side was closed; so it is when the machine ends.
    HUNG_UP = "hung_up"


@dataclass(frozen=True, slots=True)
class PortEvent:
    """A port is connected no more. It can be connected again."""

    network_id: str
    machine_id: str
    change: PortChange
    # In words for a person.
    reason: str


class Ends(NamedTuple):
    """A way from one machine of a network to another, by their ids."""

    source: str
    target: str

    def __str__(self) -> str:
        return f"{self.source} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a kind of networks can do to ways on this host, as it was tried out."""

    # As `networks.kind` names it.
    kind: str
    can: frozenset[Behaviour]
    # In words for a person, of what it can not.
    reason: str = ""


# Called for one port after the other; what is sent waits for it only at that port.
OnPortEvent = Callable[[PortEvent], Awaitable[None]]


class Networks(Protocol):
    """All networks of this host, of one kind."""

    async def make(self, network: Network) -> None:
        """Make a network, or leave the one that is there as it is.

        Raises: InvalidInput, Unavailable when this host cannot.
        """
        ...

    async def remove(self, network_id: str) -> None:
        """Take a network away, with all ports in it; also one that is not there."""
        ...

    async def found(self) -> list[str]:
        """Name the networks that are here and ours."""
        ...

    async def prepare(self, port: Port) -> Link:
        """Make a port, or leave the one that is there, and return the link its machine starts with.

        Raises: NotFound when there is no such network, Conflict when the MAC is another's,
            InvalidInput, Unavailable.
        """
        ...

    async def connect(self, port: Port, link: Path) -> None:
        """Let frames pass between a machine that runs and the network.

        `link` is the machine's of `Machine.links`. One who was connected is connected anew.
        Raises: NotFound when the port was not prepared, Unavailable when the machine does not
            answer there.
        """
        ...

    async def disconnect(self, port: Port) -> None:
        """Let no more frames pass, as if the cable was pulled; also where none passed."""
        ...

    async def release(self, port: Port) -> None:
        """Take away all that was made for a port, once its machine has ended or never started."""
        ...

    async def usage(self, port: Port) -> PortUsage:
        """Raises: NotFound."""
        ...

    async def sweep(self, networks: Collection[str], ports: Collection[Port]) -> list[str]:
        """Take away what is ours and not among these, and name it in words for a log."""
        ...

    async def abilities(self) -> Abilities:
        """Try out what can be done to ways here. Raises: Unavailable."""
        ...

    async def check(self, impairments: Collection[Impairment]) -> None:
        """Tell in advance whether all of this can be done. Raises: FaultNotOffered, Unavailable."""
        ...

    async def impair(self, network_id: str, ways: Mapping[Ends, Impairment]) -> None:
        """Let frames from one machine to another meet this from now on, and nothing else.

        It holds for machines, with or without ports now, and through all that happens to their
        ports; said again it changes nothing. Others' ways stay as they are. Either all of it holds
        or, in the end, none.
        Raises: NotFound when there is no such network, FaultNotOffered, Unavailable.
        """
        ...

    async def mend(self, network_id: str, ways: Collection[Ends]) -> None:
        """Let frames pass again as they should; also where nothing was wrong. Raises: Unavailable.

        What was late on the way is lost.
        """
        ...

    async def impaired(self, network_id: str) -> dict[Ends, Impairment]:
        """Tell what frames do meet, as it stands where they pass. Raises: Unavailable."""
        ...

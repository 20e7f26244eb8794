"""The network in the kernel: a bridge for each network, and a tap for each port in it.

It needs CAP_NET_ADMIN and the program nft, and costs the daemon nothing while frames pass. What is
made stays when the daemon ends, and so do the machines' connections; each interface says in its
alias whose it is and what for, so a fresh daemon finds what is there. An alias is given last: what
has none was not finished. This host takes no part in the networks. Above stands the daemon; below,
netlink and nft.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.machine.base import Link, Tap
from microvm_orchestrator.machine.tap import within
from microvm_orchestrator.network import filters, netlink
from microvm_orchestrator.network.addresses import prefixes
from microvm_orchestrator.network.base import Abilities, Ends, Network, Port, PortUsage
from microvm_orchestrator.network.guard import Guard
from microvm_orchestrator.network.impairment import AS_IT_SHOULD_BE, Impairment
from microvm_orchestrator.network.kernel_ways import KernelWays
from microvm_orchestrator.network.netlink import Interface

T = TypeVar("T")

OWNER = "microvm-orchestrator"
# What the names of our interfaces begin with; the rest, of fifteen, is a digest.
BRIDGE, TAP = "mvb", "mvt"
_OURS = re.compile(f"({BRIDGE}|{TAP})[0-9a-f]{{12}}")
# The kernel keeps no longer alias.
_MAX_ALIAS = 254


class KernelNetworks:
    """All networks in one network namespace that belong to one owner."""

    def __init__(self, *, netns: Path | None = None, owner: str = OWNER) -> None:
        """`netns` is the file of a network namespace for nothing else; else the daemon's own.

        In its own, what this host's firewall says about bridges holds for these too.
        """
        self._netns = netns
        self._owner = owner
        # One verb at a time: each is several steps.
        self._turn = anyio.Lock()
        self._ways = KernelWays(netns)
        # By network and tap, the machines whose ways were spoken of; some are not there now.
        self._named: defaultdict[str, dict[str, str]] = defaultdict(dict)

    async def make(self, network: Network) -> None:
        prefixes(network)
        name, alias = self._bridge(network.network_id), self._alias_of(network.network_id)
        async with self._turn:
            if not await self._is_free(name, alias):
                # Who clears all rules of a host, as a firewall may, has cleared ours too.
                if self._owner not in await filters.tables(self._netns, "bridge"):
                    await filters.load(self._netns, filters.hiding(self._owner, TAP))
                return
            await filters.load(self._netns, filters.hiding(self._owner, TAP))
            if self._netns is not None:
                await self._do(netlink.unhook)
            await self._do(lambda: netlink.make_bridge(name))
            await self._do(lambda: netlink.mark(name, alias))

    async def remove(self, network_id: str) -> None:
        async with self._turn:
            await self._remove(network_id)

    async def found(self) -> list[str]:
        return sorted(await self._networks())

    async def prepare(self, port: Port) -> Link:
        guard = Guard(port)
        name, alias = self._tap(port), self._alias_for(port)
        async with self._turn:
            if port.network_id not in await self._networks():
                raise errors.NotFound(f"there is no network {port.network_id}")
            for other in (await self._ports()).values():
                if other.network_id == port.network_id:
                    _check_differs(port, guard, other)
            if await self._is_free(name, alias):
                await self._do(lambda: netlink.make_tap(name))
                await filters.load(self._netns, filters.guarding(name, port))
                taps = [*(await self._taps(port.network_id) or ()), name]
                await self._ways.give(self._bridge(port.network_id), name, taps)
                await self._do(lambda: netlink.mark(name, alias))
            elif name not in await filters.guarded(self._netns):
                await filters.load(self._netns, filters.guarding(name, port))
        return Link(port.mac, port.ipv4, ipv6=port.ipv6, tap=Tap(name, self._netns))

    async def connect(self, port: Port, link: Path) -> None:  # noqa: ARG002 # it has a tap
        async with self._turn:
            await self._find(port)
            tap, bridge = self._tap(port), self._bridge(port.network_id)
            await self._do(lambda: netlink.plug(tap, bridge, port.mac))

    async def disconnect(self, port: Port) -> None:
        async with self._turn:
            if self._tap(port) in await self._ports():
                await self._do(lambda: netlink.unplug(self._tap(port)))

    async def release(self, port: Port) -> None:
        async with self._turn:
            await self._release(self._tap(port))

    async def usage(self, port: Port) -> PortUsage:
        async with self._turn:
            tap = await self._find(port)
            refused = await filters.refused(self._netns, tap.name)
        return PortUsage(
            # What this host sends, the machine receives.
            rx_packets=tap.tx_packets,
            rx_bytes=tap.tx_bytes,
            tx_packets=tap.rx_packets,
            tx_bytes=tap.rx_bytes,
            dropped=tap.tx_dropped,
            refused=refused,
        )

    async def sweep(self, networks: Collection[str], ports: Collection[Port]) -> list[str]:
        swept: list[str] = []
        async with self._turn:
            for name, port in (await self._ports()).items():
                if port not in ports and port.network_id in networks:
                    await self._release(name)
                    swept.append(f"port of {port.machine_id} in network {port.network_id}")
            for network_id in await self._networks():
                if network_id not in networks:
                    await self._remove(network_id)
                    swept.append(f"network {network_id}")
            return swept + await self._sweep_unfinished()

    async def abilities(self) -> Abilities:
        async with self._turn:
            return await self._ways.abilities()

    async def check(self, impairments: Collection[Impairment]) -> None:
        async with self._turn:
            await self._ways.check(impairments)

    async def impair(self, network_id: str, ways: Mapping[Ends, Impairment]) -> None:
        async with self._turn:
            taps = await self._taps(network_id)
            if taps is None:
                raise errors.NotFound(f"there is no network {network_id}")
            await self._change(network_id, ways, taps)

    async def mend(self, network_id: str, ways: Collection[Ends]) -> None:
        async with self._turn:
            taps = await self._taps(network_id)
            if taps is not None:
                await self._change(network_id, dict.fromkeys(ways, AS_IT_SHOULD_BE), taps)

    async def impaired(self, network_id: str) -> dict[Ends, Impairment]:
        async with self._turn:
            taps = await self._taps(network_id)
            if taps is None:
                return {}
            standing = await self._ways.stand(self._bridge(network_id), taps)
        names = {**self._named[network_id], **taps}
        # One that nobody has spoken of since the daemon started is known by its tap only.
        return {
            Ends(names.get(source, source), names.get(target, target)): impairment
            for (source, target), impairment in standing.items()
        }

    async def _sweep_unfinished(self) -> list[str]:
        """Take away what a daemon left that was ended while it made or removed something."""
        swept: list[str] = []
        there = {each.name: each.alias for each in await self._do(netlink.interfaces)}
        for name, alias in there.items():
            if _OURS.fullmatch(name) and not alias:
                await self._release(name)
                swept.append(f"unfinished {name}")
        for name in await filters.guarded(self._netns):
            if _OURS.fullmatch(name) and name not in there:
                await filters.load(self._netns, filters.removing(name))
                swept.append(f"rules for {name}")
        for name in await filters.tables(self._netns, "bridge"):
            if _OURS.fullmatch(name) and name not in there:
                await self._ways.drop(name)
                swept.append(f"rules for {name}")
        return swept

    # Steps, within a turn.

    async def _remove(self, network_id: str) -> None:
        for name, port in (await self._ports()).items():
            if port.network_id == network_id:
                await self._release(name)
        await self._do(lambda: netlink.delete(self._bridge(network_id)))
        await self._ways.drop(self._bridge(network_id))
        self._named.pop(network_id, None)
        if not await self._networks():
            await filters.load(self._netns, filters.showing(self._owner))

    async def _release(self, tap: str) -> None:
        await self._do(lambda: netlink.delete(tap))
        await filters.load(self._netns, filters.removing(tap))

    async def _change(
        self, network_id: str, ways: Mapping[Ends, Impairment], taps: Collection[str]
    ) -> None:
        between: dict[tuple[str, str], Impairment] = {}
        for ends, impairment in ways.items():
            # One that is known by its tap only is spoken of by that.
            source, target = (
                each if _OURS.fullmatch(each) else self._tap_of(network_id, each) for each in ends
            )
            between[source, target] = impairment
            self._named[network_id] |= {source: ends.source, target: ends.target}
        await self._ways.change(self._bridge(network_id), between, taps)

    async def _taps(self, network_id: str) -> dict[str, str] | None:
        """Name the machines that have taps in a network now, by those; None without a network."""
        found = await self._do(netlink.interfaces)
        if not any(each.alias == self._alias_of(network_id) for each in found):
            return None
        return {
            name: port.machine_id
            for name, port in self._ports_of(found).items()
            if port.network_id == network_id
        }

    async def _find(self, port: Port) -> Interface:
        tap = await self._do(lambda: netlink.find(self._tap(port)))
        if tap is None or tap.alias != self._alias_for(port):
            raise errors.NotFound(
                f"machine {port.machine_id} has no port in network {port.network_id}"
            )
        return tap

    async def _is_free(self, name: str, alias: str) -> bool:
        """Tell whether an interface is still to be made. Raises: Conflict when it is another's."""
        there = await self._do(lambda: netlink.find(name))
        if there is None:
            return True
        if there.alias == alias:
            return False
        if there.alias:
            raise errors.Conflict(f"network interface {name} is already there, for {there.alias!r}")
        await self._do(lambda: netlink.delete(name))
        return True

    async def _networks(self) -> list[str]:
        begin = f"{self._owner} network "
        return [
            each.alias.removeprefix(begin)
            for each in await self._do(netlink.interfaces)
            if each.alias.startswith(begin)
        ]

    async def _ports(self) -> dict[str, Port]:
        """Read every port by the name of its tap."""
        return self._ports_of(await self._do(netlink.interfaces))

    def _ports_of(self, found: Collection[Interface]) -> dict[str, Port]:
        begin = f"{self._owner} port "
        ports: dict[str, Port] = {}
        for each in found:
            if each.alias.startswith(begin):
                network_id, machine_id, mac, *addresses = each.alias.removeprefix(begin).split()
                ports[each.name] = Port(network_id, machine_id, mac, tuple(addresses))
        return ports

    async def _do(self, act: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(lambda: within(self._netns, act))

    # Names.

    def _bridge(self, network_id: str) -> str:
        return BRIDGE + _digest(self._owner, network_id)

    def _tap(self, port: Port) -> str:
        return self._tap_of(port.network_id, port.machine_id)

    def _tap_of(self, network_id: str, machine_id: str) -> str:
        return TAP + _digest(self._owner, network_id, machine_id)

    def _alias_of(self, network_id: str) -> str:
        return f"{self._owner} network {network_id}"

    def _alias_for(self, port: Port) -> str:
        words = [self._owner, "port", port.network_id, port.machine_id, port.mac, *port.addresses]
        alias = " ".join(words)
        if len(alias) > _MAX_ALIAS:
            raise errors.InvalidInput(
                f"the names of {port.machine_id} and {port.network_id} are too long together"
            )
        return alias


def _check_differs(port: Port, guard: Guard, other: Port) -> None:
    if other.machine_id == port.machine_id and other != port:
        raise errors.Conflict(
            f"machine {port.machine_id} has another port in network {port.network_id}"
        )
    if other.machine_id != port.machine_id and Guard(other).mac == guard.mac:
        raise errors.Conflict(f"two machines of network {port.network_id} have MAC {port.mac}")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

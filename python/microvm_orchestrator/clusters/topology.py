"""Reading a topology: everything that is wrong with one is told at once, each with its path.

What a part may look like stands with the model; here the parts are held against each other. Nothing
is looked up: whether an image or a place is there is known when the cluster is defined. Below are
only the model and the errors.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.clusters import strict_yaml
from microvm_orchestrator.model.topology import (
    Backend,
    Bus,
    ExtraDisk,
    Nic,
    SnapshotNames,
    Ssh,
    Topology,
    TopologyNetwork,
    TopologyNode,
    base_name,
)

M = TypeVar("M", bound=BaseModel)

# A path, and what is wrong there.
Problem = tuple[str, str]
# A thousand bad lines help nobody.
_TOLD = 50
# The serial of a virtio disk has this many bytes.
_SERIAL_CHARS = 20
_NAMING = "must be 1 to 31 small letters, digits and hyphens, with no hyphen at either end"
# What a machine calls disks of its own.
_OWN_SERIALS = frozenset({"root", "scratch", "cache"})
_OPTION = "opt-"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read(text: str) -> Topology:
    """Make a topology of YAML. Raises: InvalidInput with all that is wrong."""
    found = strict_yaml.read(text)
    return _checked(found.value, found.problems)


def check(value: JsonValue) -> Topology:
    """Make a topology of what was read elsewhere. Raises: InvalidInput."""
    return _checked(value, [])


def _checked(value: JsonValue, problems: list[Problem]) -> Topology:
    if not isinstance(value, dict):
        what = "is empty" if value is None else "is not a mapping of keys to values"
        raise _told([*problems, ("", f"the topology {what}")])
    problems = list(problems)
    topology = None
    try:
        topology = Topology.model_validate(value)
    except ValidationError as error:
        problems += [_problem(each["loc"], each["type"], each["msg"]) for each in error.errors()]
    # What is well by itself is held against the rest, whatever is wrong elsewhere.
    parts = _Parts(value)
    known = {path for path, _ in problems}
    problems += [
        each for each in [*_network_problems(parts), *_node_problems(parts)] if each[0] not in known
    ]
    if problems or topology is None:
        raise _told(problems)
    return topology


def notes(topology: Topology) -> list[str]:
    """Tell what the topology says in vain, because nodes of this host have no use of it.

    It comes back with the answer, so that nobody believes it was done.
    """
    kinds = {topology.backend_of(node) for node in topology.nodes}
    told: list[str] = []
    if topology.base_image is not None and Backend.LIBVIRT not in kinds:
        told.append("base_image: microVMs boot an `image` of this host")
    if topology.overlay_dir is not None:
        told.append("overlay_dir: nodes have their disks in the state directory")
    told += [
        f"network {network.name}: bridge: this host names its bridges itself"
        for network in topology.every_network
        if network.bridge is not None
    ]
    if topology.ssh.key_path is not None:
        told.append("ssh.key_path: nodes that are reached by SSH let in a key of this host's")
    return told


class _Parts:
    """What is well of a topology's networks and nodes, each with its path."""

    def __init__(self, value: dict[str, JsonValue]) -> None:
        self.value = value
        self.networks: list[tuple[str, TopologyNetwork]] = [
            *_valid(TopologyNetwork, [("network", value.get("network"))]),
            *_valid(TopologyNetwork, _items(value, "networks")),
        ]
        self.nodes = list(_valid(TopologyNode, _items(value, "nodes")))
        # Of which we know that they are there, though not what else is wrong with them.
        self.named = [
            item.get("name")
            for _, item in [("", value.get("network")), *_items(value, "networks")]
            if isinstance(item, dict)
        ]
        self.first = next(iter(self.networks), None)

    def backend(self, node: TopologyNode) -> Backend:
        value = self.value
        usual = Backend.LIBVIRT if value.get("base_image") and not value.get("image") else "microvm"
        said = node.backend or value.get("backend") or usual
        return Backend.LIBVIRT if said == Backend.LIBVIRT else Backend.MICROVM


def _items(value: dict[str, JsonValue], key: str) -> list[tuple[str, JsonValue]]:
    items = value.get(key)
    if not isinstance(items, list):
        return []
    return [(strict_yaml.join(key, number), item) for number, item in enumerate(items)]


def _valid(model: type[M], items: Iterable[tuple[str, JsonValue]]) -> Iterator[tuple[str, M]]:
    for path, item in items:
        if not isinstance(item, dict):
            continue
        try:
            yield path, model.model_validate(item)
        except ValidationError as error:
            wrong = {each["loc"][0] for each in error.errors() if each["loc"]}
            rest = {key: value for key, value in item.items() if key not in wrong}
            with contextlib.suppress(ValidationError):
                yield path, model.model_validate(rest)


# Networks


def _network_problems(parts: _Parts) -> Iterator[Problem]:
    if not parts.value.get("network") and not parts.value.get("networks"):
        yield "network", "is missing: a cluster has at least one network"
    yield from _twice((path, network.name) for path, network in parts.networks)
    bridges = [(path, each.bridge) for path, each in parts.networks if each.bridge is not None]
    yield from _twice(bridges, "bridge")
    known: list[tuple[str, IPv4Network | IPv6Network]] = []
    for path, network in parts.networks:
        if network.subnet is None and network.subnet6 is None:
            yield f"{path}.subnet", "is missing: a network has a `subnet` or a `subnet6`"
        if network.rdma:
            yield f"{path}.rdma", "is not offered: networks of this host carry no RDMA"
        for key, text in (("subnet", network.subnet), ("subnet6", network.subnet6)):
            if text is None:
                continue
            prefix = ip_network(text)
            for other, taken in known:
                if taken.overlaps(prefix):
                    yield f"{path}.{key}", f"{prefix} overlaps {taken} of {other}"
            known.append((f"{path}.{key}", prefix))


# Nodes


def _node_problems(parts: _Parts) -> Iterator[Problem]:
    yield from _twice((path, node.name) for path, node in parts.nodes)
    base = parts.value.get("base_image")
    if isinstance(base, str) and not _IMAGE.fullmatch(base_name(base)):
        yield "base_image", f"{base_name(base)!r} cannot be the name of an image"
    used: dict[str, str] = {}
    disks: dict[str, str] = {}
    for path, node in parts.nodes:
        for where, nic in _nics(path, node, parts):
            yield from _nic_problems(where, nic, parts)
            for key, address in (("ip", nic.ip), ("ip6", nic.ip6)):
                if address is not None and address in used:
                    yield f"{where}.{key}", f"{address} is already that of {used[address]}"
                elif address is not None:
                    used[address] = node.name
        yield from _twice(
            ((f"{path}.networks[{n}]", nic.name) for n, nic in enumerate(node.networks)),
            "name",
            "the node has a place in it already",
        )
        for number, disk in enumerate(node.extra_disks):
            where = f"{path}.extra_disks[{number}]"
            if disk.path in disks:
                yield f"{where}.path", f"{disk.path} is already that of {disks[disk.path]}"
            disks.setdefault(disk.path, where)
        yield from _backend_problems(path, node, parts)


def _nics(path: str, node: TopologyNode, parts: _Parts) -> Iterator[tuple[str, Nic]]:
    further = [nic.name for nic in node.networks]
    alone = node.ip is None and node.ip6 is None
    if parts.first is not None and not (alone and node.networks):
        first = parts.first[1].name
        if first not in further:
            yield path, Nic(name=first, ip=node.ip, ip6=node.ip6)
    yield from ((f"{path}.networks[{n}]", nic) for n, nic in enumerate(node.networks))


def _nic_problems(where: str, nic: Nic, parts: _Parts) -> Iterator[Problem]:
    found = next((each for _, each in parts.networks if each.name == nic.name), None)
    if found is None:
        if nic.name not in parts.named:
            yield f"{where}.name", f"there is no network {nic.name}"
        return
    for key, address, prefix in (
        ("ip", nic.ip, found.subnet),
        ("ip6", nic.ip6, found.subnet6),
    ):
        if address is not None:
            yield from _address_problems(f"{where}.{key}", address, prefix, found)
    if nic.ip is None and nic.ip6 is None and not found.dhcp:
        yield (
            f"{where}.ip",
            f"is missing: network {found.name} gives no addresses unless it has `dhcp: true`",
        )


def _address_problems(
    where: str, text: str, prefix: str | None, network: TopologyNetwork
) -> Iterator[Problem]:
    if prefix is None:
        family = "subnet6" if ":" in text else "subnet"
        yield where, f"network {network.name} has no `{family}` for {text}"
        return
    address, within = ip_address(text), ip_network(prefix)
    if address not in within:
        yield where, f"{address} is outside of {within}"
        return
    place = int(address) - int(within[0])
    if place == 0:
        yield where, f"{address} is {within} itself, not an address in it"
    elif place == 1:
        yield where, f"{address} is the gateway of {within}"
    elif address == within[-1] and within.version == 4:
        yield where, f"{address} is the broadcast address of {within}"


def _backend_problems(path: str, node: TopologyNode, parts: _Parts) -> Iterator[Problem]:
    if parts.backend(node) is Backend.LIBVIRT:
        value = parts.value
        if not (value.get("base_image") or node.image or value.get("image")):
            yield f"{path}.image", "is missing: libvirt boots a `base_image` or an `image`"
        if node.disk_gb is not None:
            yield f"{path}.disk_gb", "is for microVMs: libvirt's nodes write to their own disk"
    serials: dict[str, str] = {}
    for number, disk in enumerate(node.extra_disks):
        where = f"{path}.extra_disks[{number}]"
        if disk.bus is not Bus.VIRTIO:
            yield f"{where}.bus", f"nodes have no {disk.bus} disks, only virtio"
        serial = serial_of(disk)
        if not _may_be_serial(serial):
            allowed = f"up to {_SERIAL_CHARS} characters, none of root, scratch, cache, opt-…"
            yield f"{where}.path", f"a node cannot call a disk {serial!r}: {allowed}"
        elif serial in serials:
            yield f"{where}.path", f"its guest knows {serials[serial]} as {serial} already"
        serials.setdefault(serial, where)


def _may_be_serial(serial: str) -> bool:
    own = serial in _OWN_SERIALS or serial.startswith(_OPTION)
    return 0 < len(serial) <= _SERIAL_CHARS and not own


def serial_of(disk: ExtraDisk) -> str:
    """Tell by which name a node's guest knows a disk: the file's, without its ending."""
    stem = disk.path.rpartition("/")[2].partition(".")[0]
    return "".join(c for c in stem if c.isascii() and (c.isalnum() or c in "-_"))


# Telling


def _twice(
    named: Iterable[tuple[str, str]], key: str = "name", told: str = ""
) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for path, name in named:
        if name in seen:
            yield f"{path}.{key}", told or f"{name} is already that of {seen[name]}"
        seen.setdefault(name, path)


def _problem(where: tuple[int | str, ...], kind: str, told: str) -> Problem:
    path = ""
    for step in where:
        path = strict_yaml.join(path, step)
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(where[-1]), _keys_at(where), n=1)
        return path, "there is no such key" + (f" (did you mean `{near[0]}`?)" if near else "")
    if kind == "missing":
        return path, "is missing"
    if kind == "string_pattern_mismatch":
        named = where[-1] in {"cluster_name", "name"}
        return path, _NAMING if named else "has characters that are not allowed, or is too long"
    if kind == "string_type":
        return path, "must be a string (put quotes around what looks like something else)"
    return path, told.removeprefix("Value error, ").removeprefix("Input ")


def _keys_at(where: tuple[int | str, ...]) -> list[str]:
    """Name the keys that are known beside one that is not."""
    names = [step for step in where[:-1] if isinstance(step, str)]
    model = _MODELS.get(".".join(names))
    return [] if model is None else list(model.model_fields)


_MODELS: dict[str, type[BaseModel]] = {
    "": Topology,
    "network": TopologyNetwork,
    "networks": TopologyNetwork,
    "nodes": TopologyNode,
    "nodes.networks": Nic,
    "nodes.extra_disks": ExtraDisk,
    "ssh": Ssh,
    "snapshots": SnapshotNames,
}


def _told(problems: list[Problem]) -> errors.InvalidInput:
    unique = list(dict.fromkeys(problems))
    lines = [f"{path}: {told}" if path else told for path, told in unique[:_TOLD]]
    more = f" (and {len(unique) - _TOLD} more)" if len(unique) > _TOLD else ""
    return errors.InvalidInput(
        "; ".join(lines) + more, hint="cluster_schema tells what a topology may say"
    )

"""What a cluster is to be, as a topology says it: networks, nodes, and how they are reached.

Every key of the topologies of vmcluster-mcp is here, under its name. A key that says nothing to the
machines of this host is told of when the cluster is defined; see `clusters/topology.py`, which also
holds each key against the others. Addresses and prefixes are kept in their one canonical form.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictBool

from microvm_orchestrator.model.names import NAME_PATTERN
from microvm_orchestrator.model.values import MAX_TEXT

MAX_NODES = 64
MAX_NETWORKS = 8
MAX_DISKS = 8
MAX_ENV = 128

# A node's name is its hostname; with the cluster's in front it is the name of its machine.
_LABEL = r"^[a-z0-9]([a-z0-9-]{0,29}[a-z0-9])?$"


def _ipv4(text: str) -> str:
    return _address(text, 4)


def _ipv6(text: str) -> str:
    return _address(text, 6)


def _address(text: str, version: int) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or address.version != version or "%" in text:
        raise ValueError(f"{text[:60]!r} is not an IPv{version} address")
    return str(address)


def _subnet(text: str) -> str:
    return _prefix(text, 4)


def _subnet6(text: str) -> str:
    return _prefix(text, 6)


def _prefix(text: str, version: int) -> str:
    try:
        prefix = ip_network(text, strict=False)
    except ValueError:
        prefix = None
    if prefix is None or prefix.version != version or "/" not in text or "%" in text:
        like = "192.168.100.0/24" if version == 4 else "fd00:100::/64"
        raise ValueError(f"{text[:60]!r} is not an IPv{version} subnet such as {like}")
    if str(prefix.network_address) != str(ip_address(text.partition("/")[0])):
        raise ValueError(f"{text[:60]!r} has bits beyond its prefix; {prefix} is meant")
    if prefix.is_multicast or prefix.is_loopback or prefix.is_link_local:
        raise ValueError(f"no machine can have an address of {prefix}")
    if prefix.num_addresses < 4:
        raise ValueError(f"{prefix} has no room for machines")
    return str(prefix)


def _host_path(text: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError("must be an absolute path without `..`")
    return text


Label = Annotated[str, Field(pattern=_LABEL)]
NodeRole = Annotated[str, Field(pattern=NAME_PATTERN)]
Ipv4 = Annotated[str, Field(max_length=100), AfterValidator(_ipv4)]
Ipv6 = Annotated[str, Field(max_length=100), AfterValidator(_ipv6)]
Subnet = Annotated[str, Field(max_length=100), AfterValidator(_subnet)]
Subnet6 = Annotated[str, Field(max_length=100), AfterValidator(_subnet6)]
HostPath = Annotated[str, Field(min_length=2, max_length=1000), AfterValidator(_host_path)]
Bridge = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")]
Image = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]
Value = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00]*$")]
Env = Annotated[dict[Variable, Value], Field(max_length=MAX_ENV)]
User = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:-]{0,63}$")]


class Backend(StrEnum):
    """What runs a node."""

    # The embedded guest, or a runner of microvm.nix.
    MICROVM = "microvm"
    # A disk image in qcow2.
    LIBVIRT = "libvirt"


class Bus(StrEnum):
    """How a disk is attached."""

    VIRTIO = "virtio"
    SCSI = "scsi"
    SATA = "sata"
    IDE = "ide"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TopologyNetwork(_Part):
    """A network of the cluster's nodes."""

    name: Label
    subnet: Subnet | None = Field(default=None, description="of its IPv4 addresses")
    subnet6: Subnet6 | None = Field(default=None, description="of its IPv6 addresses")
    bridge: Bridge | None = Field(default=None, description="what vmcluster-mcp called its bridge")
    dhcp: StrictBool = Field(
        default=False, description="whether nodes may leave out their address and are given one"
    )
    rdma: StrictBool = Field(default=False, description="whether its nodes speak RDMA over it")


class Nic(_Part):
    """A node's place in a further network."""

    name: Label = Field(description="the network's")
    ip: Ipv4 | None = None
    ip6: Ipv6 | None = None


class ExtraDisk(_Part):
    """A disk beside the one that a node boots from."""

    path: HostPath = Field(
        description="where it lies on the host; a microVM keeps it with its other disks, and its "
        "guest knows it by the name of the file"
    )
    size_gb: Annotated[int, Field(strict=True, ge=1, le=4000)]
    bus: Bus = Bus.VIRTIO


class TopologyNode(_Part):
    """A machine of the cluster."""

    name: Label
    role: NodeRole = "node"
    vcpus: Annotated[int, Field(strict=True, ge=1, le=64)] | None = Field(
        default=None, description="by default what a runner's guest has, else 1"
    )
    memory_mb: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = Field(
        default=None, description="by default what a runner's guest has, else 512"
    )
    disk_gb: Annotated[int, Field(strict=True, ge=1, le=4000)] | None = Field(
        default=None,
        description="of a disk for all that a microVM writes, which it keeps over a crash; without "
        "one it writes into its memory. Nodes of libvirt's write to a disk of their own",
    )
    ip: Ipv4 | None = Field(default=None, description="in the first network")
    ip6: Ipv6 | None = Field(default=None, description="in the first network")
    networks: Annotated[list[Nic], Field(max_length=MAX_NETWORKS)] = Field(
        default=[], description="its places in further networks, in the order of its interfaces"
    )
    extra_disks: Annotated[list[ExtraDisk], Field(max_length=MAX_DISKS)] = []
    backend: Backend | None = Field(default=None, description="by default the cluster's")
    image: Image | None = Field(default=None, description="by default the cluster's")
    env: Env = Field(default={}, description="for commands in it, over the cluster's")


class Ssh(_Part):
    """How nodes are reached that have an SSH server; microVMs are reached without one."""

    key_path: HostPath | None = Field(default=None, description="the file of the private key")
    user: User = Field(default="root", description="who runs commands in the nodes")
    connect_timeout_s: Annotated[float, Field(ge=0.1, le=600)] = Field(
        default=30.0, description="within which a node has to answer"
    )


class SnapshotNames(_Part):
    """What snapshots are called."""

    baseline: Annotated[str, Field(pattern=NAME_PATTERN)] | None = Field(
        default=None, description="the snapshot that is meant by the name `baseline`"
    )


def base_name(path: str) -> str:
    """Tell by which name of an image the file of a `base_image` is known: its own."""
    return path.rpartition("/")[2].removesuffix(".qcow2").removesuffix(".img")


class Topology(_Part):
    """A cluster as it is asked for."""

    cluster_name: Label
    base_image: HostPath | None = Field(
        default=None,
        description="a disk in qcow2, for nodes that libvirt runs: the image that has the name of "
        "the file, without its ending",
    )
    image: Image | None = Field(
        default=None,
        description="an image of this host, by name or digest, for nodes that are microVMs; by "
        "default the setting machines.default_image",
    )
    backend: Backend | None = Field(
        default=None, description="by default libvirt with a `base_image`, else microvm"
    )
    overlay_dir: HostPath | None = Field(
        default=None, description="where vmcluster-mcp had the disks of nodes"
    )
    network: TopologyNetwork | None = Field(default=None, description="the first network")
    networks: Annotated[list[TopologyNetwork], Field(max_length=MAX_NETWORKS)] = Field(
        default=[], description="the networks, or those behind `network`"
    )
    nodes: Annotated[list[TopologyNode], Field(min_length=1, max_length=MAX_NODES)]
    ssh: Ssh = Ssh()
    snapshots: SnapshotNames = SnapshotNames()
    env: Env = Field(default={}, description="for commands in the nodes")

    @property
    def every_network(self) -> list[TopologyNetwork]:
        """All networks, the first one first."""
        return ([self.network] if self.network is not None else []) + self.networks

    def backend_of(self, node: TopologyNode) -> Backend:
        usual = Backend.LIBVIRT if self.base_image and not self.image else Backend.MICROVM
        return node.backend or self.backend or usual

    def image_of(self, node: TopologyNode) -> str | None:
        """Tell which image a node boots; None is the usual one of this host."""
        if self.backend_of(node) is Backend.LIBVIRT and self.base_image is not None:
            return node.image or base_name(self.base_image)
        return node.image or self.image

    def nics_of(self, node: TopologyNode) -> list[Nic]:
        """Tell all of a node's places, the first one first."""
        first = self.every_network[0].name
        named = [nic.name for nic in node.networks]
        if first in named or (node.networks and node.ip is None and node.ip6 is None):
            return list(node.networks)
        return [Nic(name=first, ip=node.ip, ip6=node.ip6), *node.networks]

    def env_of(self, node: TopologyNode) -> dict[str, str]:
        return {**self.env, **node.env}

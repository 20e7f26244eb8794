"""vmcluster-mcp 1.1.0 as it can run here at all: a stdio server, started by `test_vmcluster.py`.

    vmcluster_peer.py KERNEL INITRD ROOT CMDLINE     (by the Python of .venv-vmcluster)

As it is, it wants KVM, a base image that takes an address without being given one by cloud-init,
and a NAT network. What libvirt is told is changed to that end, and to its advantage: domains are
emulated, boot a kernel directly with the address of the node in its command line, and have the root
on a disk of their own; the network routes nowhere. Nothing else of it is touched.
"""

from __future__ import annotations

import importlib
import sys
import xml.etree.ElementTree as ET
from typing import Any

_KERNEL, _INITRD, _ROOT, _CMDLINE = sys.argv[1:]
cluster: Any = importlib.import_module("vmcluster_mcp.cluster")
server: Any = importlib.import_module("vmcluster_mcp.server")
_domain, _network = cluster.build_domain_xml, cluster.build_network_xml


def build_domain_xml(name: str, node: Any, *rest: str) -> str:
    """Change what the domain is told to boot."""
    domain = ET.fromstring(_domain(name, node, *rest))  # noqa: S314  # it has just written it
    domain.set("type", "qemu")
    system = domain.find("os")
    assert system is not None
    for key, value in (
        ("kernel", _KERNEL),
        ("initrd", _INITRD),
        ("cmdline", f"{_CMDLINE} node={node.ip}"),
    ):
        ET.SubElement(system, key).text = value
    devices = domain.find("devices")
    assert devices is not None
    root = ET.SubElement(devices, "disk", type="file", device="disk")
    ET.SubElement(root, "driver", name="qemu", type="raw")
    ET.SubElement(root, "source", file=_ROOT)
    ET.SubElement(root, "target", dev="vdz", bus="virtio")
    ET.SubElement(root, "readonly")
    ET.SubElement(root, "serial").text = "root"
    return ET.tostring(domain, encoding="unicode")


def build_network_xml(network: Any) -> str:
    """Let the network be one of its nodes and the host only."""
    told = ET.fromstring(_network(network))  # noqa: S314  # it has just written it
    forward = told.find("forward")
    assert forward is not None
    told.remove(forward)
    ET.SubElement(told, "dns", enable="no")
    return ET.tostring(told, encoding="unicode")


cluster.build_domain_xml, cluster.build_network_xml = build_domain_xml, build_network_xml
server.mcp.run()

"""A host with the bridges that Nix rendered, guests on them, and others around: who reaches whom.

A program of its own, for namespaces of its own: `unshare --net --mount`. It is told what the module
made of the host's network, and tells as JSON by which address each is met, or that it is not.
Above is `test_bridges`.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Who there is, besides the host: at which device of the host, with which addresses of their own.
PEERS = {
    "guest": ("mvbr0-a", ("10.77.0.2/24", "fd77::2/64")),
    "sibling": ("mvbr0-b", ("10.77.0.3/24", "fd77::3/64")),
    "lab": ("lab-a", ("10.78.0.2/24",)),
    "labmate": ("lab-b", ("10.78.0.3/24",)),
    "internet": ("wan", ("198.51.100.2/24", "2001:db8:1::2/64")),
    "office": ("site", ("192.168.9.2/24", "fd99::2/64")),
}
# Of the host, at what is no bridge.
OUTSIDE = {
    "wan": ("198.51.100.1/24", "2001:db8:1::1/64"),
    "site": ("192.168.9.1/24", "fd99::1/64"),
}
# Where nobody answers at all.
PATIENCE_S = 2.0
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str) -> None:
    subprocess.run(["/usr/sbin/ip", *words], check=True)


def give(device: str, address: str, *where: str) -> None:
    # Nobody else is there to ask whether an address is taken.
    at_once = ("nodad",) if ":" in address else ()
    ip(*where, "address", "add", address, "dev", device, *at_once)


def build(host: dict[str, Any], rules: Path) -> None:
    subprocess.run(["/usr/bin/mount", "-t", "tmpfs", "own", "/run"], check=True)
    for name in host["bridges"]:
        ip("link", "add", name, "type", "bridge")
    for name, (device, own) in PEERS.items():
        ip("netns", "add", name)
        ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        bridge = device.rpartition("-")[0]
        if bridge:
            ip("link", "set", device, "master", bridge)
        for address in OUTSIDE.get(device, ()):
            give(device, address)
        ip("link", "set", device, "up")
        for address in own:
            give("eth0", address, "-n", name)
        ip("-n", name, "link", "set", "eth0", "up")
    for name, each in host["addresses"].items():
        for found in (*each["v4"], *each["v6"]):
            ip(
                "address",
                "add",
                f"{found['address']}/{found['prefixLength']}",
                "dev",
                name,
                "nodad",
            )
        ip("link", "set", name, "up")
    # Everybody sends by the host what is not beside them, the internet and the office too.
    gates = {"mvbr0": ("10.77.0.1", "fd77::1"), "lab": ("10.78.0.1",)}
    gates |= {name: tuple(each.split("/")[0] for each in own) for name, own in OUTSIDE.items()}
    for name, (device, _) in PEERS.items():
        for gate in gates[device.rpartition("-")[0] or device]:
            ip("-n", name, "route", "add", "default", "via", gate)
    for family in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")
    subprocess.run(["/usr/sbin/nft", "--file", rules], check=True)


def socket_in(name: str, family: int) -> socket.socket:
    """Make a socket in somebody's namespace; it stays there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    place = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        _enter(place)
        try:
            return socket.socket(family, socket.SOCK_STREAM)
        finally:
            _enter(home)
    finally:
        os.close(home)
        os.close(place)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, 0):
        raise OSError(ctypes.get_errno(), "setns")


def met(who: str, whom: str, number: int) -> str | None:
    """Connect one to another's address of a number, and tell who the other one saw."""
    address = PEERS[whom][1][number].split("/")[0]
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(whom, family) as ear, socket_in(who, family) as caller:
        ear.bind((address, 0))
        ear.listen()
        caller.settimeout(PATIENCE_S)
        try:
            caller.connect(ear.getsockname())
        except OSError:
            return None
        ear.settimeout(PATIENCE_S)
        heard, peer = ear.accept()
        heard.close()
        return str(peer[0])


def main() -> None:
    rendered = Path(sys.argv[1])
    asked: list[tuple[str, str, int]] = json.loads(sys.argv[2])
    build(json.loads((rendered / "host.json").read_text()), rendered / "nftables.conf")
    # All at once, as most of them are to wait in vain.
    with ThreadPoolExecutor(len(asked)) as threads:
        print(json.dumps(list(threads.map(met, *zip(*asked, strict=True)))))


if __name__ == "__main__":
    main()

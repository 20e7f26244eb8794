"""Ethernet frames for tests, as a machine would write them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from microvm_orchestrator.network.base import Port
from microvm_orchestrator.network.guard import link_local, mac_bytes

EVERYBODY = b"\xff" * 6
# Where a machine looks for its neighbours by IPv6.
NEIGHBOURS = bytes.fromhex("3333ff000001")
# For what no kernel understands, so that none answers.
PLAIN = 0x88B5


def mac(port: Port) -> bytes:
    return mac_bytes(port.mac)


def ethernet(to: bytes, by: bytes, kind: int, payload: bytes) -> bytes:
    """Pad it as a network card does."""
    return to + by + kind.to_bytes(2) + payload.ljust(46, b"\0")


def plain(to: bytes, by: bytes, text: str = "hello") -> bytes:
    return ethernet(to, by, PLAIN, text.encode())


def packed(address: str) -> bytes:
    return ip_address(address).packed


def arp(by: bytes, hardware: bytes, sender: str, to: bytes = EVERYBODY) -> bytes:
    begin = bytes.fromhex("0001080006040001")
    wanted = bytes(6) + packed("10.9.0.1")
    return ethernet(to, by, 0x0806, begin + hardware + packed(sender) + wanted)


def ipv4(
    to: bytes,
    by: bytes,
    source: str,
    payload: bytes = b"hello",
    following: int = 17,
    fragment: int = 0,
) -> bytes:
    size = (20 + len(payload)).to_bytes(2)
    ends = packed(source) + packed("10.9.0.3")
    begin = b"\x45\0" + size + bytes(2) + fragment.to_bytes(2) + bytes([0x40, following])
    words = struct.unpack("!10H", begin + bytes(2) + ends)
    checksum = 0xFFFF - sum(words) % 0xFFFF
    header = begin + checksum.to_bytes(2) + ends
    return ethernet(to, by, 0x0800, header + payload)


def ipv6(
    to: bytes, by: bytes, source: str, payload: bytes = b"\xff" * 16, following: int = 17
) -> bytes:
    begin = b"\x60\0\0\0" + len(payload).to_bytes(2) + bytes([following, 255])
    return ethernet(to, by, 0x86DD, begin + packed(source) + packed("fd09::3") + payload)


def icmpv6(to: bytes, by: bytes, source: str, kind: int, payload: bytes) -> bytes:
    return ipv6(to, by, source, bytes([kind, 0, 0, 0]) + payload, following=58)


def advertisement(to: bytes, by: bytes, source: str, target: str) -> bytes:
    """Say whose address is whose."""
    return icmpv6(to, by, source, 136, bytes(4) + packed(target))


def own_link_local(port: Port) -> str:
    return str(link_local(mac(port)))

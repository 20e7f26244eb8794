"""Which frames a machine may send: those in its own name.

Without this a machine could take over the address of another one, and read what was meant for it.
What is let through is what could be looked at: a header that may hide another is refused, so that
there is one way to read a frame, ours and the receiver's. Above stands the switch; the kernel is
told the same rules by `filters.py`.
"""

from __future__ import annotations

from ipaddress import IPv4Interface, IPv6Address, ip_interface

from microvm_orchestrator import errors
from microvm_orchestrator.network.base import Port

ETHERNET_BYTES = 14
_ARP_BYTES = ETHERNET_BYTES + 28
_IPV4_BYTES = ETHERNET_BYTES + 20
_IPV6_BYTES = ETHERNET_BYTES + 40
# With the address that a neighbour is told of.
_NEIGHBOUR_BYTES = _IPV6_BYTES + 24

_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
# Ethernet and IPv4, with addresses of six and of four bytes.
_ARP_BEGIN = b"\x00\x01\x08\x00\x06\x04"
_ICMPV6 = 58
# Hop-by-hop options, routing, options of the destination: ICMPv6 may stand behind them.
_HIDING = frozenset({0, 43, 60})
# Router advertisement and redirect: there are no routers among the machines.
_OF_ROUTERS = frozenset({134, 137})
_NEIGHBOUR_ADVERTISEMENT = 136

# Who looks whether an address is free has none yet.
_NOBODY_IPV4 = bytes(4)
_NOBODY_IPV6 = bytes(16)


class Guard:
    """What one port lets in."""

    def __init__(self, port: Port) -> None:
        self.mac = mac_bytes(port.mac)
        self._strict = bool(port.addresses)
        interfaces = [ip_interface(text) for text in port.addresses]
        self._ipv4 = {each.packed for each in interfaces if isinstance(each, IPv4Interface)}
        self._ipv6 = {each.packed for each in interfaces if not isinstance(each, IPv4Interface)}
        self._ipv6.add(link_local(self.mac).packed)

    def allows(self, data: bytes, at: int, end: int) -> bool:
        """Look at the frame that lies there; it has an Ethernet header."""
        if data[at + 6 : at + 12] != self.mac:
            return False
        if not self._strict:
            return True
        kind = data[at + 12 : at + 14]
        if kind == _IPV4:
            return end - at >= _IPV4_BYTES and data[at + 26 : at + 30] in self._ipv4
        if kind == _ARP:
            return end - at >= _ARP_BYTES and self._allows_arp(data, at + ETHERNET_BYTES)
        return kind == _IPV6 and end - at >= _IPV6_BYTES and self._allows_ipv6(data, at, end)

    def _allows_arp(self, data: bytes, at: int) -> bool:
        sender = data[at + 14 : at + 18]
        return (
            data[at : at + 6] == _ARP_BEGIN
            and data[at + 8 : at + 14] == self.mac
            and (sender in self._ipv4 or sender == _NOBODY_IPV4)
        )

    def _allows_ipv6(self, data: bytes, at: int, end: int) -> bool:
        source = data[at + 22 : at + 38]
        if source not in self._ipv6 and source != _NOBODY_IPV6:
            return False
        header = data[at + 20]
        if header != _ICMPV6:
            return header not in _HIDING
        if end - at <= _IPV6_BYTES:
            return False
        kind = data[at + _IPV6_BYTES]
        if kind == _NEIGHBOUR_ADVERTISEMENT:
            told = data[at + _IPV6_BYTES + 8 : at + _NEIGHBOUR_BYTES]
            return end - at >= _NEIGHBOUR_BYTES and told in self._ipv6
        return kind not in _OF_ROUTERS


def mac_bytes(text: str) -> bytes:
    """Read the MAC of one machine. Raises: InvalidInput."""
    try:
        mac = bytes.fromhex(text.replace(":", ""))
    except ValueError:
        mac = b""
    if len(mac) != 6 or mac.hex(":") != text.lower() or mac[0] & 1:
        raise errors.InvalidInput(f"{text!r} is no MAC of a machine")
    return mac


def link_local(mac: bytes) -> IPv6Address:
    """Return the address that an interface gives itself, as kernels do by default."""
    middle = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return IPv6Address(b"\xfe\x80" + bytes(6) + middle)

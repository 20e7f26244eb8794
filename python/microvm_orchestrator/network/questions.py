"""Which frames ask a server for a name: those to its port, by UDP and TCP, IPv4 and IPv6.

Pure, and of frames that a machine wrote: what makes no sense asks for nothing. Above stand the ways
in userspace; the kernel is told the same in `way_rules.py`.
"""

from __future__ import annotations

from microvm_orchestrator.network.guard import ETHERNET_BYTES

DNS_PORT = 53
_PORT = DNS_PORT.to_bytes(2)
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IPV6_BYTES = 40
_TCP_AND_UDP = frozenset({6, 17})
# Hop-by-hop options, routing, options of the destination: each tells its length.
_WITH_LENGTH = frozenset({0, 43, 60})
_FRAGMENT = 44
# What no honest packet has more of.
_MOST_HEADERS = 8


def asks_for_a_name(frame: bytes) -> bool:
    """Look at a frame, from its Ethernet header on; of several fragments, the first one asks."""
    kind, packet = frame[12:ETHERNET_BYTES], frame[ETHERNET_BYTES:]
    if kind == _IPV4:
        return _asks_by_ipv4(packet)
    return kind == _IPV6 and _asks_by_ipv6(packet)


def _asks_by_ipv4(packet: bytes) -> bool:
    if len(packet) < 20 or int.from_bytes(packet[6:8]) & 0x1FFF:
        return False
    begins = (packet[0] & 15) * 4
    return packet[9] in _TCP_AND_UDP and packet[begins + 2 : begins + 4] == _PORT


def _asks_by_ipv6(packet: bytes) -> bool:
    if len(packet) < _IPV6_BYTES:
        return False
    header, at = packet[6], _IPV6_BYTES
    for _ in range(_MOST_HEADERS):
        if header in _TCP_AND_UDP:
            return packet[at + 2 : at + 4] == _PORT
        if len(packet) < at + 8:
            return False
        if header in _WITH_LENGTH:
            size = (packet[at + 1] + 1) * 8
        elif header == _FRAGMENT and not int.from_bytes(packet[at + 2 : at + 4]) & 0xFFF8:
            size = 8
        else:
            return False
        header, at = packet[at], at + size
    return False

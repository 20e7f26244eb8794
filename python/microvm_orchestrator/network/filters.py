"""The rules of `guard.py`, and that no machine reaches this host, in the words of nftables.

A port's rules stand at its tap, before anything else of the kernel looks at a frame; what is not
let through is counted. Text in, text out: whoever owns the network namespace runs it. Above stand
the kernel's networks.
"""

from __future__ import annotations

import json
import shutil
from ipaddress import IPv4Interface, ip_interface
from pathlib import Path

from microvm_orchestrator import errors, proc
from microvm_orchestrator.network.base import Port
from microvm_orchestrator.network.guard import link_local, mac_bytes

# It takes milliseconds; so long only where the host hardly runs.
_RUN_S = 30.0
# Where nft is when a service has a short PATH.
PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"


async def load(netns: Path | None, text: str) -> None:
    """Let all of this hold from now on, or nothing. Raises: Unavailable, CommandFailed."""
    await _nft(netns, ["-f", "-"], text)


async def refused(netns: Path | None, tap: str) -> int:
    """Read how many frames a port's rules did not let through. Raises: as `load`."""
    answer = await _nft(netns, ["-j", "list", "counter", "netdev", tap, "refused"])
    for entry in json.loads(answer)["nftables"]:
        if "counter" in entry:
            return int(entry["counter"]["packets"])
    raise errors.Unavailable("nft does not tell what it has counted")


async def guarded(netns: Path | None) -> list[str]:
    """Name the interfaces that rules are there for, also those that are gone. Raises: as `load`."""
    return await tables(netns, "netdev")


async def tables(netns: Path | None, family: str) -> list[str]:
    """Name the tables of a family. Raises: as `load`."""
    answer = await _nft(netns, ["-j", "list", "tables"])
    found = [entry["table"] for entry in json.loads(answer)["nftables"] if "table" in entry]
    return [str(table["name"]) for table in found if table["family"] == family]


async def _nft(netns: Path | None, words: list[str], text: str = "") -> bytes:
    nft = shutil.which("nft", path=PLACES)
    if nft is None:
        raise errors.Unavailable(
            "the kernel's networks need the program nft, which this host does not have",
            hint="install nftables, or use networks in userspace",
        )
    words = [nft, *words]
    if netns is not None:
        words = [shutil.which("nsenter", path=PLACES) or "nsenter", f"--net={netns}", *words]
    ran = await proc.run(words, timeout_s=_RUN_S, stdin=text.encode(), capable=True)
    return ran.stdout


def guarding(tap: str, port: Port) -> str:
    """Let a port's own frames in and no others, whatever was said before."""
    return (
        removing(tap)
        + f"""
table netdev {tap} {{
    counter refused {{ }}
    chain refuse {{ counter name refused drop; }}
{_addressed(port) if port.addresses else _unaddressed()}
    chain sent {{
        type filter hook ingress device "{tap}" priority 0; policy accept;
        ether saddr != {mac_bytes(port.mac).hex(":")} goto refuse
        goto known
    }}
}}
"""
    )


def removing(tap: str) -> str:
    """Take a port's rules away, or the name of rules that are not there."""
    return f"table netdev {tap} {{ }}\ndelete table netdev {tap}\n"


def hiding(table: str, prefix: str) -> str:
    """Keep what comes from all interfaces of that name from this host's own ears."""
    return f"""
table bridge {table} {{ }}
delete table bridge {table}
table bridge {table} {{
    chain heard {{
        type filter hook input priority 0; policy accept;
        iifname "{prefix}*" drop
    }}
}}
"""


def showing(table: str) -> str:
    return f"table bridge {table} {{ }}\ndelete table bridge {table}\n"


def _unaddressed() -> str:
    return "    chain known { accept; }"


def _addressed(port: Port) -> str:
    """Each rule names what passes: a frame too short for a rule is not what it names."""
    mac = mac_bytes(port.mac)
    interfaces = [ip_interface(text) for text in port.addresses]
    ipv4 = [each.ip for each in interfaces if isinstance(each, IPv4Interface)]
    ipv6 = [each.ip for each in interfaces if not isinstance(each, IPv4Interface)]
    ipv6.append(link_local(mac))
    senders = ", ".join(f"{int(each):#x}" for each in [0, *ipv4])
    told = ", ".join(f"{int(each):#x}" for each in ipv6)
    own = ", ".join(map(str, ipv6))
    ip = f"ether type ip ip saddr {{ {', '.join(map(str, ipv4))} }} accept" if ipv4 else ""
    arp = f"@nh,0,48 0x000108000604 @nh,64,48 0x{mac.hex()} @nh,112,32 {{ {senders} }}"
    return f"""
    chain known {{
        vlan id 0-4095 goto refuse
        {ip}
        ether type ip6 ip6 saddr {{ ::, {own} }} goto six
        ether type arp {arp} accept
        goto refuse
    }}
    chain six {{
        ip6 nexthdr {{ 0, 43, 60 }} goto refuse
        ip6 nexthdr != 58 accept
        icmpv6 type 136 @th,64,128 {{ {told} }} accept
        icmpv6 type {{ 134, 136, 137 }} goto refuse
        icmpv6 type 0-255 accept
        goto refuse
    }}"""

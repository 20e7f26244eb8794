"""What a guest says of itself: who it is when we meet it, and what it uses."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.stream import printable
from microvm_orchestrator.machine.shell import Guest, GuestUsage
from microvm_orchestrator.machine.ssh.jobs import ask, started
from microvm_orchestrator.machine.ssh.script import Script

if TYPE_CHECKING:
    from microvm_orchestrator.machine.ssh.link import Link

VERBS = frozenset(
    "exec jobs put get put_tree get_tree connect listen ping usage shutdown".split()  # noqa: SIM905  # as a line it can be read
)
# A clock tick is what it is on every machine that we can start.
_TICKS_PER_S = 100
_MAX_FIGURES = 64 * 1024
_MAX_FIGURE = 2**62

_WHO = b"""read -r x </proc/sys/kernel/random/boot_id
read -r y </proc/sys/kernel/hostname
read -r s </proc/$$/stat
set -- ${s##*) }
command -v setsid >/dev/null 2>&1 && z=yes || z=no
ok "$4 $z $x $y"
"""
_USAGE = b"""ok
cat /proc/uptime /proc/stat /proc/meminfo /proc/vmstat | grep -E '^(cpu|Mem|oom_kill |[0-9])'
set -- /proc/[0-9]*
echo pids $#
echo disk $(stat -f -c '%S %b %a' /)
"""


async def greet(link: Link, server: str) -> Guest:
    """Ask who it is, and see whether its server gives each command a session of its own."""
    async with started(link, Script(_WHO), own=True) as running:
        words = [b"%d" % running.session, *running.words]
    if len(words) != 5:
        raise errors.GuestRefused("the guest does not say what a Linux says")
    pid, session, setsid, boot_id, hostname = words
    if pid != session:  # as Dropbear does it; what ends a command would end the connection
        if setsid != b"yes":
            raise errors.GuestRefused(
                "commands of this SSH server have no sessions of their own, nor is there a setsid"
            )
        link.prefix = b"exec setsid /bin/sh -c "
    return Guest(
        agent=printable(server.encode()[:128]),
        boot_id=printable(boot_id[:64]),
        # Jobs do not outlive the connection, so neither does who answers for them.
        identity=secrets.token_hex(8),
        hostname=printable(hostname[:64]),
        verbs=VERBS,
    )


async def usage(link: Link) -> GuestUsage:
    """Ask for the figures of its kernel. Raises: ProtocolBroken when they are none."""
    told = (await ask(link, Script(_USAGE), _MAX_FIGURES)).stdout.decode("ascii", "replace")
    lines = [line.split() for line in told.splitlines()]
    try:
        uptime = lines[0]
        table = {words[0].rstrip(":"): words[1:] for words in lines[1:]}
        block, blocks, available = map(_figure, table["disk"])
        ticks = [_figure(word) for word in table["cpu"][:8]]
        idle = ticks[3] + ticks[4]
        return GuestUsage(
            uptime_s=_figure(uptime[0].partition(".")[0]),
            cpu_busy_s=(sum(ticks) - idle) / _TICKS_PER_S,
            cpu_idle_s=idle / _TICKS_PER_S,
            cpus=sum(name.startswith("cpu") for name in table) - 1,
            memory_total_kib=_figure(table["MemTotal"][0]),
            memory_available_kib=_figure(table["MemAvailable"][0]),
            disk_total_kib=block * blocks // 1024,
            disk_available_kib=block * available // 1024,
            pids=_figure(table["pids"][0]),
            oom_kills=_figure(table.get("oom_kill", ["0"])[0]),
        )
    except (LookupError, ValueError) as error:
        raise errors.ProtocolBroken("the guest told figures that are none") from error


def _figure(word: str) -> int:
    if not word.isdecimal() or len(word) > 18:
        raise ValueError(word)
    return int(word)

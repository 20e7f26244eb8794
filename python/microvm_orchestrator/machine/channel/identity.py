"""Who a guest is and how it fares: `fresh` and `usage`."""

from __future__ import annotations

import re
import secrets
import time
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.channel.requests import ANSWER_S, opened
from microvm_orchestrator.machine.shell import GuestUsage, Identity, Interface

if TYPE_CHECKING:
    from microvm_orchestrator.machine.channel.link import Link

_ENTROPY_BYTES = 64
# Making host keys takes seconds under emulation; the agent gives its hook 20 s.
_HOOK_S = 30.0
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_MACHINE_ID = re.compile(r"[0-9a-f]{32}")
_MAX_FIGURE = 2**62


async def renew(link: Link, identity: Identity) -> None:
    """Give the guest another identity and see that it has taken every part of it."""
    request: dict[str, int | bytes | list[bytes]] = {
        "entropy": secrets.token_bytes(_ENTROPY_BYTES),
        "realtime_ns": time.time_ns(),
    }
    if identity.hostname is not None:
        _check(_HOSTNAME, identity.hostname, "a hostname")
        request["hostname"] = identity.hostname.encode("ascii")
    if identity.machine_id is not None:
        _check(_MACHINE_ID, identity.machine_id, "a machine id")
        request["machine_id"] = identity.machine_id.encode("ascii")
    if identity.interfaces:
        request["interfaces"] = [_line(interface) for interface in identity.interfaces]
    if identity.hook:
        request["hook"] = 1
    within_s = _HOOK_S if identity.hook else ANSWER_S
    async with opened(link, {"verb": b"fresh", **request}) as stream:
        answer = await stream.answer(within_s)
        try:
            done = wire.blobs(answer, "done", 16)
        except wire.Broken as error:
            stream.broken(f"an acknowledgement that says nothing: {error}")
    missing = sorted(set(request) - {name.decode(errors="replace") for name in done})
    if missing:
        raise errors.GuestRefused(f"the guest did not acknowledge {', '.join(missing)}")


async def usage(link: Link) -> GuestUsage:
    async with opened(link, {"verb": b"usage"}) as stream:
        figures = await stream.answer(ANSWER_S)

        def figure(name: str) -> int:
            try:
                return wire.integer(figures, name, 0, _MAX_FIGURE)
            except wire.Broken as error:
                stream.broken(str(error))

        return GuestUsage(
            uptime_s=figure("uptime_ms") / 1000,
            cpu_busy_s=figure("cpu_busy_ms") / 1000,
            cpu_idle_s=figure("cpu_idle_ms") / 1000,
            cpus=figure("cpus"),
            memory_total_kib=figure("memory_total_kib"),
            memory_available_kib=figure("memory_available_kib"),
            disk_total_kib=figure("disk_total_kib"),
            disk_available_kib=figure("disk_available_kib"),
            pids=figure("pids"),
            oom_kills=figure("oom_kills"),
        )


def _check(pattern: re.Pattern[str], text: str, what: str) -> None:
    if not pattern.fullmatch(text):
        raise errors.InvalidInput(f"{text!r} is not {what}")


def _line(interface: Interface) -> bytes:
    words = [interface.name, interface.mac, interface.address, interface.gateway]
    line = " ".join(word or "-" for word in words)
    if len(line.split()) != len(words) or not line.isascii():
        raise errors.InvalidInput(f"{interface} is not an interface")
    return line.encode("ascii")

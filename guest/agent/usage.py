"""What this guest uses, in numbers of the kernel."""

from __future__ import annotations

import os

import wire
from stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from link import Link

_TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")


def open_usage(link: Link, number: int, _: wire.Fields) -> None:
    memory = read_table("/proc/meminfo")
    disk = os.statvfs("/")
    busy, idle = _cpu_ms()
    Stream(link, number).result(
        {
            "uptime_ms": _uptime_ms(),
            "cpu_busy_ms": busy,
            "cpu_idle_ms": idle,
            "cpus": os.cpu_count() or 1,
            "memory_total_kib": memory.get("MemTotal:", 0),
            "memory_available_kib": memory.get("MemAvailable:", 0),
            "disk_total_kib": disk.f_blocks * disk.f_frsize // 1024,
            "disk_available_kib": disk.f_bavail * disk.f_frsize // 1024,
            "pids": sum(1 for name in os.listdir("/proc") if name.isdecimal()),
            "oom_kills": read_table("/proc/vmstat").get("oom_kill", 0),
        }
    )


def read_table(path: str) -> dict[str, int]:
    """Read a file of the kernel with a name and a number a line."""
    with open(path, encoding="ascii") as file:
        lines = [line.split() for line in file]
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdecimal()}


def _uptime_ms() -> int:
    with open("/proc/uptime", encoding="ascii") as file:
        return int(float(file.read().split()[0]) * 1000)


def _cpu_ms() -> tuple[int, int]:
    """Return how long the CPUs worked and how long they had nothing to do."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(word) for word in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return (sum(ticks) - idle) * _TICK_MS, idle * _TICK_MS

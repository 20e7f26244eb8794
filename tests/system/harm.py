"""What a program in a guest can do to it."""

from __future__ import annotations

# Takes all the memory there is, and uses it.
EAT = "python3 -c 'x = [b\"x\" * 1_000_000 for _ in range(10_000)]'"

# From now on the guest's only processor does nothing else.
STARVE = """
import os
with open("/proc/sys/kernel/sched_rt_runtime_us", "w") as share:
    share.write("-1")
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))
while True:
    pass
"""

PANIC = "echo c >/proc/sysrq-trigger"


def flood_console(size: int) -> str:
    """Write a script that writes so many bytes to the console."""
    return f"head -c {size} /dev/zero | tr '\\0' x >/dev/ttyS0"

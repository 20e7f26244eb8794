"""What a start costs until its first command has run, and what that is for a bare QEMU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bare_qemu import booting
from bench.acts import run_true
from bench.figures import cpu_of, own_cpu_s, tell
from microvm_orchestrator.images.store import Image


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one start, until its first command has run."""

    wall_s: float
    # Of QEMU and of whoever started it.
    cpu_s: float


class Begun:
    """What was used when a start began."""

    def __init__(self, at: float | None = None) -> None:
        self._wall, self._cpu = at or time.monotonic(), own_cpu_s()

    def cost(self, pid: int) -> Cost:
        cpu_s = own_cpu_s() - self._cpu + cpu_of(pid)
        return Cost(time.monotonic() - self._wall, cpu_s)


def median(costs: Sequence[Cost]) -> Cost:
    return Cost(
        statistics.median(cost.wall_s for cost in costs),
        statistics.median(cost.cpu_s for cost in costs),
    )


async def boot_bare(folder: Path, image: Image) -> Cost:
    """Boot a bare QEMU with the same kernel and flags."""
    async with booting(folder, image) as bare:
        # From the moment of its start: before that it measures the clock, which we do once a boot.
        begun = Begun(bare.began)
        async with bare.shell() as shell:
            await run_true(shell)
            return begun.cost(bare.process.pid)


def tell_boot(how: str, cold: Cost, floor: Cost) -> None:
    tell(
        f"cold boot to first exec{how}, wall",
        f"{cold.wall_s:.2f} s",
        floor=f"{floor.wall_s:.2f} s, bare QEMU",
        ratio=f"{cold.wall_s / floor.wall_s:.2f}",
        aim="1.10 or less",
    )
    tell(
        f"cold boot to first exec{how}, CPU",
        f"{cold.cpu_s:.2f} s",
        floor=f"{floor.cpu_s:.2f} s, bare QEMU",
        ratio=f"{cold.cpu_s - floor.cpu_s:+.2f} s",
        aim="+0.25 s or less",
    )


def tell_clone(how: str, cloned: Cost, cold: Cost) -> None:
    tell(
        f"clone to first exec{how}, wall",
        f"{cloned.wall_s * 1000:.0f} ms",
        floor=f"{cold.wall_s:.2f} s, our cold boot",
        ratio=f"1/{cold.wall_s / cloned.wall_s:.1f}",
        aim="1/6 or less",
    )
    tell(
        f"clone to first exec{how}, CPU",
        f"{cloned.cpu_s:.2f} s",
        floor=f"{cold.cpu_s:.2f} s, our cold boot",
        ratio=f"1/{cold.cpu_s / cloned.cpu_s:.1f}",
        aim="1/10 or less",
    )

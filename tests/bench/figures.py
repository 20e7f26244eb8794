"""How benchmarks speak: one line a figure, always against something measured in the same run."""

from __future__ import annotations

import os
import resource
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Timed:
    """What a stretch of work took: seconds on the wall, and of CPU."""

    wall_s: float
    cpu_s: float


class Stopwatch:
    """`with Stopwatch() as watch: ...`, then `watch.timed`."""

    timed: Timed

    def __enter__(self) -> Self:
        self._wall, self._cpu = time.perf_counter(), own_cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.timed = Timed(time.perf_counter() - self._wall, own_cpu_s() - self._cpu)


def own_cpu_s() -> float:
    """Seconds of CPU this process has used, and those children of it that it has reaped."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def cpu_of(pid: int) -> float:
    """Seconds of CPU another process has used, and those children of it that it has reaped."""
    return sum(int(field) for field in _stat(pid)[11:15]) / os.sysconf("SC_CLK_TCK")


def cpu_of_all(pid: int) -> float:
    """Seconds of CPU another process has used, and all that it has started."""
    return cpu_of(pid) + sum(map(cpu_of_all, _children(pid)))


def _children(pid: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int(_stat(int(entry.name))[1])
            except OSError:
                continue  # it has just ended
            if parent == pid:
                yield int(entry.name)


def _stat(pid: int) -> list[str]:
    """Give the fields behind the name of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1_048_576


def median_ms(durations_s: Sequence[float]) -> float:
    return statistics.median(durations_s) * 1000


def p95_ms(durations_s: Sequence[float]) -> float:
    return statistics.quantiles(durations_s, n=20)[-1] * 1000


def tell(name: str, value: str, *, floor: str = "", ratio: str = "", aim: str = "") -> None:
    """Print a figure."""
    parts = [f"{name:<44} {value:>18}"]
    parts += [f"floor {floor}"] if floor else []
    parts += [f"ratio {ratio}"] if ratio else []
    parts += [f"(aim {aim})"] if aim else []
    print("  ".join(parts))


def timed(work: Callable[[], object], times: int) -> list[float]:
    """How long each of `times` calls took."""
    durations: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        durations.append(time.perf_counter() - started)
    return durations


@dataclass(frozen=True, slots=True)
class Side:
    """One of two ways to do the same."""

    act: Callable[[], Awaitable[object]]
    # Of the other processes that take part in it.
    cpu_s: Callable[[], float]


async def compare(
    name: str,
    ours: Side,
    floor: Side,
    rounds: int,
    *,
    times: int = 1,
    against: str = "",
    aim: str = "",
) -> None:
    """Do both by turns, so many times each, and tell their medians and the CPU of all who did it.

    What is short is done several times a round: a process's CPU time is counted in hundredths of a
    second.
    """
    walls: list[tuple[list[float], list[float]]] = []
    cpus: list[tuple[float, float]] = []
    for _ in range(rounds):
        mine, bare = [await _done(side, times) for side in (ours, floor)]
        walls.append((mine[0], bare[0]))
        cpus.append((mine[1], bare[1]))
    all_mine, all_bare = ([wall for pair in walls for wall in pair[side]] for side in (0, 1))
    ratios = [statistics.median(mine) / statistics.median(bare) for mine, bare in walls]
    tell(
        name,
        f"p50 {median_ms(all_mine):.2f} ms",
        floor=f"p50 {median_ms(all_bare):.2f} ms{against and ', '}{against}",
        ratio=f"{statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})",
        aim=aim,
    )
    cpu_s, least_s = (sum(pair[side] for pair in cpus) / rounds / times for side in (0, 1))
    tell(
        "  CPU of all who take part",
        f"{cpu_s * 1000:.2f} ms",
        floor=f"{least_s * 1000:.2f} ms",
        ratio=f"{cpu_s / least_s:.2f}" if least_s else "",
    )


async def _done(side: Side, times: int) -> tuple[list[float], float]:
    before_s, own_s = side.cpu_s(), own_cpu_s()
    walls: list[float] = []
    for _ in range(times):
        started = time.perf_counter()
        await side.act()
        walls.append(time.perf_counter() - started)
    own_s = own_cpu_s() - own_s
    return walls, own_s + side.cpu_s() - before_s

"""How benchmarks speak: one line a figure, always against something measured in the same run."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Timed:
    """What a stretch of work took: seconds on the wall, and of this process's CPU."""

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
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu_of(pid: int) -> float:
    """Seconds of CPU another process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


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

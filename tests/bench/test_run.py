"""What a whole run costs above its program alone, in a machine of the same kind, in one run.

The program commits one file. Bare, it is run by the shell into a machine that stands there with the
work tree in it; as a run, it is a task from the call to the merge, in a machine that is claimed of
those that stand ready and ended. The service is in this process, so the CPU is that of the daemon,
of all it started and of the machines, the next one that is made ready included.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import git_repos
import hosted
from bench.figures import cpu_of, median_ms, own_cpu_s, p95_ms, tell
from calling import House, house
from machines import CACHE, LONG_S, guest_image
from microvm_orchestrator.lifecycle.guest import HOME, REPO

PROGRAM = "date +%s%N >made.txt && git add -A && git commit -q -m 'Make a file'"
AIM_S = 1.5
READY = 2
MEMORY_MIB = 256


@asynccontextmanager
async def lending(state: Path) -> AsyncGenerator[House]:
    """Keep a service of whose machines some stand ready."""
    await guest_image()
    (state / "images").symlink_to(CACHE / "images")
    machines: dict[str, object] = {
        "warm": {"embedded": READY},
        "default_memory_mib": MEMORY_MIB,
    }
    async with house(state, machines=machines) as here:
        yield here


@dataclass
class Bench:
    """Runs and bare programs, and what they took."""

    here: House
    wall_s: list[float] = field(default_factory=list[float])
    cpu_s: list[float] = field(default_factory=list[float])
    steps_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    async def run(self, **more: Any) -> dict[str, Any]:
        """See a run through, and take down what it took."""
        await self.here.filled()
        cpu_s, began = own_cpu_s(), time.perf_counter()
        begun = await self.here.ask("run_start", repo="sample", script=PROGRAM, **more)
        task = {"task_id": begun["task_id"]}
        await self.here.ask("task_wait", **task, timeout_s=LONG_S)
        self.wall_s.append(time.perf_counter() - began)
        self.cpu_s.append(own_cpu_s() - cpu_s)
        run = (await self.here.ask("run_get", **task))["run"]
        assert run["merge"]["state"] == "merged", run
        await self._steps(run["run_id"])
        return run

    async def _steps(self, run_id: str) -> None:
        told = await self.here.ask("event_wait", subjects=[run_id])
        times = [
            (event["kind"].removeprefix("run."), datetime.fromisoformat(event["at"]))
            for event in told["events"]
        ]
        for (step, begin), (_, end) in pairwise(times):
            self.steps_s[step].append((end - begin).total_seconds())

    async def bare(self, machine: str, pid: int) -> None:
        cpu_s, began = own_cpu_s() + cpu_of(pid), time.perf_counter()
        told = {"script": PROGRAM, "cwd": REPO, "env": {"HOME": HOME}, "wait_s": LONG_S}
        ran = await self.here.ask("machine_exec", machine=machine, **told)
        self.wall_s.append(time.perf_counter() - began)
        self.cpu_s.append(own_cpu_s() + cpu_of(pid) - cpu_s)
        assert ran["exit_code"] == 0, ran


async def test_a_run_against_its_bare_program(tmp_path: Path, whole: bool) -> None:
    state = tmp_path
    git_repos.sample(tmp_path / "sample")
    async with lending(state) as here:
        ours, bare = Bench(here), Bench(here)
        await here.ask("repo_add", path=str(tmp_path / "sample"))
        kept = await Bench(here).run(keep_machine=True)
        machine = await here.ask("machine_get", machine=kept["machine_id"])
        pid = hosted.processes(state)[machine["runtime_id"]]
        for _ in range(20 if whole else 2):
            await here.filled()
            await bare.bare(machine["machine_id"], pid)
            await ours.run()
        await here.ask("machine_kill", machine=machine["machine_id"])
        await here.ask("machine_delete", machine=machine["machine_id"])
    above_s = statistics.median(ours.wall_s) - statistics.median(bare.wall_s)
    tell(
        "a run after a warm claim, to its merge",
        f"p50 {median_ms(ours.wall_s):.0f} ms, p95 {p95_ms(ours.wall_s):.0f} ms",
        floor=f"p50 {median_ms(bare.wall_s):.0f} ms, its program in a machine like it",
        ratio=f"{statistics.median(ours.wall_s) / statistics.median(bare.wall_s):.1f}, "
        f"{above_s:+.2f} s",
        aim=f"{AIM_S:+.1f} s or less",
    )
    cpu_s, least_s = statistics.median(ours.cpu_s), statistics.median(bare.cpu_s)
    tell(
        "  CPU of the daemon and of machines",
        f"{cpu_s:.2f} s",
        floor=f"{least_s:.2f} s",
        ratio=f"{cpu_s / least_s:.1f}, {cpu_s - least_s:+.2f} s",
    )
    for step, took_s in ours.steps_s.items():
        tell(f"  of it, after {step}", f"{median_ms(took_s):.0f} ms")

"""All faults in any order under load, healed at the end; the judge knows nothing of them."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chaos.ask import Asker
from chaos.crew import crew_on
from chaos.disks import fill, small_tmpfs
from chaos.judge import collect, judge, report
from chaos.process import daemon_in

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from chaos.process import Daemon

WHOLE_S = 180.0
_DISK_MIB = 512


@dataclass(frozen=True, slots=True)
class Nemesis:
    """Does harm to a running daemon, and has healed it when a fault returns."""

    daemon: Daemon
    random: random.Random
    # A disk of the daemon's own, which can be filled.
    disk: Path | None

    def faults(self) -> dict[str, Callable[[], None]]:
        found = {"kill": self.kill, "kill_while_starting": self.kill_early, "freeze": self.freeze}
        if self.disk is not None:
            found |= {"full_disk": self.fill, "full_disk_and_kill": self.fill_and_kill}
        return found

    def kill(self) -> None:
        self.daemon.kill()
        self._for(0.0, 1.5)
        self.daemon.start()

    def kill_early(self) -> None:
        self.daemon.kill()
        self.daemon.spawn()
        self._for(0.1, 0.8)
        self.kill()

    def freeze(self) -> None:
        self.daemon.freeze()
        # Mostly longer than a client waits: then its request comes twice, once out of the past.
        self._for(0.5, 6.0)
        self.daemon.thaw()

    def fill(self) -> None:
        with self._full():
            self._for(1.5, 2.5)

    def fill_and_kill(self) -> None:
        with self._full():
            self._for(0.2, 1.0)
            self.daemon.kill()
        self.daemon.start()

    @contextlib.contextmanager
    def _full(self) -> Generator[None]:
        assert self.disk is not None
        filler = fill(self.disk)
        try:
            yield
        finally:
            filler.unlink()

    def _for(self, least_s: float, most_s: float) -> None:
        time.sleep(self.random.uniform(least_s, most_s))  # a fault's length, nothing waits for it

    def rage(self, for_s: float) -> Counter[str]:
        """Every fault once, in any order, and again until the time is up. Counts them by name."""
        done = Counter[str]()
        faults = self.faults()
        ends = time.monotonic() + for_s
        while not done or time.monotonic() < ends:
            for name in self.random.sample(list(faults), len(faults)):
                self._for(0.3, 2.5)
                faults[name]()
                done[name] += 1
        return done


def test_faults_in_any_order_lose_nothing_and_double_nothing(
    tmp_path: Path, seed: str, whole: bool, no_disks: str | None
) -> None:
    with contextlib.ExitStack() as stack:
        disk = None
        if no_disks is None:
            disk = stack.enter_context(small_tmpfs(tmp_path / "mnt", _DISK_MIB))
        else:
            print(f"nemesis: no full disks: {no_disks}")
        state_dir = (disk or tmp_path) / "state"
        daemon = stack.enter_context(daemon_in(tmp_path, state_dir=state_dir))
        crew = stack.enter_context(crew_on(daemon.socket, tmp_path, seed))
        asker = stack.enter_context(Asker(daemon.socket, timeout_s=60))
        daemon.start()
        nemesis = Nemesis(daemon, random.Random(seed), disk)
        faults = nemesis.rage(WHOLE_S if whole else 0.0)
        evidence = collect(daemon, asker, crew)
    verdict = judge(evidence)
    report("nemesis", evidence, verdict, faults=faults.total(), **faults)
    assert not verdict.wrong, verdict.wrong[:20]

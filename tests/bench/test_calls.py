"""What a machine costs by the daemon's own calls, over MCP, above a bare QEMU; all in one run.

From the call that starts it to the result of its first command. CPU is that of the daemon and of
the machine's QEMU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bare_qemu import booting
from bench.acts import run_true
from bench.costs import Cost, boot_bare, median, tell_boot, tell_clone
from bench.figures import Side, compare, cpu_of_all
from daemon import Daemon, running_daemon
from demo_stage import Mcp
from machines import CACHE, guest_image

# Longer than anything here takes on a busy machine.
LONG_S = 300.0


@dataclass(frozen=True, slots=True)
class Served:
    """A daemon, and a client of it."""

    daemon: Daemon
    mcp: Mcp

    def cpu_s(self) -> float:
        return cpu_of_all(self.daemon.pid)

    def finish(self, tool: str, **given: Any) -> dict[str, Any]:
        """See a long call through."""
        operation = self.mcp.call(tool, **given, wait_s=LONG_S)
        assert operation["state"] == "succeeded", operation
        return operation["result"]

    def run_true(self, machine: str) -> None:
        ran = self.mcp.call("machine_exec", machine=machine, argv=["/bin/true"])
        assert ran["exit_code"] == 0, ran

    def start(self, machine: str) -> None:
        self.finish("machine_start", machine=machine)
        self.run_true(machine)

    def branch(self, snapshot_id: str) -> None:
        self.finish("machine_branch", source=snapshot_id, name="branch")
        self.run_true("branch")

    def remove(self, machine: str) -> None:
        self.mcp.call("machine_kill", machine=machine)
        self.mcp.call("machine_delete", machine=machine)

    def cost(self, act: Callable[[], object]) -> Cost:
        """Measure an act by this client alone; this process only waits for it."""
        before_s, began = self.cpu_s(), time.monotonic()
        act()
        return Cost(time.monotonic() - began, self.cpu_s() - before_s)


@contextmanager
def served(folder: Path) -> Generator[Served]:
    """Run a daemon with the images of the repository."""
    state = folder / "state"
    state.mkdir(mode=0o700)
    for part, kept in (("images", "images"), ("image-cache", "build")):
        (state / part).symlink_to(CACHE / kept)
    with running_daemon(state) as daemon:
        mcp = Mcp(daemon.socket, LONG_S)
        try:
            yield Served(daemon, mcp)
        finally:
            for machine in mcp.call("machine_list")["items"]:
                mcp.call("machine_kill", machine=machine["machine_id"])
            mcp.close()


async def test_a_cold_boot_and_a_branch_by_calls(tmp_path: Path, *, whole: bool) -> None:
    image = await guest_image()
    bare: list[Cost] = []
    ours: list[Cost] = []
    branches: list[Cost] = []
    with served(tmp_path) as here:
        # The first one tells how guest code can run here, which is asked once a boot of the host.
        here.mcp.call("machine_define", name="source", memory_mib=256)
        here.start("source")
        saved = here.finish("snapshot_create", machine="source")["snapshot_id"]
        here.remove("source")
        for _ in range(9 if whole else 1):
            bare.append(await boot_bare(tmp_path, image))
            here.mcp.call("machine_define", name="cold", memory_mib=256)
            ours.append(here.cost(lambda: here.start("cold")))
            here.remove("cold")
            branches.append(here.cost(lambda: here.branch(saved)))
            here.remove("branch")
    tell_boot(" by calls", median(ours), median(bare))
    tell_clone(" by calls", median(branches), median(ours))
    assert len(branches) == len(bare)


async def test_exec_by_a_call(tmp_path: Path, *, whole: bool) -> None:
    image = await guest_image()
    with served(tmp_path) as here:
        here.mcp.call("machine_define", name="box", memory_mib=256)
        here.start("box")

        async def call() -> None:
            here.run_true("box")

        async with booting(tmp_path, image) as bare, bare.shell() as shell:
            await compare(
                "exec true in a guest by machine_exec",
                Side(call, here.cpu_s),
                Side(lambda: run_true(shell), bare.cpu_s),
                20 if whole else 1,
                times=10,
                against="by a shell of ours",
            )

"""Machines at work: `make demo` runs this.

Starts a daemon in a temporary directory and asks it over MCP for the embedded guest, a machine, a
command in it, a snapshot and four branches of it; then shows what each step took.
The exit status is 0 only if what was promised was seen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from demo_stage import LONG_S, Mcp, daemon, end_machines, left_behind, share_images

BRANCHES = 4

_NOTE = "written before the branch"
_WHO = """
cat /var/tmp/note /proc/sys/kernel/hostname /etc/machine-id
head -c 8 /dev/urandom | od -An -tx1
"""

Row = tuple[str, float, str]


class Bench:
    """Does things, and remembers what each took."""

    def __init__(self, mcp: Mcp) -> None:
        self._mcp = mcp
        self.rows: list[Row] = []

    def operation(self, what: str, tool: str, note: Callable[[Any], str], **given: Any) -> Any:
        """See a long call through, and give its result."""
        began = time.perf_counter()
        result = self._mcp.finish(tool, **given)
        self._tell(what, time.perf_counter() - began, note(result))
        return result

    def script(self, what: str, machine: str, script: str) -> str:
        """Run a script in a machine, and give what it said."""
        began = time.perf_counter()
        ran = self._mcp.call("machine_exec", machine=machine, script=script)
        took = time.perf_counter() - began
        if ran["exit_code"] != 0:
            raise RuntimeError(f"{script}: {ran}")
        said = ran["stdout"].strip()
        self._tell(what, took, said.replace("\n", ", "))
        return said

    def _tell(self, what: str, took: float, note: str) -> None:
        self.rows.append((what, took, note))
        print(f"{took:8.3f} s  {what:<34}  {note}", flush=True)


def show(bench: Bench, mcp: Mcp) -> list[str]:
    """Do what the demo promises, and return the promises that were broken."""
    bench.operation(
        "build the guest, or find it",
        "image_build",
        lambda image: f"{image['size_mib']} MiB, {image['digest'][:12]}",
    )
    mcp.call("machine_define", name="source", memory_mib=256)
    bench.operation(
        "boot it cold, until it is ready",
        "machine_start",
        lambda machine: f"{machine['name']} is {machine['state']}",
        machine="source",
    )
    bench.script("run a command in it", "source", "uname -sr; python3 --version")
    bench.script("and another one", "source", f"echo '{_NOTE}' | tee /var/tmp/note")
    saved = bench.operation(
        "save it, while it goes on",
        "snapshot_create",
        lambda saved: f"stood still for {saved['pause_s']:.3f} s, {saved['unique_mib']:.0f} MiB",
        machine="source",
    )
    branches = bench.operation(
        f"start {BRANCHES} branches of it",
        "machine_branch",
        lambda result: ", ".join(machine["name"] for machine in result["machines"]),
        source=saved["snapshot_id"],
        count=BRANCHES,
        name="branch",
    )
    names = [machine["name"] for machine in branches["machines"]]
    told = [bench.script(f"ask {name} who it is", name, _WHO).splitlines() for name in names]
    wrong = [f"{lines[0]!r} is not what was saved" for lines in told if lines[0] != _NOTE]
    for number, what in enumerate(("host name", "machine id", "entropy"), start=1):
        if len({lines[number] for lines in told}) != BRANCHES:
            wrong.append(f"two branches have the same {what}")
    bench.script("the source went on meanwhile", "source", "cut -d' ' -f1 /proc/uptime")
    states = {machine["name"]: machine["state"] for machine in mcp.call("machine_list")["items"]}
    wrong += [f"{name} is {state}" for name, state in states.items() if state != "running"]
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        state = folder / "state"
        share_images(state)
        print("A machine, from nothing but Debian's packages, and four branches of it.\n")
        with daemon(folder) as (path, process):
            mcp = Mcp(path, LONG_S)
            bench = Bench(mcp)
            try:
                wrong = show(bench, mcp)
            finally:
                end_machines(mcp)
                mcp.close()
        wrong += [f"the daemon ended with {process.returncode}"] if process.returncode else []
        wrong += left_behind(state)
    for promise in wrong:
        print(f"demo: {promise}", file=sys.stderr)
    if wrong:
        return 1
    took = {what: seconds for what, seconds, _ in bench.rows}
    boot, branch = took["boot it cold, until it is ready"], took[f"start {BRANCHES} branches of it"]
    print(
        f"\ndemo: booted in {boot:.1f} s, and {BRANCHES} branches with their own names and entropy "
        f"in {branch:.1f} s; nothing is left behind"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

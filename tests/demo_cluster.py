"""A cluster in trouble: `make demo-cluster` runs this.

Starts a daemon in a temporary directory and asks it over MCP for three microVMs in a network; saves
them at one moment, parts one from the others, shows who hears whom, heals, and puts all of them
back to where they were saved. The exit status is 0 only if what was promised was seen.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo_stage import LONG_S, Mcp, daemon, left_behind, share_images

NODES = {"n1": "10.9.0.11", "n2": "10.9.0.12", "n3": "10.9.0.13"}
TOPOLOGY = "cluster_name: trio\nnetwork: {name: lan, subnet: 10.9.0.0/24}\nnodes:\n" + "".join(
    f"  - {{name: {name}, memory_mb: 192, ip: {address}}}\n" for name, address in NODES.items()
)
TRIO = {"cluster": "trio"}
NOTE = "/var/tmp/note"
# Each node asks all others at once, and names those that have answered.
_LISTEN = "".join(
    f"(ping -c 3 -W 1 {address} >/dev/null && echo {name}) & " for name, address in NODES.items()
)
WHOLE = {name: set(NODES) for name in NODES}
APART = {"n1": {"n1"}, "n2": {"n2", "n3"}, "n3": {"n2", "n3"}}


class Show:
    """Does things to the cluster, tells what each took, and remembers what was not as promised."""

    def __init__(self, mcp: Mcp) -> None:
        self._mcp = mcp
        self.wrong: list[str] = []
        self.took: dict[str, float] = {}

    def step(self, what: str, tool: str, note: str = "", **given: Any) -> dict[str, Any]:
        began = time.perf_counter()
        if tool.startswith("cluster_") and tool != "cluster_define":
            answer = self._mcp.finish(tool, **given)
        else:
            answer = self._mcp.call(tool, **given)
        self.tell(what, began, note)
        return answer

    def tell(self, what: str, began: float, note: str) -> None:
        self.took[what] = took = time.perf_counter() - began
        print(f"{took:8.3f} s  {what:<38}  {note}", flush=True)

    def said(self, script: str) -> dict[str, str]:
        """Run a script in all nodes; what each said."""
        ran = self._mcp.call("node_exec_all", **TRIO, script=script)
        if not ran["all_succeeded"]:
            raise RuntimeError(f"{script}: {ran}")
        return {name: result["ran"]["stdout"].strip() for name, result in ran["results"].items()}

    def hearing(self, what: str, promised: dict[str, set[str]]) -> None:
        """Show who hears whom."""
        began = time.perf_counter()
        heard = {name: set(text.split()) for name, text in self.said(f"{_LISTEN} wait").items()}
        lines = [
            f"{name} hears {' '.join(sorted(who - {name})) or 'nobody'}"
            for name, who in heard.items()
        ]
        self.tell(what, began, ", ".join(lines))
        if heard != promised:
            self.wrong.append(f"{what}: {heard}")


def show(mcp: Mcp) -> Show:
    """Do what the demo promises."""
    shown = Show(mcp)
    began = time.perf_counter()
    mcp.finish("image_build")
    shown.tell("build the guest, or find it", began, "")
    shown.step("define three nodes in a network", "cluster_define", topology=TOPOLOGY)
    shown.step("start them, until each answers", "cluster_start", **TRIO)
    shown.hearing("ask each whom it hears", WHOLE)
    shown.said(f"echo before >{NOTE}")
    saved = shown.step(
        "save all of them at one moment", "cluster_snapshot_create", **TRIO, snapshot="clean"
    )
    if not saved["skew_s"] < saved["pause_s"]:
        shown.wrong.append(f"the nodes were not saved at one moment: {saved}")
    fault = shown.step(
        "part n1 from the others",
        "fault_inject",
        kind="partition",
        network="trio.lan",
        groups=[["trio.n1"], ["trio.n2", "trio.n3"]],
    )
    shown.hearing("ask each whom it hears", APART)
    shown.said(f"echo after >{NOTE}")
    shown.step("heal", "fault_heal", fault_id=fault["fault_id"])
    shown.hearing("ask each whom it hears", WHOLE)
    shown.step("put all of them back", "cluster_snapshot_revert", **TRIO, snapshot="clean")
    notes = shown.said(f"cat {NOTE}")
    print(
        f"{'':>10}  what they had written is {', '.join(sorted(set(notes.values())))}", flush=True
    )
    if set(notes.values()) != {"before"}:
        shown.wrong.append(f"the nodes are not as they were saved: {notes}")
    shown.hearing("ask each whom it hears", WHOLE)
    return shown


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        state = folder / "state"
        share_images(state)
        print("Three microVMs in a network: broken, healed, and put back to where they were.\n")
        with daemon(folder) as (path, process):
            mcp = Mcp(path, LONG_S)
            try:
                shown = show(mcp)
            finally:
                if mcp.call("cluster_list")["items"]:
                    mcp.finish("cluster_destroy", **TRIO, delete_disks=True)
                mcp.close()
        wrong = shown.wrong
        wrong += [f"the daemon ended with {process.returncode}"] if process.returncode else []
        wrong += left_behind(state)
    for promise in wrong:
        print(f"demo: {promise}", file=sys.stderr)
    if wrong:
        return 1
    took = shown.took
    print(
        f"\ndemo: three nodes up in {took['start them, until each answers']:.1f} s, parted in "
        f"{took['part n1 from the others'] * 1000:.0f} ms, healed in {took['heal'] * 1000:.0f} ms, "
        f"and put back in {took['put all of them back']:.1f} s; nothing is left behind"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

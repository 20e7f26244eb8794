"""A cluster on a network of the kernel's: faults hold there while nodes and daemons come and go.

What every cluster does is tried on both kinds of networks by `test_clusters`.
"""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

import hosted
from networking import KernelStage, network_settings, ping_script
from system.living import Stage, furnish, staged

ADDRESSES = {f"n{number}": f"10.9.0.1{number}" for number in (1, 2, 3)}
TOPOLOGY = """
cluster_name: trio
network: {name: lan, subnet: 10.9.0.0/24}
nodes:
  - {name: n1, memory_mb: 160, ip: 10.9.0.11}
  - {name: n2, memory_mb: 160, ip: 10.9.0.12}
  - {name: n3, memory_mb: 160, ip: 10.9.0.13}
"""


class Kernel:
    """What somebody sees of the network who looks into its namespace."""

    def __init__(self, netns: Path) -> None:
        self._stage = KernelStage(netns)

    def stands(self) -> list[str]:
        """Say what there is, however often it was made anew, and whatever passed."""
        # A tap is given an address by chance, of which the bridge takes one.
        chance = r"([0-9a-f]{1,2}:){5}[0-9a-f]{1,2}"
        passing = rf"^\d+: |{chance}|packets \d+ bytes \d+"
        return sorted(re.sub(passing, "", line) for line in self._stage.dump().splitlines())


def reached(stage: Stage, node: str, tries: int = 3) -> list[str]:
    """Name the nodes that answer one."""
    others = {address: name for name, address in ADDRESSES.items() if name != node}
    script = ping_script(others, tries=tries)
    ran = stage.ask("node_exec", cluster="trio", node=node, script=script)
    return sorted(others[address] for address in ran["stdout"].split())


def broken(stage: Stage) -> list[dict[str, Any]]:
    """Part n1 from the others, and let n2 send to n3 slowly."""
    parted = {"kind": "partition", "groups": [["trio.n1"], ["trio.n2", "trio.n3"]]}
    slow = {"kind": "impair", "machine": "trio.n2", "targets": ["trio.n3"]}
    return [
        stage.ask("fault_inject", network="trio.lan", **parted),
        stage.ask("fault_inject", network="trio.lan", **slow, rate_bytes=100_000),
    ]


def check_broken(stage: Stage, kernel: Kernel, faulty: list[str]) -> None:
    assert [reached(stage, name) for name in ADDRESSES] == [[], ["n3"], ["n2"]]
    assert kernel.stands() == faulty


@pytest.mark.long
def test_faults_hold_while_nodes_and_daemons_come_and_go_and_leave_no_trace(tmp_path: Path) -> None:
    state = tmp_path / "s"
    furnish(state)
    try:
        with network_settings("kernel") as settings:
            faults_hold(state, settings)
        assert hosted.left(state) == []
    finally:
        for pid in hosted.processes(state).values():
            os.kill(pid, signal.SIGKILL)


def faults_hold(state: Path, settings: dict[str, Any]) -> None:
    kernel = Kernel(Path(settings["netns"]))
    empty = kernel.stands()
    with staged(state, networks=settings) as stage:
        stage.ask("cluster_define", topology=TOPOLOGY)
        stage.done("cluster_start", cluster="trio")
        assert [reached(stage, name) for name in ADDRESSES] == [
            ["n2", "n3"], ["n1", "n3"], ["n1", "n2"],
        ]  # fmt: skip
        whole = kernel.stands()

        faults = broken(stage)
        faulty = kernel.stands()
        # A queue for who hears slowly, and rules for all three.
        assert len([line for line in faulty if "class htb" in line]) == 1
        check_broken(stage, kernel, faulty)
        for node in ("n1", "n3"):
            assert stage.done("node_crash", cluster="trio", node=node)["reachable"]
        check_broken(stage, kernel, faulty)
        stage.daemon.kill()

    with staged(state, networks=settings) as stage:
        check_broken(stage, kernel, faulty)
        assert stage.ask("fault_heal_all")["healed"] == len(faults)
        assert kernel.stands() == whole
        assert reached(stage, "n1") == ["n2", "n3"]

        stage.done("cluster_snapshot_create", cluster="trio", snapshot="s")
        broken(stage)
        stage.done("cluster_snapshot_revert", cluster="trio", snapshot="s")
        check_broken(stage, kernel, faulty)
        stage.done("cluster_stop", cluster="trio")
        stage.done("cluster_start", cluster="trio")
        check_broken(stage, kernel, faulty)
        stage.ask("fault_heal_all")
        assert kernel.stands() == whole

        stage.done("cluster_snapshot_branch", cluster="trio", snapshot="s", name="copy")
        copied = "ping -c 1 -W 9 10.9.0.12"
        ran = stage.ask("node_exec", cluster="copy", node="n1", script=copied)
        assert ran["exit_code"] == 0, ran
        stage.done("cluster_destroy", cluster="copy", delete_disks=True)
        assert kernel.stands() == whole

        broken(stage)
        stage.done("cluster_destroy", cluster="trio", delete_disks=True)
        assert kernel.stands() == empty

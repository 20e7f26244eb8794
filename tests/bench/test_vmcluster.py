"""Clusters of ours beside those of vmcluster-mcp 1.1.0, by turns in one run.

It is driven over its standard streams, as an agent does, and ours over the daemon's socket. Its
nodes are machines of libvirt's with an SSH server, ours microVMs with an agent: what is compared is
how long a user waits. What it cannot do is told so. `vmcluster_peer.py` says what lets it run here.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

import libvirtd
from bench.figures import cpu_of, cpu_of_all, median_ms, tell
from bench.test_clusters import pids_behind
from machines import LONG_S
from microvm_orchestrator.machine.base import Boot
from microvm_orchestrator.machine.qemu import qcow2
from microvm_orchestrator.machine.ssh.keys import make_key
from stdio_client import StdioClient
from system.living import Stage, living
from system.test_ssh_image import BEGINS, CONFIG, first_root, parts

PYTHON = Path(__file__).parents[2] / ".venv-vmcluster/bin/python"
PEER = Path(__file__).with_name("vmcluster_peer.py")
MEMORY_MIB = 256
NAMES = ("n1", "n2", "n3")
NET = "10.93.7"
# Its name is one that a kernel has room for, and nobody else takes.
BRIDGE = "mvseed0"
AIM = "2x faster or more"
# The first program of its nodes: an address, and an SSH server.
INIT = (
    BEGINS
    + r"""
cp /foreign/authorized $home/.ssh/authorized_keys
modprobe virtio_net
for word in $(cat /proc/cmdline); do
    case $word in node=*) ip addr add ${word#node=}/24 dev eth0 ;; esac
done
ip link set eth0 up
exec /usr/sbin/sshd -D -e -f /foreign/config
"""
)
# What it calls for, where there is none: an empty overlay, and a disc that nobody reads.
QEMU_IMG = """#!/bin/sh
for file; do :; done
cp {empty} "$file"
"""
GENISOIMAGE = """#!/bin/sh
truncate -s 64K "$2"
"""


@dataclass(slots=True)
class Times:
    """How long each thing took on the wall, and of CPU by all who do it, in seconds."""

    # What these have used.
    cpu_s: Callable[[], float]
    of: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    cpu: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    def take(self, what: str, act: Callable[[], Any]) -> Any:
        used, began = self.cpu_s(), time.perf_counter()
        told = act()
        self.of.setdefault(what, []).append(time.perf_counter() - began)
        self.cpu.setdefault(what, []).append(self.cpu_s() - used)
        return told


# Theirs


@contextmanager
def vmcluster(folder: Path) -> Generator[tuple[StdioClient, Times]]:
    """Run it, with a libvirtd of its own, and leave nothing of its machines."""
    boot, tsc_khz = anyio.run(parts, folder)
    key = make_key("vmcluster")
    (folder / "key").write_bytes(key.private)
    (folder / "key").chmod(0o600)
    initrd = folder / "initrd"
    files = {
        "init": (INIT.encode(), 0o755),
        "config": (CONFIG.encode(), 0o644),
        "authorized": (f"{key.public}\n".encode(), 0o600),
        "host": (make_key("host").private, 0o600),
    }
    initrd.write_bytes(first_root(boot, files))
    tools = _tools(folder)
    (folder / "trio.yaml").write_text(_topology(folder))
    words = f"{boot.cmdline} nokaslr tsc_early_khz={tsc_khz} tsc=reliable"
    with libvirtd.running_libvirtd() as lv:
        env = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "VMCLUSTER_LIBVIRT_URI": lv.uri,
            "VMCLUSTER_TOPOLOGY_DIR": str(folder),
            "VMCLUSTER_OVERLAY_DIR": str(folder / "overlays"),
            "VMCLUSTER_FAULT_REGISTRY": str(folder / "faults.json"),
            "VMCLUSTER_ARTIFACT_REGISTRY": str(folder / "artifacts.json"),
        }
        command = [PYTHON, PEER, boot.kernel, initrd, _root(boot), words]
        pipe = subprocess.PIPE
        with (
            (folder / "log").open("wb") as log,
            subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=log, env=env) as server,
        ):
            client = StdioClient(server)
            try:
                client.shake_hands()
                # Whatever libvirtd starts is its keeper's in the end.
                yield client, Times(lambda: cpu_of_all(server.pid) + cpu_of_all(lv.keeper.pid))
            finally:
                assert server.stdin is not None
                server.stdin.close()
                server.wait(LONG_S)
                # Its network is libvirtd's, which leaves bridges behind.
                subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True, check=False)


def _tools(folder: Path) -> Path:
    tools = folder / "bin"
    tools.mkdir()
    qcow2.create(folder / "empty", 1 << 30)
    scripts = {"qemu-img": QEMU_IMG.format(empty=folder / "empty"), "genisoimage": GENISOIMAGE}
    for name, script in scripts.items():
        if shutil.which(name) is None:
            (tools / name).write_text(script)
            (tools / name).chmod(0o755)
    return tools


def _root(boot: Boot) -> Path:
    [root] = [disk for disk in boot.disks if disk.serial == "root"]
    assert root.path
    return root.path


def _topology(folder: Path) -> str:
    nodes = "".join(
        f"  - {{name: {name}, role: node, vcpus: 1, memory_mb: {MEMORY_MIB}, "
        f"ip: {NET}.1{number}}}\n"
        for number, name in enumerate(NAMES)
    )
    return (
        f"cluster_name: trio\nbase_image: {folder}/empty\noverlay_dir: {folder}/overlays\n"
        f"network: {{name: lan, bridge: {BRIDGE}, subnet: {NET}.0/24}}\n"
        f"ssh: {{key_path: {folder}/key, user: root}}\nnodes:\n{nodes}"
    )


def run_theirs(client: StdioClient, times: Times, *, execs: int) -> dict[str, str]:
    """Do all of it once; what it refuses to do, and with which words."""
    refused = {"memory": "it has none, whatever is asked for"}

    def ask(what: str, tool: str, **arguments: Any) -> Any:
        told = times.take(what, lambda: client.call(tool, **arguments))
        if not told["success"]:
            times.of.pop(what)
            refused[what] = f"{told['error']['code']}: {told['error']['message']}"
        return told["result"]

    here = {"cluster_name": "trio"}
    ask("define", "cluster_define", topology_name="trio")
    ask("start", "cluster_start", **here, ssh_timeout_s=int(LONG_S))
    assert "start" not in refused, refused
    client.call("node_exec", **here, node_name="n1", command="true")
    for _ in range(execs):
        ran = ask("exec", "node_exec", **here, node_name="n1", command="true")
        assert ran["exit_code"] == 0
    groups = {"partition_a": ["n1"], "partition_b": ["n2", "n3"]}
    cut = ask("partition", "net_partition", **here, **groups)
    if cut is not None:
        ask("heal", "net_heal", **here, fault_handle=cut["handle_id"])
    ask("snapshot", "snapshot_create", **here, snapshot_name="s")
    ask("revert", "snapshot_revert", **here, snapshot_name="s", ssh_timeout_s=int(LONG_S))
    return refused


# Ours


def run_ours(stage: Stage, times: Times, *, execs: int) -> None:
    nodes = "".join(
        f"  - {{name: {name}, memory_mb: {MEMORY_MIB}, ip: {NET}.1{number}}}\n"
        for number, name in enumerate(NAMES)
    )
    lan = f"network: {{name: lan, subnet: {NET}.0/24}}"
    text = f"cluster_name: trio\n{lan}\nnodes:\n{nodes}"
    here = {"cluster": "trio"}
    made = times.take("define", lambda: stage.ask("cluster_define", topology=text))
    times.take("start", lambda: stage.done("cluster_start", **here))
    command = {**here, "node": "n1", "argv": ["true"]}
    stage.ask("node_exec", **command)
    for _ in range(execs):
        ran = times.take("exec", lambda: stage.ask("node_exec", **command))
        assert ran["exit_code"] == 0
    cut = {
        "network": made["networks"][0]["network_id"],
        "kind": "partition",
        "groups": [["trio.n1"], ["trio.n2", "trio.n3"]],
    }
    fault = times.take("partition", lambda: stage.ask("fault_inject", **cut))["fault_id"]
    times.take("heal", lambda: stage.ask("fault_heal", fault_id=fault))
    # Theirs are of disks only; ours also with memory, to which nodes go back without a boot.
    disks = {**here, "snapshot": "disks", "memory": False}
    times.take("snapshot", lambda: stage.done("cluster_snapshot_create", **disks))
    saved = {**here, "snapshot": "s"}
    times.take("memory", lambda: stage.done("cluster_snapshot_create", **saved))
    times.take("revert", lambda: stage.done("cluster_snapshot_revert", **saved))
    stage.done("cluster_destroy", **here, delete_disks=True)


def test_all_that_both_can_do_to_three_nodes(tmp_path: Path, *, whole: bool) -> None:
    if not whole:
        pytest.skip("three nodes of each take a minute: with --whole")
    if not PYTHON.exists():
        pytest.skip("vmcluster-mcp is not installed; `make bench` does that")
    if (why := libvirtd.why_not()) is not None or shutil.which("iptables") is None:
        pytest.skip(why or "vmcluster-mcp needs iptables")
    with living(tmp_path / "s") as stage:
        ours = Times(lambda: sum(map(cpu_of, pids_behind(stage))))
        run_ours(stage, ours, execs=50)
        run_ours(stage, ours, execs=50)
    folder = tmp_path / "theirs"
    folder.mkdir()
    with vmcluster(folder) as (client, theirs):
        refused = run_theirs(client, theirs, execs=50)
    for what, name in (
        ("define", "define three nodes"),
        ("start", "start them, until all answer"),
        ("exec", "exec in one of them"),
        ("partition", "partition, one from two"),
        ("heal", "heal it"),
        ("snapshot", "snapshot of disks"),
        ("memory", "snapshot with memory"),
        ("revert", "revert, until all answer"),
    ):
        told = f"{median_ms(ours.of[what]):.1f} ms"
        if what not in theirs.of:
            tell(name, told, floor=f"none, vmcluster-mcp: {refused[what][:90]}")
            continue
        other_ms = median_ms(theirs.of[what])
        ratio = f"1/{other_ms / median_ms(ours.of[what]):.1f}"
        tell(name, told, floor=f"{other_ms:.1f} ms, vmcluster-mcp", ratio=ratio, aim=AIM)
        # A process's is counted in hundredths of a second: the mean says more than the median.
        mine_s, its_s = statistics.mean(ours.cpu[what]), statistics.mean(theirs.cpu[what])
        tell(
            "  CPU of all who take part",
            f"{mine_s * 1000:.1f} ms",
            floor=f"{its_s * 1000:.1f} ms",
            ratio=f"{mine_s / its_s:.2f}" if its_s else "",
        )
    assert theirs.of["start"]

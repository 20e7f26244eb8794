"""Three nodes with nothing of ours in them, whose kernels are watched and whose key is handed out.

libvirt runs them, from a disk that boots itself, and they are reached by their own SSH servers. The
tools of vmcluster-mcp are tried out on such nodes in `test_vmcluster_tools.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

import hosted
from machines import LONG_S
from microvm_orchestrator.cli.duplex import lines_of, open_duplex
from microvm_orchestrator.machine.ssh import our_key_path
from system.raised import Raised, raised_by_libvirt
from system.test_clusters import EATS, news

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = ("n1", "n2", "n3")
TOPOLOGY = """
cluster_name: trio
backend: libvirt
image: disk
network: {name: lan, subnet: 10.9.0.0/24}
nodes:
  - {name: n1, memory_mb: 192, ip: 10.9.0.11}
  - {name: n2, memory_mb: 192, ip: 10.9.0.12}
  - {name: n3, memory_mb: 192, ip: 10.9.0.13}
"""  # Its SSH server would stand still as well, were it all of the guest's memory.
EATS_SOME = f"""
mkdir -p /run/groups && mount -t cgroup2 groups /run/groups
echo +memory >/run/groups/cgroup.subtree_control
mkdir /run/groups/few && echo 32M >/run/groups/few/memory.max
sh -c 'echo $$ >/run/groups/few/cgroup.procs; exec python3 -c "$0"' '{EATS}' || :
"""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trio() -> Iterator[Raised]:
    with raised_by_libvirt(TOPOLOGY, foreign=True) as cluster:
        yield cluster


def test_who_asks_for_the_key_of_a_cluster_logs_in_with_it_and_is_written_down(
    trio: Raised,
) -> None:
    def written() -> list[tuple[str, str, str]]:
        rows = trio.stage.ask("audit_list", action="cluster_handle")["items"]
        return [(row["actor"], row["target"], row["outcome"]) for row in rows]

    plain = trio.stage.ask("cluster_handle", cluster="trio")
    assert {node["ssh_key_path"] for node in plain["nodes"]} == {None}
    assert written() == []
    told = trio.stage.ask("cluster_handle", cluster="trio", key=True)
    assert {node["ssh_key_path"] for node in told["nodes"]} == {str(our_key_path(trio.state))}
    [(_, target, outcome)] = written()
    assert (target, outcome) == (told["cluster_id"], "ok")
    for node in told["nodes"]:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        way = ["-i", node["ssh_key_path"], "-p", str(node["ssh_port"])]
        ran = subprocess.run(
            ["ssh", *options, *way, f"{node['user']}@127.0.0.1", "hostname; uname -r"],
            capture_output=True,
            timeout=LONG_S,
            check=False,
        )
        assert ran.stdout.decode().split() == [node["name"], node["kernel_version"]], ran
    with trio.client() as client:
        by_tool = client.done("cluster_handle")["nodes"]
    assert [(each["ssh_host"], each["ssh_port"], each["ssh_key_path"]) for each in by_tool] == [
        ("127.0.0.1", node["ssh_port"], node["ssh_key_path"]) for node in told["nodes"]
    ]
    assert len(written()) == 2


def test_kernels_of_foreign_guests_are_watched_live_until_one_is_no_more(trio: Raised) -> None:
    stage = trio.stage
    cluster = stage.ask("kernel_log_events", cluster="trio")["cluster_id"]
    duplex = open_duplex(stage.client, "kernel_log_watch", {"cluster": "trio"})
    with duplex.sock:
        lines = lines_of(duplex)
        trio.said("n2", "echo '<4>something odd' >/dev/kmsg")
        odd = news(lines, "n2", what="line")
        assert (odd["line"]["text"], odd["line"]["level"], odd["source"]) == (
            *("something odd", "warn", "ring"),
        )
        trio.said("n2", EATS_SOME)
        assert news(lines, "n2", what="report")["report"]["trouble"] == "oom"
        os.kill(hosted.processes(trio.state)[trio.machine("n3")], signal.SIGKILL)
        assert news(lines, "n3", what="node", state="crashed")["answers"] is False
        cursor = stage.ask("event_wait", after="now")["cursor"]
        stage.done("cluster_start", cluster="trio")
        assert news(lines, "n3", what="node", state="running")["answers"] is True
        trio.said("n3", "echo '<4>again' >/dev/kmsg")
        # Its console has been telling of the boot.
        while news(lines, "n3", what="line")["line"]["text"] != "again":
            pass
    stage.hear("kernel-log.trouble", cluster)
    heard = {"subjects": [cluster], "kinds": ["kernel-log.heard"], "timeout_s": LONG_S}
    assert stage.ask("event_wait", **heard, after=cursor)["events"]
    events = stage.ask("event_wait", subjects=[cluster], kinds=["kernel-log.*"])["events"]
    told = [(each["kind"].partition(".")[2], each["body"]) for each in events]
    assert ("trouble", "n2") in [(what, body.get("node")) for what, body in told]
    # On a busy host a guest may be silent for a while beside.
    of_n3 = [(what, body["state"]) for what, body in told if body.get("node") == "n3"]
    assert of_n3.count(("silent", "crashed")) == 1
    assert ("heard", "running") in of_n3[of_n3.index(("silent", "crashed")) :]
    assert stage.ask("kernel_log_events", cluster="trio", off=True)["on"] is False
    for node in NODES:
        trio.said(node, "while ps | grep -q '[k]msg'; do sleep 0.1; done")

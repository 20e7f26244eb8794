"""A cluster of three real machines, from its topology to its end; all tests here share it.

What goes wrong in the middle of each verb is tried in `unit/clusters`, on machines that are none.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from machines import LONG_S
from microvm_orchestrator import errors
from microvm_orchestrator.cli import failure
from microvm_orchestrator.cli.duplex import lines_of, open_duplex
from networking import kernel_lacks, network_settings, ping_script
from stdio_client import stdio_client
from system.living import Stage, living

NODES = ("n1", "n2", "n3")
TOPOLOGY = """
cluster_name: trio
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
env: {MODE: test, WHO: nobody}
snapshots: {baseline: clean}
nodes:
  - name: n1
    role: control
    memory_mb: 192
    ip: 10.9.0.11
    ip6: "fd09::11"
    env: {WHO: first}
    extra_disks: [{path: /data/log.qcow2, size_gb: 2}]
  - {name: n2, memory_mb: 192, disk_gb: 1, ip: 10.9.0.12, ip6: "fd09::12"}
  - {name: n3, memory_mb: 192, ip: 10.9.0.13, ip6: "fd09::13"}
"""

FLOODED = 20_000
# The kernel itself holds back who writes much to its log, unless it is told not to.
FLOOD = f"""
echo on >/proc/sys/kernel/printk_devkmsg
python3 -c '
with open("/dev/kmsg", "w", buffering=1) as log:
    for number in range({FLOODED}):
        print("<12>a line of a flood that has", number, "x" * 200, file=log)
    print("<12>over", file=log)
'
"""
# More than it has.
EATS = 'eaten = [b"x" * (1 << 20) for _ in range(1 << 16)]'


@pytest.fixture(
    scope="module", params=["userspace", pytest.param("kernel", marks=pytest.mark.long)]
)
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Stage]:
    with (
        network_settings(request.param) as networks,
        living(tmp_path_factory.mktemp("trio") / "s", networks=networks) as stage,
    ):
        stage.ask("cluster_define", topology=TOPOLOGY)
        started = stage.done("cluster_start", cluster="trio")
        assert [(node["name"], node["reachable"]) for node in started["nodes"]] == [
            (name, True) for name in NODES
        ]
        yield stage
        stage.done("cluster_destroy", cluster="trio", delete_disks=True)
        assert stage.ask("cluster_list")["items"] == stage.ask("network_list")["items"] == []


def said(stage: Stage, node: str, script: str, cluster: str = "trio") -> str:
    """Run a script in a node that succeeds; what it says."""
    ran = stage.ask("node_exec", cluster=cluster, node=node, script=script, timeout_s=LONG_S)
    assert ran["exit_code"] == 0, ran
    return str(ran["stdout"])


def reach_each_other(stage: Stage, cluster: str = "trio") -> None:
    ping = "for to in 10.9.0.12 fd09::12 10.9.0.13 fd09::13; do ping -c 1 -W 9 $to || exit; done"
    said(stage, "n1", ping, cluster)


def nodes(stage: Stage, cluster: str = "trio") -> dict[str, dict[str, Any]]:
    status = stage.ask("cluster_status", cluster=cluster)
    return {node["name"]: node for node in status["nodes"]}


def test_nodes_have_the_names_addresses_disks_and_variables_of_the_topology(stage: Stage) -> None:
    handle = stage.ask("cluster_handle", cluster="trio")
    assert [node["addresses"]["lan"] for node in handle["nodes"]] == [
        ["10.9.0.11", "fd09::11"],
        ["10.9.0.12", "fd09::12"],
        ["10.9.0.13", "fd09::13"],
    ]
    assert handle["kernel_version"] == said(stage, "n1", "uname -r").strip()
    reach_each_other(stage)
    by_name = "for to in n1 n2 n3; do ping -c 1 -W 9 $to || exit; done | grep ^PING"
    told = said(stage, "n3", by_name)
    assert [line.split()[1] for line in told.splitlines()] == list(NODES)
    assert said(stage, "n3", "cat /etc/hosts").startswith("127.0.0.1 localhost\n::1 localhost\n")
    ran = stage.ask("node_exec_all", cluster="trio", script='echo "$(hostname) $MODE $WHO"')
    assert ran["all_succeeded"], ran
    assert [ran["results"][name]["ran"]["stdout"] for name in NODES] == [
        "n1 test first\n",
        "n2 test nobody\n",
        "n3 test nobody\n",
    ]
    disks = "for disk in /sys/block/vd*; do echo $(cat $disk/serial) $(cat $disk/size); done"
    assert f"log {2 << 21}" in said(stage, "n1", disks).splitlines()


def test_a_command_that_takes_too_long_is_ended_and_what_it_had_said_is_kept(stage: Stage) -> None:
    slow = "echo begun; exec sleep 4321"
    ran = stage.ask("node_exec", cluster="trio", node="n3", script=slow, timeout_s=1.0)
    assert (ran["timed_out"], ran["stdout"]) == (True, "begun\n")
    assert "sleep 4321" not in said(stage, "n3", "ps -o args || ps")
    counted = {"cluster": "trio", "node": "n3", "script": "echo x >>/tmp/n; wc -l </tmp/n"}
    for _ in range(2):
        again = stage.ask("node_exec", **counted, exec_id="once")
        assert again["stdout"].strip() == "1"


def test_a_cluster_goes_back_to_what_it_was_and_a_copy_goes_on_from_there(stage: Stage) -> None:
    stage.ask("node_exec_all", cluster="trio", script="hostname >/tmp/state; echo old >>/tmp/state")
    saved = stage.done("cluster_snapshot_create", cluster="trio", snapshot="baseline")
    assert (saved["snapshot"], saved["baseline"], set(saved["nodes"])) == (
        "clean",
        True,
        set(NODES),
    )
    assert saved["skew_s"] < saved["pause_s"]
    before = nodes(stage)
    boots = said(stage, "n3", "cat /proc/sys/kernel/random/boot_id")
    stage.ask("node_exec_all", cluster="trio", script="rm /tmp/state; echo new >/tmp/new")
    reverted = stage.done("cluster_snapshot_revert", cluster="trio", snapshot="clean")
    assert [node["reachable"] for node in reverted["nodes"]] == [True] * 3
    same = ("machine_id", "addresses", "state")
    assert [[each[key] for key in same] for each in nodes(stage).values()] == [
        [each[key] for key in same] for each in before.values()
    ]
    for node in NODES:
        assert said(stage, node, "cat /tmp/state; ls /tmp/new || :") == f"{node}\nold\n"
        assert abs(float(said(stage, node, "date +%s")) - time.time()) < 5
    # Of a guest that goes on, not of one that was booted.
    assert said(stage, "n3", "cat /proc/sys/kernel/random/boot_id") == boots
    reach_each_other(stage)

    copy = stage.done("cluster_snapshot_branch", cluster="trio", snapshot="clean", name="copy")
    assert [node["reachable"] for node in copy["nodes"]] == [True] * 3
    assert [node["addresses"] for node in copy["nodes"]] == [
        node["addresses"] for node in before.values()
    ]
    said(stage, "n2", "echo of the copy >/tmp/state", "copy")
    assert said(stage, "n2", "cat /tmp/state") == "n2\nold\n"
    reach_each_other(stage, "copy")
    stage.done("cluster_destroy", cluster="copy", delete_disks=True)
    stage.ask("cluster_snapshot_delete", cluster="trio", snapshot="baseline")
    assert stage.ask("cluster_snapshot_list", cluster="trio")["items"] == []


def test_a_client_of_vmcluster_mcp_breaks_the_network_and_reads_the_kernels(stage: Stage) -> None:
    here = {"cluster_name": "trio"}
    both = ["10.9.0.12", "fd09::12"]

    def reached(node: str, tries: int) -> list[str]:
        return sorted(said(stage, node, ping_script(both, tries=tries)).split())

    with stdio_client(stage.daemon.socket, "vmcluster", {}) as client:

        def done(tool: str, **arguments: Any) -> Any:
            told = client.call(tool, **here, **arguments)
            assert told["success"], told
            return told["result"]

        marks = done("dmesg_mark")
        assert set(marks) == set(NODES)
        apart = done("net_partition", partition_a=["n1"], partition_b=["n2"])
        assert (reached("n1", 1), reached("n3", 9)) == ([], both)
        assert [node["ssh_reachable"] for node in done("cluster_status")["nodes"]] == [True] * 3
        assert done("net_heal", fault_handle=apart["handle_id"]) is True
        assert reached("n1", 9) == both
        slow = {"source_node": "n1", "target_node": "n2", "latency_ms": 300}
        told = client.call("net_impair", **here, **slow)
        if told["success"]:
            took = "sed -n 's/.*time=\\([0-9]*\\).*/\\1/p' | tail -n 1"
            assert int(said(stage, "n1", f"ping -c 2 -W 9 10.9.0.12 | {took}")) >= 300
        else:
            # Only a kernel may lack it, and then whoever asks.
            assert "netem" in told["error"]["message"], told
            assert kernel_lacks("netem")
        assert done("net_heal_all") == int(told["success"])
        assert done("net_fault_list") == []
        said(stage, "n2", "echo '<4>something odd' >/dev/kmsg")
        heard = done("dmesg_collect", since_marker=marks["n2"], filter_level="warn+")
        assert [line["text"] for line in heard["n2"]["lines"]] == ["something odd"]
        assert not any(each["oops_detected"] or each["panic_detected"] for each in heard.values())


def test_a_dead_node_is_an_error_everywhere_and_comes_back_with_its_disk(stage: Stage) -> None:
    said(stage, "n2", "echo kept >disk; sync")
    down = stage.done("node_crash", cluster="trio", node="n2", restart=False)
    assert (down["state"], down["reachable"]) == ("stopped", False)
    run = {"cluster": "trio", "argv": ["true"]}
    for call, more in (
        ("node_exec", {**run, "node": "n2"}),
        ("node_crash", {"cluster": "trio", "node": "n2"}),
        ("cluster_handle", {"cluster": "trio"}),
    ):
        assert stage.refusal(call, **more) == "machine-unreachable", call
    assert stage.refusal("node_exec_all", **run) == "nodes-failed"
    assert stage.refusal("cluster_snapshot_create", cluster="trio", snapshot="s") == (
        "machine-unreachable"
    )
    ran = stage.ask("node_exec_all", **run, require_all=False)
    assert (ran["all_succeeded"], ran["failed_nodes"]) == (False, ["n2"])
    assert ran["results"]["n2"]["error"]["code"] == "machine-unreachable"
    assert ran["results"]["n3"]["ran"]["exit_code"] == 0
    assert [node["reachable"] for node in nodes(stage).values()] == [True, False, True]
    stage.done("cluster_start", cluster="trio")
    assert said(stage, "n2", "cat disk") == "kept\n"
    reach_each_other(stage)


def news(lines: Iterator[Any], of: str, **like: Any) -> dict[str, Any]:
    """Read on to what is told of a node that is like that."""
    return next(
        each
        for each in lines
        if each["node"] == of and all(each.get(key) == value for key, value in like.items())
    )


def test_kernels_are_watched_live_through_a_flood_and_a_crash(stage: Stage) -> None:
    on = stage.ask("kernel_log_events", cluster="trio")
    assert (on["on"], on["nodes"]) == (True, list(NODES))
    cluster = on["cluster_id"]
    mark = stage.ask("kernel_log_mark", machine="trio.n2")["mark"]
    duplex = open_duplex(stage.client, "kernel_log_watch", {"cluster": "trio"})
    with duplex.sock:
        lines = lines_of(duplex)
        said(stage, "n2", "echo '<4>something odd' >/dev/kmsg")
        odd = news(lines, "n2", what="line")
        assert (odd["line"]["text"], odd["line"]["level"], odd["source"], odd["count"]) == (
            *("something odd", "warn", "ring", 1),
        )

        # What a guest says too much is counted, to the line, by the numbers of its own kernel.
        said(stage, "n1", FLOOD)
        told = dropped = 0
        while True:
            each = news(lines, "n1")
            if each["what"] == "line" and each["line"]["text"] == "over":
                break
            told += each["count"] if each["what"] == "line" else 0
            dropped += each["count"] if each["what"] == "dropped" else 0
        assert told + dropped == FLOODED
        assert dropped > 0

        said(stage, "n2", f"python3 -c '{EATS}' || :")
        assert news(lines, "n2", what="report")["report"]["trouble"] == "oom"
        with pytest.raises(errors.OrchestratorError):
            said(stage, "n3", "echo c >/proc/sysrq-trigger")
        panic = news(lines, "n3", what="report")
        assert (panic["report"]["trouble"], panic["source"]) == ("panic", "console")
        assert news(lines, "n3", what="node", state="crashed")["answers"] is False
        stage.done("cluster_start", cluster="trio")
        assert news(lines, "n3", what="node", state="running")["answers"] is True

    # Who looks from a mark on sees what was since.
    with stage.started("kernel-log", "watch", "trio", "--node", "n2", "--since", mark) as looking:
        assert looking.stdout
        assert b"warn   something odd" in looking.stdout.readline()
        looking.send_signal(signal.SIGINT)
        assert looking.wait(LONG_S) == failure.INTERRUPTED
    # Each node is heard by itself, so of two nothing says who comes first.
    for last in ("heard", "dropped"):
        stage.hear(f"kernel-log.{last}", cluster)
    events = stage.ask("event_wait", subjects=[cluster], kinds=["kernel-log.*"])["events"]
    bodies = [(each["kind"].partition(".")[2], each["body"]) for each in events]
    heard = [(body.get("node"), what, body.get("trouble")) for what, body in bodies]
    assert heard[0] == (None, "watched", None)
    assert sorted(heard[1:], key=lambda each: each[0]) == [
        *(("n1", "dropped", None), ("n2", "trouble", "oom")),
        *(("n3", "trouble", "panic"), ("n3", "silent", None), ("n3", "heard", None)),
    ]
    # Nobody follows any more where nobody listens.
    assert stage.ask("kernel_log_events", cluster="trio", off=True)["on"] is False
    for node in NODES:
        said(stage, node, "while ps | grep -q '[k]msg'; do sleep 0.1; done")


def test_stopping_is_over_when_it_says_so(stage: Stage) -> None:
    stopped = stage.done("cluster_stop", cluster="trio")
    assert {node["state"] for node in stopped["nodes"]} == {"stopped"}
    assert stage.ask("machine_list", state=["running"])["items"] == []
    with pytest.raises(errors.MachineUnreachable):
        stage.ask("node_exec", cluster="trio", node="n1", argv=["true"])

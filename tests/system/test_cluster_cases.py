"""What vmcluster-mcp promised or got wrong, each case by its number in a list of such things.

A daemon with three real machines, which all cases share; each leaves the cluster whole. Cases 1 to
10 are in `test_acceptance.py`, those from 22 on in `test_delegation.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machines import LONG_S
from microvm_orchestrator import errors, places
from system.raised import Client, Raised, raised

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = ("n1", "n2", "n3")
TOPOLOGY = """
cluster_name: trio
network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
networks: [{name: storage, subnet: 10.10.0.0/24}]
nodes:
  - name: n1
    memory_mb: 192
    ip: 10.9.0.11
    ip6: "fd09::11"
    networks: [{name: storage, ip: 10.10.0.11}]
  - name: n2
    memory_mb: 192
    disk_gb: 1
    ip: 10.9.0.12
    ip6: "fd09::12"
    networks: [{name: storage, ip: 10.10.0.12}]
  - {name: n3, memory_mb: 192, ip: 10.9.0.13, ip6: "fd09::13"}
"""
LAN = {name: (f"10.9.0.1{name[1]}", f"fd09::1{name[1]}") for name in NODES}
STORAGE = {"n1": "10.10.0.11", "n2": "10.10.0.12"}
# Answers every question with the time of its own clock, from the background.
ANSWER = """
import os, socket, time
box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
box.bind(("", 9))
if os.fork():
    os._exit(0)
os.setsid()
for fd in range(3):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd)
while True:
    peer = box.recvfrom(64)[1]
    box.sendto(b"%d" % time.time_ns(), peer)
"""
# Tells how late each question and each answer came, in milliseconds, by the two clocks.
QUESTION = """
import socket, time
box = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
box.settimeout(60)
for _ in range(10):
    asked = time.time_ns()
    box.sendto(b"?", ("{address}", 9))
    answered = int(box.recv(64))
    print((answered - asked) / 1e6, (time.time_ns() - answered) / 1e6)
"""
# Names those that answer, of some again and again: they may have to be found first.
PINGS = """
for to in {there}; do
    (for _ in 1 2 3 4 5 6 7 8 9; do ping -c 1 -W 2 $to && echo $to >&3 && break; done) &
done 3>&1 >/dev/null
for to in {away}; do
    (ping -c 2 -W 1 $to && echo $to >&3) &
done 3>&1 >/dev/null
wait
"""
# More than the node has.
EATS = "python3 -IS -c \"eaten = []\nwhile True: eaten.append(b'x' * (1 << 20))\""


@pytest.fixture(scope="module")
def trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raised]:
    with raised(tmp_path_factory.mktemp("cases") / "s", TOPOLOGY) as cluster:
        yield cluster


@pytest.fixture
def client(trio: Raised) -> Iterator[Client]:
    with trio.client() as client:
        yield client


@pytest.fixture(autouse=True)
def healed(trio: Raised) -> Iterator[None]:
    """Let no case be the fault of the one before."""
    yield
    trio.stage.ask("fault_heal_all")


def reach(trio: Raised, groups: str) -> None:
    """See that nodes of a group hear each other by each address, and nobody else: `n1 n2|n3`."""
    scripts, wanted = "", dict[str, list[str]]()
    for group in (set(group.split()) for group in groups.split("|")):
        for node in group:
            there = [each for name in sorted(group - {node}) for each in LAN[name]]
            away = [each for name in NODES if name not in group for each in LAN[name]]
            pings = PINGS.format(there=" ".join(there), away=" ".join(away))
            scripts += f"{node})\n{pings};;\n"
            wanted[node] = sorted(there)
    script = f"case $(hostname) in\n{scripts}esac"
    asked = {"cluster": trio.name, "script": script, "timeout_s": LONG_S}
    ran = trio.stage.ask("node_exec_all", **asked)["results"]
    assert {node: sorted(ran[node]["ran"]["stdout"].split()) for node in NODES} == wanted, groups


def test_case_11_a_partition_parts_is_whole_within_and_is_healed_once_or_twice(
    trio: Raised, client: Client
) -> None:
    reach(trio, "n1 n2 n3")
    apart = client.done("net_partition", partition_a=["n1", "n2"], partition_b=["n3"])
    reach(trio, "n1 n2|n3")
    # What the way in goes by is no part of it.
    assert [node["ssh_reachable"] for node in client.done("cluster_status")["nodes"]] == [True] * 3
    for _ in range(2):
        assert client.done("net_heal", fault_handle=apart["handle_id"]) is True
    reach(trio, "n1 n2 n3")
    # One of them is of both networks, and one all the same.
    for node in ("n2", "n3"):
        client.done("net_partition", partition_a=["n1"], partition_b=[node])
    reach(trio, "n1|n2 n3")
    assert [fault["affected_nodes"] for fault in client.done("net_fault_list")] == [
        ["n1", "n2"],
        ["n1", "n3"],
    ]
    assert client.done("net_heal_all") == 2
    assert client.done("net_heal_all") == 0
    assert client.done("net_fault_list") == []
    reach(trio, "n1 n2 n3")


def late(trio: Raised, node: str, address: str) -> tuple[float, float]:
    """Tell how late the quickest question and the quickest answer come, by clocks that differ."""
    script = f"python3 -IS -c '{QUESTION.format(address=address)}'"
    lines = [line.split() for line in trio.said(node, script).splitlines()]
    return min(float(there) for there, _ in lines), min(float(back) for _, back in lines)


def test_case_12_latency_is_met_by_what_a_node_sends_and_by_nothing_else(
    trio: Raised, client: Client
) -> None:
    asked_ms = 250
    for node in ("n2", "n3"):
        trio.said(node, f"python3 -IS -c '{ANSWER}'")
    there, back = late(trio, "n1", LAN["n2"][0])
    # Of both together, clocks that differ take nothing away: what a way takes by itself.
    usual = there + back
    client.done("net_impair", source_node="n1", target_node="n2", latency_ms=asked_ms)
    slow_there, same_back = late(trio, "n1", LAN["n2"][0])
    assert slow_there + same_back >= asked_ms
    assert asked_ms - usual <= slow_there - there < 2 * asked_ms
    assert same_back - back < asked_ms / 2
    # It is for that one target.
    assert sum(late(trio, "n1", LAN["n3"][0])) < asked_ms
    assert client.done("net_heal_all") == 1
    client.done("net_impair", source_node="n2", latency_ms=asked_ms)
    same_there, slow_back = late(trio, "n1", LAN["n2"][0])
    assert asked_ms - usual <= slow_back - back < 2 * asked_ms
    assert same_there - there < asked_ms / 2
    assert client.done("net_heal_all") == 1
    assert sum(late(trio, "n1", LAN["n2"][0])) < asked_ms


def test_case_13_where_the_second_rule_fails_the_first_is_gone(
    trio: Raised, client: Client
) -> None:
    # Delays cannot be spread in two ways, so what is asked for cannot be in the second network.
    there = {"delay_s": 0.02, "jitter_s": 0.01, "spread": "normal"}
    inject = {"kind": "impair", "network": "trio.storage", "machine": "trio.n1"}
    standing = trio.stage.ask("fault_inject", **inject, **there)
    before = client.done("net_fault_list")
    known = trio.stage.ask("fault_list", ended=True)
    refused = client.failed(
        "net_impair", source_node="n1", target_node="n2", latency_ms=400, jitter_ms=100
    )
    assert (refused["code"], refused["recoverable"]) == ("CONFLICT", True)
    assert client.done("net_fault_list") == before
    # It is one fault in both, and was refused before the first was touched.
    assert trio.stage.ask("fault_list", ended=True) == known
    trio.said("n2", f"python3 -IS -c '{ANSWER}' 2>/dev/null || :")
    assert sum(late(trio, "n1", LAN["n2"][0])) < 300
    # Of several rules in one network it is the same.
    trio.stage.ask("fault_heal", fault_id=standing["fault_id"])
    one = {"kind": "impair", "network": "trio.lan", "machine": "trio.n1"}
    trio.stage.ask("fault_inject", **one, targets=["trio.n3"], **there)
    assert client.failed("net_impair", source_node="n1", latency_ms=400, jitter_ms=100)
    assert sum(late(trio, "n1", LAN["n2"][0])) < 300
    assert client.done("net_heal_all") == 1


@pytest.fixture(scope="module")
def standing(trio: Raised) -> list[dict[str, Any]]:
    """Break the network in two ways, and kill the daemon; the faults as they were listed."""
    with trio.client() as client:
        client.done("net_partition", partition_a=["n1"], partition_b=["n2", "n3"])
        client.done("net_impair", source_node="n2", target_node="n3", loss_pct=100)
        listed: list[dict[str, Any]] = client.done("net_fault_list")
    trio.killed()
    return listed


def test_case_14_a_daemon_that_was_killed_knows_the_faults_and_they_hold(
    standing: list[dict[str, Any]], trio: Raised, client: Client
) -> None:
    assert [fault["fault_type"] for fault in standing] == ["partition", "impair"]
    assert client.done("net_fault_list") == standing
    reach(trio, "n1|n2|n3")
    assert client.done("net_heal", fault_handle=standing[1]["handle_id"]) is True
    assert client.done("net_fault_list") == standing[:1]
    reach(trio, "n1|n2 n3")
    assert client.done("net_heal_all") == 1
    reach(trio, "n1 n2 n3")


def test_case_15_a_node_that_has_crashed_is_unreachable_and_its_kernel_is_not_clean(
    trio: Raised, client: Client
) -> None:
    marks = client.done("dmesg_mark")
    down = client.done("node_crash", node="n2", restart_after=False)
    assert (down["domain_state"], down["ssh_reachable"]) == ("shut off", False)
    dead = client.failed("node_exec", node_name="n2", command="true")
    assert (dead["code"], dead["node"]) == ("SSH_ERROR", "n2")
    quiet = client.told("dmesg_collect", since_marker=marks["n1"])
    assert (quiet["error"]["code"], quiet["error"]["node"]) == ("PARTIAL_FAILURE", "n2")
    assert set(quiet["result"]) == {"n1", "n3"}
    assert client.failed("dmesg_collect", nodes=["n2"])["code"] == "ALL_NODES_FAILED"
    assert client.failed("dmesg_mark", nodes=["n2"])["node"] == "n2"

    # One whose kernel died says so, though nobody can ask it.
    assert not client.told("node_exec", node_name="n3", command="echo c >/proc/sysrq-trigger")[
        "success"
    ]
    trio.stage.hear("machine.crashed", trio.machine("n3"))
    told = client.done("dmesg_collect", nodes=["n3"], since_marker=marks["n3"])["n3"]
    assert told["panic_detected"]
    assert "panic" in {line["classified_as"] for line in told["lines"]}
    trio.whole()


def test_case_16_a_command_that_ends_its_node_is_run_once(trio: Raised, client: Client) -> None:
    """Over and over, a command that comes again would end the node that was started again."""
    once = "echo begun >>~/begun; sync; reboot -f; sleep 60"
    answer = client.told("node_exec", node_name="n2", command=once)
    assert (answer["success"], answer["error"]["node"]) == (False, "n2"), answer
    trio.whole()
    assert trio.said("n2", "cat ~/begun; rm ~/begun") == "begun\n"


def test_case_17_too_much_output_is_cut_and_told_of_and_a_timeout_ends_all_and_keeps_the_rest(
    trio: Raised, client: Client
) -> None:
    flood = "seq 1 20000; echo the end"
    ran = client.done("node_exec", node_name="n1", command=flood)
    assert (ran["exit_code"], ran["truncated"]) == (0, True)
    assert len(ran["stdout"]) <= 1 << 16
    assert ran["stdout"].endswith("20000\nthe end\n")
    brief = client.done("node_exec", node_name="n1", command="seq 1 9")
    assert (brief["stdout"].split()[-1], brief["truncated"]) == ("9", False)
    native = trio.ran("n1", flood, output_cap=16)
    assert (native["stdout"], native["truncated"]) == ("9\n20000\nthe end\n", True)
    slow = "echo begun; (trap '' TERM; sleep 4321) & sleep 4322"
    late = client.done("node_exec", node_name="n1", command=slow, timeout_s=1)
    assert (late["timed_out"], late["stdout"]) == (True, "begun\n")
    running = trio.said("n1", "ps -o args || ps")
    assert ("sleep 4321" in running, "sleep 4322" in running) == (False, False)


def test_case_18_what_was_written_after_a_snapshot_is_gone_and_the_newest_can_be_deleted(
    trio: Raised, client: Client
) -> None:
    def everywhere(command: str) -> list[str]:
        ran = client.done("node_exec_all", command=command)
        return [ran["results"][node]["stdout"] for node in NODES]

    everywhere("echo before >~/kept")
    for name in ("first", "newest"):
        saved = client.done("snapshot_create", snapshot_name=name)
        assert set(saved["per_node"]) == set(NODES)
    everywhere("echo after >~/late; rm ~/kept")
    reverted = client.done("snapshot_revert", snapshot_name="newest")
    assert [node["ssh_reachable"] for node in reverted["nodes"]] == [True] * 3
    assert everywhere("cd; ls late kept 2>/dev/null || :") == ["kept\n"] * 3
    gone = client.done("snapshot_delete", snapshot_name="newest")
    assert {node["deleted"] for node in gone["per_node"].values()} == {True}
    assert everywhere("cat ~/kept") == ["before\n"] * 3
    assert [each["snapshot_name"] for each in client.done("snapshot_list")] == ["first"]
    # Its snapshots are no obstacle, and no loss.
    ended = client.done("cluster_destroy")
    assert {node["domain_state"] for node in ended["nodes"]} == {"unknown"}
    trio.stage.ask("cluster_define", topology=TOPOLOGY)
    client.done("snapshot_revert", snapshot_name="first")
    assert everywhere("cd; ls late kept 2>/dev/null; rm kept") == ["kept\n"] * 3
    client.done("snapshot_delete", snapshot_name="first")


def test_case_19_what_came_after_a_mark_is_told_by_how_grave_it_is_and_what_it_means(
    trio: Raised, client: Client
) -> None:
    forged = "Kernel panic - not syncing: says a program"
    write = 'for line in {}; do echo "$line" >/dev/kmsg; done'
    trio.said("n1", write.format("'<4>before the mark'"))
    marker = client.done("dmesg_mark", nodes=["n1"])["n1"]
    trio.said("n1", write.format(f"'<6>of note' '<4>a warning' '<3>an error' '<0>{forged}'"))

    def collected(level: str = "all") -> Any:
        asked = {"nodes": ["n1"], "since_marker": marker, "filter_level": level}
        return client.done("dmesg_collect", **asked)["n1"]

    def lines(level: str) -> list[str]:
        return [line["text"] for line in collected(level)["lines"]]

    assert lines("all") == ["of note", "a warning", "an error", forged]
    assert lines("warn+") == ["a warning", "an error", forged]
    assert lines("err+") == ["an error", forged]
    log = collected()
    # A program's word is not the kernel's.
    assert {line["classified_as"] for line in log["lines"]} == {"normal"}
    assert (log["panic_detected"], log["oops_detected"]) == (False, False)
    assert client.failed("dmesg_collect", filter_level="grave")["code"] == "INVALID_FILTER_LEVEL"
    stray = client.failed("dmesg_collect", nodes=["n1"], since_marker="vmcluster-marker-of-none")
    assert stray["node"] == "n1"
    # What the kernel itself says is known for what it is.
    client.told("node_exec", node_name="n1", command=EATS)
    eaten = collected()
    assert "oom" in {line["classified_as"] for line in eaten["lines"]}
    assert not eaten["panic_detected"]


def test_case_20_a_cluster_of_which_a_node_could_not_be_made_is_repaired_by_another_define(
    trio: Raised, client: Client
) -> None:
    (trio.state / places.TOPOLOGIES).mkdir()
    (trio.state / places.TOPOLOGIES / "pair.yaml").write_text("""
cluster_name: pair
network: {name: lan, subnet: 10.9.0.0/24}
networks: [{name: storage, subnet: 10.10.0.0/24}]
nodes:
  - {name: one, memory_mb: 192, ip: 10.9.0.11}
  - {name: two, memory_mb: 192, ip: 10.9.0.12, networks: [{name: storage, ip: 10.10.0.12}]}
""")
    # Somebody's, in the way of the second node.
    trio.stage.ask("network_create", name="pair.storage", prefixes=["10.77.0.0/24"])
    for _ in range(2):
        half = client.failed("cluster_define", topology_name="pair")
        assert (half["code"], half["recoverable"]) == ("PARTIAL_DEFINE", True)
        assert "node two" in half["message"]
        assert "node one" not in half["message"]
    first = trio.stage.ask("machine_get", machine="pair.one")["machine_id"]
    assert client.failed("cluster_start", cluster_name="pair")["code"] != "INTERNAL_ERROR"
    trio.stage.ask("network_remove", network="pair.storage")
    repaired = client.done("cluster_define", topology_name="pair")
    assert [(node["name"], node["domain_state"]) for node in repaired["nodes"]] == [
        ("one", "shut off"),
        ("two", "shut off"),
    ]
    assert trio.stage.ask("machine_get", machine="pair.one")["machine_id"] == first
    started = client.done("cluster_start", cluster_name="pair")
    assert [node["ssh_reachable"] for node in started["nodes"]] == [True, True]
    client.done("cluster_destroy", cluster_name="pair", remove_overlays=True)


@pytest.mark.parametrize("name", ["../outside", "../../outside", "/outside", "..", "a/../outside"])
def test_case_21_a_topology_or_snapshot_of_a_name_that_leads_elsewhere_is_refused(
    trio: Raised, client: Client, name: str
) -> None:
    # It would be there.
    for folder in (trio.state, trio.state.parent):
        (folder / "outside.yaml").write_text(TOPOLOGY.replace("trio", "outside"))
    known = [trio.stage.ask(call)["items"] for call in ("cluster_list", "snapshot_list")]
    assert client.failed("cluster_define", topology_name=name)["code"] in {
        "INVALID_INPUT",
        "TOPOLOGY_NOT_FOUND",
    }
    for call, arguments in (
        ("cluster_define", {"name": name}),
        ("cluster_define", {"topology": TOPOLOGY.replace("trio", name)}),
        ("cluster_snapshot_create", {"cluster": "trio", "snapshot": name, "wait_s": LONG_S}),
        ("cluster_snapshot_branch", {"cluster": "trio", "snapshot": "s", "name": name}),
    ):
        with pytest.raises((errors.InvalidInput, errors.NotFound)):
            trio.stage.ask(call, **arguments)
    for tool in ("snapshot_create", "snapshot_revert", "snapshot_delete"):
        assert client.failed(tool, snapshot_name=name)["code"] in {
            "INVALID_INPUT",
            "SNAPSHOT_NOT_FOUND",
        }
    assert [trio.stage.ask(call)["items"] for call in ("cluster_list", "snapshot_list")] == known

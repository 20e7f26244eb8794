"""Each tool of vmcluster-mcp on three real machines, over MCP, and again with a node that is dead.

They are microVMs, or libvirt runs them, with our agent or with nothing of ours. A node is off, its
QEMU was killed, or it stands still. Of such a node that program told that all is well. What becomes
of artifacts and sources in a node is shown in `test_cluster_artifacts.py`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

import hosted
from machines import LONG_S
from microvm_orchestrator import places
from system.raised import Client, Raised, raised, raised_by_libvirt

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NODES = ("n1", "n2", "n3")
TOPOLOGY = """
cluster_name: trio
network: {name: lan, subnet: 10.9.0.0/24}
nodes:
  - {name: n1, role: control, memory_mb: 192, ip: 10.9.0.11}
  - {name: n2, memory_mb: 192, disk_gb: 1, ip: 10.9.0.12}
  - {name: n3, memory_mb: 192, ip: 10.9.0.13}
"""
# Disks of libvirt's are those of their image.
BY_LIBVIRT = TOPOLOGY.replace("disk_gb: 1, ", "").replace(
    "nodes:", "backend: libvirt\nimage: disk\nnodes:"
)
UP = [("running", True)] * 3
OFF = [("shut off", False)] * 3


@pytest.fixture(scope="module")
def trio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Raised]:
    """Give three nodes of one backend; the next one's come when these have gone."""
    with ExitStack() as life:
        if request.param != "microvm":
            topology = BY_LIBVIRT
            foreign = request.param == "foreign"
            cluster = life.enter_context(raised_by_libvirt(topology, foreign=foreign, starts=False))
        else:
            topology = TOPOLOGY
            state = tmp_path_factory.mktemp("tools") / "s"
            cluster = life.enter_context(raised(state, topology, starts=False))
        folder = cluster.state / places.TOPOLOGIES
        folder.mkdir()
        (folder / "trio.yaml").write_text(topology)
        yield cluster


@pytest.fixture
def client(trio: Raised) -> Iterator[Client]:
    with trio.client() as client:
        yield client


# With all nodes alive

Said = dict[str, Any]


def nodes(status: Any) -> list[tuple[str, bool]]:
    return [(node["domain_state"], node["ssh_reachable"]) for node in status["nodes"]]


@dataclass(frozen=True)
class Use:
    """A call of a tool: what it is given, by what was said before, and whether its answer is right.

    What it says is kept by the tool's name.
    """

    tool: str
    is_right: Callable[[Any], bool]
    given: Callable[[Said], dict[str, Any]] = field(default=lambda _: {})


def build_of(said: Said) -> str:
    return str(said["artifact_register"]["artifact_id"])


def sent_to_all(told: Any) -> bool:
    sent = {name: each["bytes_transferred"] > 0 for name, each in told["per_node"].items()}
    return sent == dict.fromkeys(NODES, True)


def use(tool: str, is_right: Callable[[Any], bool], **given: Any) -> Use:
    return Use(tool, is_right, lambda _: given)


# In an order in which each finds what it needs.
USES = (
    use("cluster_define", lambda told: nodes(told) == OFF, topology_name="trio"),
    use("cluster_start", lambda told: nodes(told) == UP),
    use("cluster_define", lambda told: nodes(told) == UP, topology_name="trio"),
    use("cluster_status", lambda told: nodes(told) == UP and told["network_active"]),
    use(
        "cluster_handle",
        lambda told: (
            [node["ip"] for node in told["nodes"]] == ["10.9.0.11", "10.9.0.12", "10.9.0.13"]
            and told["kernel_version"][0].isdigit()
        ),
    ),
    use(
        "node_exec",
        lambda told: (told["exit_code"], told["stdout"]) == (3, "n2\n"),
        node_name="n2",
        command="hostname; exit 3",
    ),
    use(
        "node_exec_all",
        lambda told: (
            {name: ran["stdout"] for name, ran in told["results"].items()}
            == {name: f"{name}\n" for name in NODES}
        ),
        command="hostname; echo kept >~/kept",
    ),
    use("snapshot_create", lambda told: set(told["per_node"]) == set(NODES), snapshot_name="s"),
    use("snapshot_list", lambda told: [each["snapshot_name"] for each in told] == ["s"]),
    use("node_exec_all", lambda told: told["all_succeeded"], command="rm ~/kept"),
    use("snapshot_revert", lambda told: nodes(told) == UP, snapshot_name="s"),
    use("node_exec_all", lambda told: told["all_succeeded"], command="cat ~/kept"),
    use(
        "snapshot_delete",
        lambda told: {each["deleted"] for each in told["per_node"].values()} == {True},
        snapshot_name="s",
    ),
    use("dmesg_mark", lambda told: set(told) == set(NODES)),
    use(
        "node_exec",
        lambda told: told["exit_code"] == 0,
        node_name="n3",
        command="echo '<3>odd' >/dev/kmsg",
    ),
    Use(
        "dmesg_collect",
        lambda told: (
            {name: [line["text"] for line in log["lines"]] for name, log in told.items()}
            == {"n1": [], "n2": [], "n3": ["odd"]}
        ),
        lambda said: {"since_marker": said["dmesg_mark"]["n1"], "filter_level": "err+"},
    ),
    use(
        "net_partition",
        lambda told: told["affected_nodes"] == ["n1", "n2"],
        partition_a=["n1"],
        partition_b=["n2"],
    ),
    use(
        "node_exec",
        lambda told: told["exit_code"] == 1,
        node_name="n1",
        command="ping -c 1 -W 2 10.9.0.12",
    ),
    use("net_impair", lambda told: told["handle_id"], source_node="n3", latency_ms=20),
    use("net_fault_list", lambda told: len(told) == 2),
    Use(
        "net_heal",
        lambda told: told is True,
        lambda said: {"fault_handle": said["net_partition"]["handle_id"]},
    ),
    use("net_heal_all", lambda told: told == 1),
    use("node_crash", lambda told: told["domain_state"] == "running", node="n3"),
    Use(
        "artifact_register",
        lambda told: told["modules"] == ["probe.ko"],
        lambda said: {"source_path": said["tree"]},
    ),
    Use(
        "artifact_list",
        lambda told: [each["modules"] for each in told] == [["probe.ko"]],
    ),
    Use(
        "artifact_diff",
        lambda told: told["changed_modules"] == [],
        lambda said: dict.fromkeys(("artifact_id_a", "artifact_id_b"), build_of(said)),
    ),
    Use("artifact_sync", sent_to_all, lambda said: {"artifact_id": build_of(said)}),
    Use(
        "artifact_install",
        lambda told: {each["exit_code"] for each in told["per_node"].values()} == {0},
        lambda said: {"artifact_id": build_of(said)},
    ),
    Use(
        "source_sync_to_node",
        lambda told: told["bytes_transferred"] > 0,
        lambda said: {
            "cluster": "trio",
            "node": "n2",
            "local_path": said["tree"],
            "remote_path": "/srv/src",
        },
    ),
    use(
        "source_build",
        lambda told: len(told["hash"]) == 64,
        cluster="trio",
        node="n2",
        source_path="/srv/src",
        build_path="/srv/src",
        build_command="cp probe.ko made.ko",
        binary_path="made.ko",
        version="1",
    ),
    use("cluster_stop", lambda told: nodes(told) == OFF),
    use("cluster_destroy", lambda told: {state for state, _ in nodes(told)} == {"unknown"}),
    use("cluster_define", lambda told: nodes(told) == OFF, topology_name="trio"),
)


@pytest.mark.parametrize(
    "trio",
    ["microvm", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("libvirt", "foreign"))],
    indirect=True,
)
def test_each_tool_does_its_work_on_three_machines(client: Client, tmp_path: Path) -> None:
    (tmp_path / "probe.ko").write_bytes(b"no module that a kernel would load")
    said: Said = {"tree": str(tmp_path)}
    for number, each in enumerate(USES):
        said[each.tool] = client.done(each.tool, **each.given(said))
        assert each.is_right(said[each.tool]), (number, each.tool, said[each.tool])
    assert set(said) - {"tree"} == set(client.tools.tools)


# With one that is dead


def off(trio: Raised) -> None:
    trio.stage.done("node_crash", cluster="trio", node="n2", restart=False)


def killed(trio: Raised) -> None:
    machine = trio.stage.ask("machine_get", machine="trio.n2")
    cursor = trio.stage.ask("event_wait", after="now")["cursor"]
    on_host = machine["runtime_id"] or machine["machine_id"]
    os.kill(hosted.processes(trio.state)[on_host], signal.SIGKILL)
    asked = {"subjects": [machine["machine_id"]], "kinds": ["machine.crashed"]}
    events = trio.stage.ask("event_wait", **asked, after=cursor, timeout_s=LONG_S)["events"]
    assert events, "nobody was told of its end"


def paused(trio: Raised) -> None:
    trio.stage.ask("machine_pause", machine="trio.n2")


@dataclass(frozen=True)
class Death:
    """A way to die, and how a node is then."""

    die: Callable[[Raised], None]
    state: str


DEATHS = {
    "off": Death(off, "shut off"),
    "killed": Death(killed, "crashed"),
    "paused": Death(paused, "paused"),
}
# Each is refused with the node's name; of those with a result, it is of the others.
REFUSED: dict[str, tuple[dict[str, Any], str, set[str] | None]] = {
    "node_exec": ({"node_name": "n2", "command": "true"}, "SSH_ERROR", None),
    "node_exec_all": ({"command": "true"}, "PARTIAL_FAILURE", None),
    "cluster_handle": ({}, "CLUSTER_NOT_RUNNING", None),
    "snapshot_create": ({"snapshot_name": "s"}, "SNAPSHOT_FAILED", None),
    "dmesg_mark": ({}, "PARTIAL_FAILURE", {"n1", "n3"}),
    "dmesg_collect": ({}, "PARTIAL_FAILURE", {"n1", "n3"}),
}
# What is done to the network is done, and holds for the node that comes back.
NETWORK: tuple[tuple[str, dict[str, Any]], ...] = (
    ("net_partition", {"partition_a": ["n1"], "partition_b": ["n2"]}),
    ("net_impair", {"source_node": "n2", "target_node": "n3", "loss_pct": 100}),
    ("net_fault_list", {}),
)


@pytest.mark.parametrize("way", ["killed", "paused", pytest.param("off", marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "trio", ["microvm", pytest.param("libvirt", marks=pytest.mark.long)], indirect=True
)
def test_no_tool_tells_of_a_dead_node_that_all_is_well(
    trio: Raised, client: Client, way: str
) -> None:
    trio.whole()
    death = DEATHS[way]
    death.die(trio)
    for tool, (given, code, others) in REFUSED.items():
        if (tool, way) == ("snapshot_create", "paused") and not trio.by_libvirt:
            continue  # it is saved as it stands there, with its memory
        answer = client.told(tool, **given)
        assert not answer["success"], (tool, answer)
        assert answer["error"]["code"] == code, (tool, answer)
        assert "n2" in {answer["error"]["node"], *_words(answer)}, (tool, answer)
        if others is not None:
            assert set(answer["result"]) == others, (tool, answer)
    # Where some is enough, whose is lacking is told.
    some = client.done("node_exec_all", command="hostname", require_all=False)
    assert (some["all_succeeded"], some["failed_nodes"]) == (False, ["n2"])
    assert (some["results"]["n2"]["exit_code"], some["results"]["n3"]["stdout"]) == (-1, "n3\n")
    assert client.done("node_exec_all", command="true", nodes=["n1", "n3"])["all_succeeded"]
    for tool, given in (("cluster_status", {}), ("cluster_define", {"topology_name": "trio"})):
        told = nodes(client.done(tool, **given))
        assert told == [("running", True), (death.state, False), ("running", True)], tool
    for tool, given in NETWORK:
        client.done(tool, **given)
    assert client.done("net_heal_all") == 2
    if way == "paused":
        # Nobody lets it go on who was not told to.
        stays = client.failed("cluster_start")
        assert (stays["code"], "n2" in stays["message"]) == ("SSH_TIMEOUT", True)
        trio.stage.ask("machine_resume", machine="trio.n2")
    else:
        again = client.failed("node_crash", node="n2")
        assert "n2" in again["message"]
    assert nodes(client.done("cluster_start")) == UP


def _words(answer: dict[str, Any]) -> list[str]:
    return answer["error"]["message"].replace(":", " ").replace(",", " ").split()

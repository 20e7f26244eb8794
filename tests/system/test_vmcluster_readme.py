"""A client of MCP that knows what the README of vmcluster-mcp says, and nothing else.

It has the topology of that README as it is, but for a line that makes its nodes microVMs: there is
no image of Ubuntu here. It calls what the Quick Start, the canonical and the extended workflow do,
with the words that stand there, and uses the results as they do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from microvm_orchestrator import places
from stdio_client import StdioClient, stdio_client
from system.living import Stage, living

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# As it stands there.
TOPOLOGY = """\
# /etc/vmcluster/topologies/example-3node.yaml

cluster_name: example-3node
base_image: /var/lib/vmcluster/images/ubuntu-6.8-base.qcow2
overlay_dir: /var/lib/vmcluster/overlays/

network:
  name: clusternet-example
  bridge: virbr-example0
  subnet: 192.168.100.0/24

nodes:
  - name: controller
    role: control
    vcpus: 2
    memory_mb: 2048
    ip: 192.168.100.10
    extra_disks:
      - path: /var/lib/vmcluster/disks/data0.qcow2
        size_gb: 20
        bus: virtio

  - name: worker-0
    role: worker
    vcpus: 2
    memory_mb: 2048
    ip: 192.168.100.11

  - name: client-0
    role: client
    vcpus: 2
    memory_mb: 1024
    ip: 192.168.100.20

ssh:
  key_path: /etc/vmcluster/ssh/vmcluster_id_ed25519
  user: root
  connect_timeout_s: 30

snapshots:
  baseline: clean-boot   # Logical name for snapshot_revert("baseline")
"""
ADDED = "backend: microvm\n"
NAME = "example-3node"
NODES = [
    ("controller", "control", "192.168.100.10"),
    ("worker-0", "worker", "192.168.100.11"),
    ("client-0", "client", "192.168.100.20"),
]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    # What the three are promised is more than a small host has free; they do not use it.
    machines = {"memory_mib": 8192, "vcpus": 8}
    with living(tmp_path_factory.mktemp("readme") / "s", machines=machines) as stage:
        folder = stage.daemon.state_dir / places.TOPOLOGIES
        folder.mkdir()
        (folder / f"{NAME}.yaml").write_text(TOPOLOGY + ADDED)
        yield stage
        assert stage.ask("cluster_list")["items"] == stage.ask("network_list")["items"] == []


@pytest.fixture
def client(stage: Stage) -> Iterator[StdioClient]:
    with stdio_client(stage.daemon.socket, "vmcluster") as client:
        yield client


def result(client: StdioClient, tool: str, **arguments: Any) -> Any:
    """Call a tool as the README has it: what is in its `ToolResult`."""
    told = client.call(tool, **arguments)
    assert (told["success"], told["error"]) == (True, None), told
    return told["result"]


def brief(status: Any) -> list[tuple[str, str, str, str, bool]]:
    assert (status["cluster_name"], status["network_active"]) == (NAME, True)
    return [
        (
            node["name"],
            node["role"],
            node["ip"],
            node["domain_state"],
            node["ssh_reachable"],
        )
        for node in status["nodes"]
    ]


UP = [(*node, "running", True) for node in NODES]
DOWN = [(*node, "shut off", False) for node in NODES]


def test_the_quick_start(stage: Stage, client: StdioClient) -> None:
    assert brief(result(client, "cluster_define", topology_name=NAME)) == DOWN
    here = {"cluster_name": NAME}
    assert brief(result(client, "cluster_start", **here, wait_for_ssh=True)) == UP
    assert brief(result(client, "cluster_status", **here)) == UP
    run = {"node_name": "controller", "command": "uname -r"}
    ran = result(client, "node_exec", **here, **run)
    assert (ran["exit_code"], ran["timed_out"], ran["stderr"]) == (0, False, "")
    assert ran["stdout"][0].isdigit()
    saved = result(client, "snapshot_create", **here, snapshot_name="baseline")
    assert (saved["snapshot_name"], set(saved["per_node"])) == (
        "clean-boot",
        {name for name, _, _ in NODES},
    )
    assert brief(result(client, "cluster_stop", **here)) == DOWN
    # The name that the topology gives it leads back to it.
    assert brief(result(client, "snapshot_revert", **here, snapshot_name="baseline")) == UP
    result(client, "cluster_destroy", **here, remove_overlays=True)
    assert stage.ask("snapshot_list")["items"] == []


def test_the_canonical_and_the_extended_workflow(client: StdioClient, tmp_path: Path) -> None:
    here = {"cluster_name": NAME}
    for _ in range(2):
        assert brief(result(client, "cluster_define", topology_name=NAME)) == DOWN
    assert brief(result(client, "cluster_start", **here, wait_for_ssh=True)) == UP
    handle = result(client, "cluster_handle", **here)
    assert (handle["cluster_name"], handle["artifact_path"]) == (NAME, "/opt/vmcluster/artifacts")
    assert handle["kernel_version"][0].isdigit()
    nodes = handle["nodes"]
    assert [(node["name"], node["role"], node["ip"]) for node in nodes] == NODES
    assert {(node["ssh_port"], node["ssh_user"]) for node in nodes} == {(22, "root")}

    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "probe.ko").write_bytes(b"no module that a kernel would load")
    artifact_id = result(client, "artifact_register", source_path=str(tree))["artifact_id"]
    for tool in ("artifact_sync", "artifact_install"):
        told = result(client, tool, **here, artifact_id=artifact_id)
        assert set(told["per_node"]) == {name for name, _, _ in NODES}, tool
    ls = f"ls {handle['artifact_path']}/{artifact_id} /lib/modules/*/extra/vmcluster"
    ran = result(client, "node_exec", **here, node_name="worker-0", command=ls)
    assert ran["stdout"].count("probe.ko") == 2

    fault = result(client, "net_impair", **here, source_node="worker-0", latency_ms=150)
    [listed] = result(client, "net_fault_list", **here)
    assert (listed["handle_id"], listed["fault_type"]) == (fault["handle_id"], "impair")
    ping = "ping -c 2 -W 9 controller | sed -n 's/.*time=\\([0-9]*\\).*/\\1/p' | tail -n 1"
    ran = result(client, "node_exec", **here, node_name="worker-0", command=ping)
    assert int(ran["stdout"]) >= 150
    markers = result(client, "dmesg_mark", **here)
    since = {"since_marker": markers["worker-0"], "filter_level": "warn+"}
    logs = result(client, "dmesg_collect", **here, **since)
    assert {name: log["lines"] for name, log in logs.items()} == {name: [] for name, _, _ in NODES}
    assert result(client, "net_heal", **here, fault_handle=fault["handle_id"]) is True
    assert result(client, "net_fault_list", **here) == []

    assert brief(result(client, "cluster_status", **here)) == UP
    assert brief(result(client, "cluster_stop", **here, mode="shutdown")) == DOWN
    result(client, "cluster_destroy", **here, remove_overlays=True)

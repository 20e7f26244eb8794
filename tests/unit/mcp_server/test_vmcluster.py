"""The profile `vmcluster`: a client of that program's README, on machines that are none."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import jsonschema
import pytest

from calling import VIEWER, house
from clustering import trio
from machines import fake_program, publish_no_image
from mcp_peer import ALICE, Peer, connected
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.access import Principal, Role
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from calling import House

pytestmark = pytest.mark.anyio

PROFILE = "vmcluster"
IMPAIRMENTS = ("latency_ms", "jitter_ms", "loss_pct", "corrupt_pct", "reorder_pct")
# Each with its parameters, and those that it has to be given.
TOOLS: dict[str, tuple[str, str]] = {
    "cluster_define": ("topology_name", "topology_name"),
    "cluster_start": ("cluster_name wait_for_ssh ssh_timeout_s", "cluster_name"),
    "cluster_stop": ("cluster_name mode", "cluster_name"),
    "cluster_destroy": ("cluster_name remove_overlays", "cluster_name"),
    "cluster_status": ("cluster_name", "cluster_name"),
    "cluster_handle": ("cluster_name", "cluster_name"),
    "node_crash": (
        "cluster_name node restart_after wait_for_ssh ssh_timeout_s",
        "cluster_name node",
    ),
    "node_exec": ("cluster_name node_name command timeout_s", "cluster_name node_name command"),
    "node_exec_all": (
        "cluster_name command nodes require_all timeout_s",
        "cluster_name command",
    ),
    "snapshot_create": (
        "cluster_name snapshot_name include_memory",
        "cluster_name snapshot_name",
    ),
    "snapshot_list": ("cluster_name", "cluster_name"),
    "snapshot_revert": (
        "cluster_name snapshot_name restart_after wait_for_ssh ssh_timeout_s",
        "cluster_name snapshot_name",
    ),
    "snapshot_delete": ("cluster_name snapshot_name", "cluster_name snapshot_name"),
    "artifact_register": ("source_path build_type kernel_version metadata", "source_path"),
    "artifact_list": ("", ""),
    "artifact_diff": ("artifact_id_a artifact_id_b", "artifact_id_a artifact_id_b"),
    "artifact_sync": (
        "cluster_name artifact_id nodes force dest_base",
        "cluster_name artifact_id",
    ),
    "artifact_install": (
        "cluster_name artifact_id nodes install_mode dest_base",
        "cluster_name artifact_id",
    ),
    "source_sync_to_node": (
        "cluster node local_path remote_path",
        "cluster node local_path remote_path",
    ),
    "source_build": (
        "cluster node source_path build_path build_command binary_path version timeout",
        "cluster node source_path build_path build_command binary_path version",
    ),
    "net_partition": (
        "cluster_name partition_a partition_b",
        "cluster_name partition_a partition_b",
    ),
    "net_impair": (
        " ".join(("cluster_name", "source_node", "target_node", *IMPAIRMENTS)),
        "cluster_name source_node",
    ),
    "net_heal": ("cluster_name fault_handle", "cluster_name fault_handle"),
    "net_heal_all": ("cluster_name", "cluster_name"),
    "net_fault_list": ("cluster_name", "cluster_name"),
    "dmesg_mark": ("cluster_name nodes", "cluster_name"),
    "dmesg_collect": ("cluster_name nodes since_marker filter_level", "cluster_name"),
}


@dataclass
class Client:
    """A client of that program."""

    peer: Peer
    kept: House
    schemas: dict[str, Any]

    async def __call__(self, tool: str, **arguments: object) -> dict[str, Any]:
        """Give the envelope, once it is seen to be one of those that the tool announces."""
        result = await self.peer.call(tool, **arguments)
        told: dict[str, Any] = result["structuredContent"]
        assert json.loads(result["content"][0]["text"]) == told
        assert not result["isError"]
        assert set(told) == {"success", "result", "error"}
        assert told["success"] is (told["error"] is None)
        jsonschema.validate(told, self.schemas[tool])
        return told

    async def done(self, tool: str, **arguments: object) -> Any:
        told = await self(tool, **arguments)
        assert told["success"], told
        return told["result"]

    async def failure(self, tool: str, **arguments: object) -> str:
        told = await self(tool, **arguments)
        return str(told["error"]["code"])

    async def kill(self, machine: str) -> None:
        machines = self.kept.service.host.machines
        await machines.kill(machine, SYSTEM)


@asynccontextmanager
async def place(state: Path) -> AsyncGenerator[Client]:
    program = str(fake_program(state))
    publish_no_image(ImageStore(state / places.IMAGES), "plain")
    (state / places.TOPOLOGIES).mkdir()
    more = "overlay_dir: /var/lib/vmcluster/overlays/\nbase_image: /img.qcow2\nbackend: microvm\n"
    (state / places.TOPOLOGIES / "trio.yaml").write_text(trio(more=more))
    async with house(state, machines={"qemu": program}) as kept:
        front = McpFrontEnd(kept.service)
        async with front.running(), connected(front, ALICE, PROFILE) as peer:
            listed = (await peer.ask("tools/list"))["tools"]
            client = Client(peer, kept, {tool["name"]: tool["outputSchema"] for tool in listed})
            try:
                yield client
            finally:
                for machine in await kept.service.host.machines.visible(SYSTEM):
                    if kept.service.host.machines.runs(machine):
                        await client.kill(machine.machine_id)


async def test_each_tool_has_its_name_and_its_parameters(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        found = {
            tool["name"]: (
                set(tool["inputSchema"]["properties"]),
                set(tool["inputSchema"].get("required", ())),
            )
            for tool in (await client.peer.ask("tools/list"))["tools"]
        }
    assert found == {
        name: (set(every.split()), set(needed.split())) for name, (every, needed) in TOOLS.items()
    }


async def test_the_workflow_of_the_readme(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        defined = await client.done("cluster_define", topology_name="trio")
        assert defined["network_active"] is True
        assert defined["nodes"][0] == {
            "name": "n1",
            "role": "node",
            "ip": "10.9.0.11",
            "domain_state": "shut off",
            "ssh_reachable": False,
            "artifact_id_installed": None,
            "loaded_modules": [],
        }
        here = {"cluster_name": "trio"}
        started = await client.done("cluster_start", **here, wait_for_ssh=True)
        assert {node["domain_state"] for node in started["nodes"]} == {"running"}
        assert [node["ssh_reachable"] for node in started["nodes"]] == [True] * 3
        handle = await client.done("cluster_handle", **here)
        assert (handle["artifact_path"], handle["nodes"][1]["ip"]) == (
            "/opt/vmcluster/artifacts",
            "10.9.0.12",
        )
        assert [node["ssh_key_path"] for node in handle["nodes"]] == [None] * 3
        run = {**here, "node_name": "n1", "timeout_s": 5}
        ran = await client.done("node_exec", **run, command="echo out; echo err >&2; exit 3")
        assert (ran["exit_code"], ran["stdout"], ran["stderr"], ran["timed_out"]) == (
            3,
            "out\n",
            "err\n",
            False,
        )
        much = await client.done("node_exec", **run, command="seq 1 20000")
        assert (much["truncated"], len(much["stdout"])) == (True, 1 << 16)
        slow = await client.done(
            "node_exec", **{**run, "timeout_s": 0.5}, command="echo begun; exec sleep 60"
        )
        assert (slow["timed_out"], slow["stdout"]) == (True, "begun\n")
        everywhere = await client.done("node_exec_all", **here, command="true")
        assert (everywhere["all_succeeded"], set(everywhere["results"])) == (
            True,
            {"n1", "n2", "n3"},
        )
        stopped = await client.done("cluster_stop", **here, mode="shutdown")
        assert {node["domain_state"] for node in stopped["nodes"]} == {"shut off"}
        gone = await client.done("cluster_destroy", **here, remove_overlays=True)
        assert (gone["network_active"], {node["domain_state"] for node in gone["nodes"]}) == (
            False,
            {"unknown"},
        )
        assert await client.failure("cluster_status", **here) == "CLUSTER_NOT_FOUND"


async def test_where_a_key_lies_is_told_no_viewer_and_no_other_operator(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", cluster_name="trio")
        asked = {"cluster": "trio", "key": True}
        for by in (VIEWER, Principal("another", Role.OPERATOR)):
            with pytest.raises(errors.Denied, match="is for its owner and administrators"):
                await client.kept.ask("cluster_handle", **asked, by=by)
            told = await client.kept.ask("cluster_handle", cluster="trio", by=by)
            assert {node["ssh_key_path"] for node in told["nodes"]} == {None}
        # Nodes that are reached by our agent let no key in, so none is handed out.
        told = await client.kept.ask("cluster_handle", **asked)
        assert {(node["ssh_port"], node["ssh_key_path"]) for node in told["nodes"]} == {
            (None, None)
        }
        rows = (await client.kept.ask("audit_list", action="cluster_handle"))["items"]
        assert [row["outcome"] for row in rows if row["outcome"] == "ok"] == []
        await client.done("cluster_destroy", cluster_name="trio", remove_overlays=True)


async def test_snapshots_are_made_of_all_nodes_found_put_back_and_deleted(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        here = {"cluster_name": "trio"}
        named = {**here, "snapshot_name": "clean"}
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", **here)
        saved = await client.done("snapshot_create", **named, include_memory=True)
        assert set(saved["per_node"]) == {"n1", "n2", "n3"}
        assert await client.failure("snapshot_create", **named) == "SNAPSHOT_EXISTS"
        assert await client.done("snapshot_list", **here) == [saved]
        back = await client.done("snapshot_revert", **named)
        assert [node["ssh_reachable"] for node in back["nodes"]] == [True] * 3
        down = await client.done("snapshot_revert", **named, restart_after=False)
        assert {node["domain_state"] for node in down["nodes"]} <= {"shut off", "crashed"}
        deleted = await client.done("snapshot_delete", **named)
        assert {node["deleted"] for node in deleted["per_node"].values()} == {True}
        assert await client.failure("snapshot_revert", **named) == "SNAPSHOT_NOT_FOUND"
        assert await client.failure("snapshot_delete", **named) == "SNAPSHOT_NOT_FOUND"
        await client.done("cluster_destroy", **here, remove_overlays=True)


async def test_what_that_program_told_in_vain_is_an_error(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        here = {"cluster_name": "trio"}
        for name in ("absent", "../trio"):
            assert not (await client("cluster_define", topology_name=name))["success"]
        assert await client.failure("cluster_define", topology_name="absent") == (
            "TOPOLOGY_NOT_FOUND"
        )
        assert await client.failure("cluster_start") == "INVALID_INPUT"
        await client.done("cluster_define", topology_name="trio")
        assert await client.failure("cluster_handle", **here) == "CLUSTER_NOT_RUNNING"
        await client.done("cluster_start", **here)
        run = {**here, "command": "true"}
        assert await client.failure("node_exec", **run, node_name="n9") == "NODE_NOT_FOUND"
        assert await client.failure("node_crash", **here, node="n9") == "NODE_NOT_FOUND"
        crashed = await client.done("node_crash", **here, node="n2", restart_after=False)
        assert crashed["domain_state"] == "shut off"
        dead = await client("node_exec", **run, node_name="n2")
        assert (dead["error"]["code"], dead["error"]["node"], dead["result"]) == (
            "SSH_ERROR",
            "n2",
            None,
        )
        some = await client("node_exec_all", **run)
        assert (some["error"]["code"], some["result"]["failed_nodes"]) == (
            "PARTIAL_FAILURE",
            ["n2"],
        )
        assert some["result"]["results"]["n1"]["exit_code"] == 0
        # Where all are wanted, our own call begins nowhere; commands of stand-ins run on this host.
        ran = anyio.Path(tmp_path / "ran")
        touch = {"cluster": "trio", "script": f"touch {ran}"}
        with pytest.raises(errors.NodesFailed, match=r"nothing was begun, as not all .*: n2: "):
            await client.kept.ask("node_exec_all", **touch)
        assert not await ran.exists()
        await client.kept.ask("node_exec_all", **touch, require_all=False)
        assert await ran.exists()
        assert (await client("node_exec_all", **run, require_all=False))["success"]
        assert (await client("node_exec_all", **run, nodes=["n1", "n3"]))["success"]
        named = {**here, "snapshot_name": "s"}
        assert await client.failure("snapshot_create", **named) == "SNAPSHOT_FAILED"
        await client.done("cluster_destroy", **here, remove_overlays=True)


async def test_faults_are_injected_listed_and_healed(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        here = {"cluster_name": "trio"}
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", **here)
        apart = await client.done(
            "net_partition", **here, partition_a=["n1"], partition_b=["n2", "n3"]
        )
        assert (apart["fault_type"], apart["affected_nodes"]) == (
            "partition",
            ["n1", "n2", "n3"],
        )
        slow = await client.done(
            "net_impair", **here, source_node="n2", target_node="n3", latency_ms=150, loss_pct=10
        )
        listed = await client.done("net_fault_list", **here)
        assert [fault["handle_id"] for fault in listed] == [apart["handle_id"], slow["handle_id"]]
        assert (listed[1]["fault_type"], listed[1]["affected_nodes"]) == ("impair", ["n2", "n3"])
        fault = await client.kept.ask("fault_get", fault_id=slow["handle_id"])
        machines = {
            machine.machine_id: machine.hostname
            for machine in await client.kept.service.host.machines.visible(SYSTEM)
        }
        [way] = fault["ways"]
        # What the source sends, and nothing that it hears.
        assert (machines[way["source"]], machines[way["target"]]) == ("n2", "n3")
        assert (way["meets"]["delay_s"], way["meets"]["loss"]) == (0.15, 0.1)
        assert await client.done("net_heal", **here, fault_handle=slow["handle_id"]) is True
        assert await client.done("net_heal_all", **here) == 1
        assert await client.done("net_fault_list", **here) == []
        for tool, arguments, code in (
            ("net_partition", {"partition_a": [], "partition_b": ["n1"]}, "INVALID_INPUT"),
            ("net_partition", {"partition_a": ["n1"], "partition_b": ["n1"]}, "INVALID_INPUT"),
            ("net_partition", {"partition_a": ["n1"], "partition_b": ["n9"]}, "NODE_NOT_FOUND"),
            ("net_impair", {"source_node": "n1"}, "NO_PARAMETERS"),
            ("net_impair", {"source_node": "n9", "latency_ms": 1}, "NODE_NOT_FOUND"),
            ("net_heal", {"fault_handle": "absent"}, "HANDLE_NOT_FOUND"),
        ):
            assert await client.failure(tool, **here, **arguments) == code, tool
        await client.done("cluster_destroy", **here, remove_overlays=True)


async def test_a_fault_in_several_networks_is_one_whole_or_not_at_all(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        path = tmp_path / places.TOPOLOGIES / "trio.yaml"
        more = "networks: [{name: storage, subnet: 10.10.0.0/24, dhcp: true}]\n"
        wide = path.read_text().replace('ip6: "', 'networks: [{name: storage}], ip6: "')
        await anyio.to_thread.run_sync(path.write_text, more + wide)
        here = {"cluster_name": "trio"}
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", **here)
        apart = await client.done("net_partition", **here, partition_a=["n1"], partition_b=["n2"])
        slow = await client.done("net_impair", **here, source_node="n3", latency_ms=10)
        listed = await client.done("net_fault_list", **here)
        assert [fault["handle_id"] for fault in listed] == [apart["handle_id"], slow["handle_id"]]
        assert [fault["affected_nodes"] for fault in listed] == [["n1", "n2"], ["n1", "n2", "n3"]]
        assert len((await client.kept.ask("fault_list"))["items"]) == 2
        assert await client.done("net_heal", **here, fault_handle=slow["handle_id"]) is True
        assert await client.done("net_heal_all", **here) == 1
        # What cannot be in the second network is in the first no more.
        given = {"kind": "impair", "network": "trio.storage", "machine": "trio.n1"}
        spread = {"delay_s": 0.02, "jitter_s": 0.01, "spread": "normal"}
        await client.kept.ask("fault_inject", **given, **spread)
        before = await client.done("net_fault_list", **here)
        jitter = {"source_node": "n1", "latency_ms": 20, "jitter_ms": 10}
        assert await client.failure("net_impair", **here, **jitter) == "CONFLICT"
        assert await client.done("net_fault_list", **here) == before
        await client.done("cluster_destroy", **here, remove_overlays=True)


async def test_the_kernel_of_a_node_that_cannot_be_heard_is_an_error(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        here = {"cluster_name": "trio"}
        await client.done("cluster_define", topology_name="trio")
        dead = await client("dmesg_mark", **here)
        assert (dead["error"]["code"], dead["result"]) == ("ALL_NODES_FAILED", None)
        assert await client.failure("dmesg_collect", **here) == "ALL_NODES_FAILED"
        assert await client.failure("dmesg_collect", **here, filter_level="x") == (
            "INVALID_FILTER_LEVEL"
        )
        assert await client.failure("dmesg_mark", **here, nodes=["n9"]) == "NODE_NOT_FOUND"


async def test_the_disks_of_a_cluster_are_kept_unless_they_are_to_go(tmp_path: Path) -> None:
    async with place(tmp_path) as client:
        path = tmp_path / places.TOPOLOGIES / "trio.yaml"
        await anyio.to_thread.run_sync(
            path.write_text, path.read_text().replace("{name: n1,", "{name: n1, disk_gb: 1,")
        )
        here = {"cluster_name": "trio"}
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", **here)
        machines = sorted((tmp_path / "machines").rglob("disk*.qcow2"))
        assert machines
        await client.done("cluster_destroy", **here)
        assert sorted((tmp_path / "machines").rglob("disk*.qcow2")) == machines
        status = await client.done("cluster_status", **here)
        assert status["network_active"] is False
        await client.done("cluster_define", topology_name="trio")
        await client.done("cluster_start", **here)
        await client.done("cluster_destroy", **here, remove_overlays=True)
        assert not list((tmp_path / "machines").glob("*"))

"""What can be done to clusters, each to be found in the audit log with whom it was about."""

from __future__ import annotations

from typing import Any, Protocol

from machines import publish_no_image
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from system.world import World


class Ledger(Protocol):
    """Makes calls, and finds the line of each in the audit log."""

    world: World

    def act(
        self, call: str, target: str = "", /, by: str = "admin", to: str = "ok", **arguments: Any
    ) -> dict[str, Any]: ...

    def refused(self, call: str, target: str, code: str, **arguments: Any) -> None: ...


# With another image than the one whose removal is told of.
TOPOLOGY = """
cluster_name: lone
image: lone
network: {name: lan, subnet: 10.9.0.0/24}
nodes: [{name: one, memory_mb: 64, ip: 10.9.0.10}]
"""


def folder(world: World, name: str) -> str:
    """Make a folder that can be registered."""
    made = world.daemon.state_dir / name
    made.mkdir()
    (made / "a").write_text("x")
    return str(made)


def do_all(ledger: Ledger) -> None:
    """Make each call about clusters, and find its line."""
    act = ledger.act
    publish_no_image(ImageStore(ledger.world.daemon.state_dir / places.IMAGES), "lone", "lone")
    path = folder(ledger.world, "tree")
    tree = act("artifact_register", path, path=path)["result"]["artifact_id"]
    lone = act("cluster_define", topology=TOPOLOGY)
    cluster, node = lone["cluster_id"], lone["nodes"][0]["machine_id"]
    here = {"cluster": "lone"}
    act("cluster_start", cluster, **here)
    act("kernel_log_events", cluster, **here)
    act("node_exec", "ran", **here, node="one", argv=["true"], exec_id="ran")
    act("node_exec_all", cluster, **here, argv=["true"])
    act("node_crash", node, **here, node="one")
    late = [{"at_s": 3000.0, "for_s": 1.0, "fault": {"kind": "crash", "machine": "one"}}]
    act("fault_campaign", cluster, **here, schedule=late, dry_run=True)
    campaign = ledger.world.ask("fault_campaign", **here, schedule=late, wait_s=0)["target"]
    act("fault_campaign_cancel", campaign, campaign_id=campaign)
    act("cluster_snapshot_create", cluster, **here, snapshot="s")
    act("cluster_snapshot_revert", cluster, **here, snapshot="s")
    act("cluster_snapshot_branch", cluster, **here, snapshot="s", name="copy")
    act("cluster_artifact_sync", cluster, **here, artifact_id=tree)
    # Begun, though it has no modules.
    act("cluster_artifact_install", cluster, **here, artifact_id=tree)
    there = str(ledger.world.daemon.state_dir / "there")
    act("node_source_sync", node, **here, node="one", local_path=path, remote_path=there)
    act("node_source_build", node, **here, node="one", path=there, command="true")
    act("artifact_remove", tree, artifact_id=tree)
    act("cluster_stop", cluster, **here)
    act("cluster_snapshot_delete", f"{cluster}.s", **here, snapshot="s")
    act("cluster_destroy", cluster, **here, delete_disks=True)
    ledger.world.ask("cluster_destroy", cluster="copy", delete_disks=True)
    ledger.world.ask("image_remove", image="lone")

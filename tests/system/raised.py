"""A cluster of real machines, raised once, and its daemon, which may be killed and come back.

Its nodes are microVMs, or machines of a libvirtd of its own, whose disk boots itself: it has our
agent, or nothing of ours and an SSH server. Above are the tests of clusters; below, the stage with
its daemon. In the end nothing of the cluster is left, neither with the daemon nor on the host.
"""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import pytest

import boot_disk
import hosted
import libvirtd
from machines import LONG_S, built_image
from microvm_orchestrator.machine.probe import probe
from stdio_client import StdioClient, stdio_client
from system.living import Stage, furnish, staged
from system.test_libvirt_ssh import foreign_in
from system.test_ssh_image import handing_over

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@dataclass
class Raised:
    """A cluster, who keeps it, and a client of vmcluster-mcp."""

    name: str
    state: Path
    settings: dict[str, dict[str, Any]]
    stage: Stage = field(init=False)
    _life: ExitStack = field(default_factory=ExitStack)

    # The daemon

    def begin(self) -> None:
        self.stage = self._life.enter_context(staged(self.state, **self.settings))

    def end(self) -> None:
        self._life.close()

    def killed(self) -> None:
        """Kill the daemon, and start another in its place."""
        self.stage.daemon.kill()
        self.end()
        self.begin()

    @contextmanager
    def client(self) -> Generator[Client]:
        with stdio_client(self.stage.daemon.socket, "vmcluster") as client:
            yield Client(client, self.name)

    # Its nodes

    @property
    def by_libvirt(self) -> bool:
        return "libvirt" in self.settings

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        status = self.stage.ask("cluster_status", cluster=self.name)
        return {node["name"]: node for node in status["nodes"]}

    def machine(self, node: str) -> str:
        return str(self.nodes[node]["machine_id"])

    def ran(self, node: str, script: str, **more: Any) -> dict[str, Any]:
        asked = {"cluster": self.name, "node": node, "script": script, "timeout_s": LONG_S}
        return self.stage.ask("node_exec", **{**asked, **more})

    def said(self, node: str, script: str) -> str:
        """Run a script in a node that succeeds; what it says."""
        ran = self.ran(node, script)
        assert ran["exit_code"] == 0, ran
        return str(ran["stdout"])

    def hears(self, node: str, address: str) -> bool:
        """See whether an address answers a node, which may have to ask for its owner first."""
        ping = f"for _ in 1 2 3; do ping -c 1 -W 2 {address} && exit 0; done; exit 1"
        return bool(self.ran(node, ping)["exit_code"] == 0)

    def whole(self) -> None:
        """Start what does not run, and heal what is broken."""
        self.stage.ask("fault_heal_all")
        started = self.stage.done("cluster_start", cluster=self.name)
        assert all(node["reachable"] for node in started["nodes"]), started


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who knows the tools of vmcluster-mcp, and has one cluster."""

    tools: StdioClient
    cluster: str

    def told(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Give the whole envelope."""
        answer: dict[str, Any] = self.tools.call(
            tool, **{"cluster_name": self.cluster, **arguments}
        )
        assert answer["success"] is (answer["error"] is None), answer
        return answer

    def done(self, tool: str, **arguments: Any) -> Any:
        answer = self.told(tool, **arguments)
        assert answer["success"], answer
        return answer["result"]

    def failed(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool in vain; its error."""
        answer = self.told(tool, **arguments)
        assert not answer["success"], answer
        error: dict[str, Any] = answer["error"]
        return error


@contextmanager
def raised(
    state: Path, topology: str, *, starts: bool = True, **settings: dict[str, Any]
) -> Generator[Raised]:
    """Let a cluster run until the block ends, and see that nothing is left of it."""
    furnish(state)
    with _living(Raised(_name(topology), state, settings), topology, starts=starts) as cluster:
        yield cluster


@contextmanager
def raised_by_libvirt(
    topology: str, *, foreign: bool = False, starts: bool = True
) -> Generator[Raised]:
    """Let one run of nodes of libvirt's, whose image is `disk`; a foreign one is reached by SSH."""
    if why := libvirtd.why_not() or boot_disk.why_not():
        pytest.skip(why)
    with libvirtd.running_libvirtd() as theirs:
        # Sockets have short names, and pytest's folders long ones.
        state = theirs.folder / "s"
        state.mkdir(mode=0o700)
        disk = theirs.folder / "disk.qcow2"
        # What is measured here is what the daemon goes by.
        tsc_khz = anyio.run(probe, state).tsc_khz or 0
        login: dict[str, Any] = {"cloud_init": foreign}
        if foreign:
            login["ssh_user"] = "root"
            boot_disk.write(disk, foreign_in(theirs.folder), tsc_khz, handing_over)
        else:
            boot_disk.write(disk, anyio.run(built_image), tsc_khz)
        cluster = Raised(_name(topology), state, {"libvirt": {"uri": theirs.uri}})
        with _living(cluster, topology, starts=starts, disk=str(disk), **login):
            yield cluster


@contextmanager
def _living(cluster: Raised, topology: str, *, starts: bool, **image: Any) -> Generator[Raised]:
    """Let it run, or start it whoever wants it, with an image `disk` if one is given."""
    try:
        cluster.begin()
        if image:
            cluster.stage.done("image_add", name="disk", **image)
        cluster.stage.ask("cluster_define", topology=topology)
        if starts:
            cluster.whole()
        yield cluster
        for each in cluster.stage.ask("cluster_list")["items"]:
            cluster.stage.done("cluster_destroy", cluster=each["name"], delete_disks=True)
        for call in ("machine_list", "network_list", "snapshot_list", "fault_list"):
            assert cluster.stage.ask(call)["items"] == [], call
        assert hosted.left(cluster.state) == []
    finally:
        cluster.end()
        for pid in hosted.processes(cluster.state).values():
            os.kill(pid, signal.SIGKILL)


def _name(topology: str) -> str:
    return next(
        line.partition(":")[2].strip()
        for line in topology.splitlines()
        if line.startswith("cluster_name:")
    )

"""A daemon that is killed in the middle of what it does to a cluster, and the next one's word.

Its machines only look so; the daemon, its store and its files are real.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import hosted
from clustering import trio
from machines import fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.images.store import ImageStore
from system.living import Stage, staged

NODES = ("n1", "n2", "n3")
# What each takes at the most, undisturbed; the kill comes anywhere within it.
_LONGEST_S = {
    "cluster_define": 0.2,
    "cluster_start": 0.8,
    "cluster_snapshot_create": 0.8,
    "cluster_snapshot_revert": 0.8,
    "cluster_snapshot_branch": 1.2,
    "cluster_destroy": 0.4,
}


@contextmanager
def place(folder: Path) -> Generator[Callable[[], Any]]:
    """Give what starts a daemon on one state directory; in the end nothing runs."""
    state = folder / "s"
    state.mkdir(mode=0o700)
    publish_no_image(ImageStore(state / places.IMAGES), "plain")
    program = str(fake_program(folder))
    try:
        yield lambda: staged(state, machines={"qemu": program})
    finally:
        with staged(state, machines={"qemu": program}) as stage:
            stage.clear()
        assert hosted.processes(state) == {}


def killed_in(stage: Stage, call: str, after_s: float, **arguments: Any) -> None:
    """Ask for something, and kill the daemon in the middle of it."""
    timer = threading.Timer(after_s, stage.daemon.kill)
    timer.start()
    try:
        stage.ask(call, **arguments)
    except errors.OrchestratorError:
        pass  # of a daemon that is gone
    finally:
        timer.join()


def as_it_should_be(stage: Stage, name: str) -> None:
    """See that a cluster is as it should be, once it was defined and started again."""
    stage.ask("cluster_define", topology=trio(name))
    stage.done("cluster_start", cluster=name)
    status = stage.ask("cluster_status", cluster=name)
    assert status["state"] == "defined"
    assert [(node["name"], node["state"], node["reachable"]) for node in status["nodes"]] == [
        (node, "running", True) for node in NODES
    ]


def nothing_half(stage: Stage) -> None:
    """See that what is saved or copied is so whole, and that nothing stands still."""
    clusters = stage.ask("cluster_list")["items"]
    assert [cluster["name"] for cluster in clusters] in (["trio"], ["trio", "copy"])
    machines = stage.ask("machine_list", limit=200)["items"]
    assert len(machines) == 3 * len(clusters)
    assert {machine["state"] for machine in machines} & {"paused", "booting"} == set()
    saved = stage.ask("cluster_snapshot_list", cluster="trio")["items"]
    assert {each["state"] for each in saved} <= {"ready"}
    parts = {part["snapshot_id"] for each in saved for part in each["nodes"].values()}
    assert {each["snapshot_id"] for each in stage.ask("snapshot_list")["items"]} == parts
    assert len(stage.ask("network_list")["items"]) == len(clusters)


@pytest.mark.parametrize(
    "call",
    [
        "cluster_define",
        pytest.param("cluster_start", marks=pytest.mark.long),
        "cluster_snapshot_create",
        pytest.param("cluster_snapshot_revert", marks=pytest.mark.long),
        pytest.param("cluster_snapshot_branch", marks=pytest.mark.long),
        pytest.param("cluster_destroy", marks=pytest.mark.long),
    ],
)
def test_a_daemon_that_is_killed_in_the_middle_leaves_nothing_half(
    tmp_path: Path, call: str, rounds: int
) -> None:
    chosen = random.Random(call)
    given: dict[str, dict[str, Any]] = {
        "cluster_define": {"topology": trio()},
        "cluster_snapshot_create": {"snapshot": "new"},
        "cluster_snapshot_revert": {"snapshot": "s"},
        "cluster_snapshot_branch": {"snapshot": "s", "name": "copy"},
        "cluster_destroy": {"delete_disks": True},
    }
    arguments = given.get(call, {})
    if call != "cluster_define":
        arguments = {"cluster": "trio", "wait_s": 60.0, **arguments}
    with place(tmp_path) as daemon:
        for _ in range(rounds):
            with daemon() as stage:
                if call not in {"cluster_define", "cluster_start"}:
                    as_it_should_be(stage, "trio")
                    stage.done("cluster_snapshot_create", cluster="trio", snapshot="s")
                elif call == "cluster_start":
                    stage.ask("cluster_define", topology=trio())
                killed_in(stage, call, chosen.uniform(0.0, _LONGEST_S[call]), **arguments)
            with daemon() as stage:
                if call in {"cluster_snapshot_create", "cluster_snapshot_branch"}:
                    nothing_half(stage)
                if call != "cluster_destroy":
                    as_it_should_be(stage, "trio")
                for cluster in stage.ask("cluster_list")["items"]:
                    stage.done("cluster_destroy", cluster=cluster["name"], delete_disks=True)
                assert stage.ask("machine_list")["items"] == []
                assert stage.ask("network_list")["items"] == []
                assert stage.ask("snapshot_list")["items"] == []


@pytest.fixture
def rounds(whole: bool) -> int:
    return 25 if whole else 1

"""SIGKILL of the daemon at any moment of a machine's life: no orphan, no lie, and work goes on.

Two clients keep booting, saving, branching, stopping and running commands; the daemon dies at
random moments and comes back. After each start, what it says of its machines is held against the
processes of this host, and every machine that is said to run has to answer.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

import hosted
from bench.figures import tell
from chaos.ask import Asker, NobodyKnows, NotHeard
from chaos.process import daemon_in
from machines import CACHE, built_image

if TYPE_CHECKING:
    from collections.abc import Generator

    from chaos.process import Daemon

# What a machine may be found as once a new daemon is ready.
SETTLED = {"defined", "running", "paused", "stopped", "crashed", "lost"}
ALIVE = {"running", "paused"}
MEMORY_MIB = 128
MOST_MACHINES = 5
MOST_SNAPSHOTS = 3
ADOPTED_WITHIN_S = 5.0
# A guest under emulation may take its time to answer on a busy host.
ANSWER_S = 60.0


@dataclass
class Tally:
    """What was done and found, over all lives of the daemon."""

    began: Counter[str] = field(default_factory=Counter[str])
    interrupted: Counter[str] = field(default_factory=Counter[str])
    adopted: int = 0
    lost: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list[str])


def test_a_daemon_killed_at_any_moment_of_a_machines_life_leaves_no_orphan(
    tmp_path: Path, seed: str, whole: bool
) -> None:
    kills = 100 if whole else 2
    moments = random.Random(seed)
    tally = Tally()
    _share_images(tmp_path / "state")
    with daemon_in(tmp_path) as daemon, _nothing_left(daemon):
        daemon.start()
        for life in range(kills):
            _have_some(daemon)
            with _clients(daemon, f"{seed} {life}", tally):
                time.sleep(moments.uniform(0.1, 4.0))  # the fault's random moment
                daemon.kill()
            began = time.monotonic()
            daemon.start()
            _look(daemon, tally, began)
        _clean_up(daemon)
        assert daemon.end() == 0
    tell("daemon killed while machines lived", f"{kills} times")
    tell("  verbs begun", _counted(tally.began))
    tell("  of them cut off", _counted(tally.interrupted))
    tell("  machines found", f"{tally.adopted} adopted, {tally.lost} lost")
    tell("  from the start to all adopted and answering", f"{tally.slowest_s:.2f} s", aim="< 5 s")
    assert not tally.wrong, tally.wrong[:20]


def _counted(counter: Counter[str]) -> str:
    return " ".join(f"{name}={number}" for name, number in sorted(counter.items()))


def _share_images(state: Path) -> None:
    """Let the daemon boot the guest that is kept for tests."""
    anyio.run(built_image)
    state.mkdir(mode=0o700)
    (state / "images").symlink_to(CACHE / "images")


def _have_some(daemon: Daemon) -> None:
    """See to it that a machine runs and that there is a snapshot, or little could be cut off."""
    with Asker(daemon.socket, timeout_s=ANSWER_S) as asker:
        machines = asker.pages("/v1/machines")
        running = [each for each in machines if each["state"] == "running"]
        snapshots = asker.pages("/v1/snapshots")
        if not running and snapshots:
            source = snapshots[0]["snapshot_id"]
            done = asker.post("/v1/branches", source=source, wait_s=ANSWER_S)
            assert done["state"] == "succeeded", done
            running = done["result"]["machines"]
        elif not running:
            running = [asker.post("/v1/machines", memory_mib=MEMORY_MIB)]
            name = running[0]["machine_id"]
            done = asker.post(f"/v1/machines/{name}/start", wait_s=ANSWER_S)
            assert done["state"] == "succeeded", done
        if not snapshots:
            name = running[0]["machine_id"]
            done = asker.post(f"/v1/machines/{name}/snapshots", wait_s=ANSWER_S)
            assert done["state"] == "succeeded", done


@contextmanager
def _clients(daemon: Daemon, seed: str, tally: Tally) -> Generator[None]:
    """Let two clients do things until the block ends, which ends the daemon under them."""
    over = threading.Event()
    clients = [
        threading.Thread(target=_live, args=(daemon.socket, f"{seed} {n}", tally, over))
        for n in range(2)
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join(ANSWER_S)


def _live(path: Path, seed: str, tally: Tally, over: threading.Event) -> None:
    """Be a client until the daemon is gone."""
    choices = random.Random(seed)
    with Asker(path, timeout_s=ANSWER_S) as asker:
        while not over.is_set():
            verb = ""
            try:
                machines = asker.ask("GET", "/v1/machines", {"limit": 200}).body["items"]
                snapshots = asker.ask("GET", "/v1/snapshots", {"limit": 200}).body["items"]
                verb, method, where, body = _choose(choices, machines, snapshots)
                tally.began[verb] += 1
                asker.ask(method, where, body)
            except (NotHeard, NobodyKnows):
                if verb:
                    tally.interrupted[verb] += 1
                return


def _choose(
    choices: random.Random, machines: list[Any], snapshots: list[Any]
) -> tuple[str, str, str, dict[str, Any]]:
    """Pick something that can be done; two clients may pick the same, and one is refused."""
    alive = [m["machine_id"] for m in machines if m["state"] in ALIVE]
    running = [m["machine_id"] for m in machines if m["state"] == "running"]
    idle = [m["machine_id"] for m in machines if m["state"] not in ALIVE]
    ready = [s["snapshot_id"] for s in snapshots if s["state"] == "ready"]
    wait = {"wait_s": ANSWER_S}
    can: list[tuple[str, str, str, dict[str, Any]]] = []
    if len(machines) < MOST_MACHINES:
        can.append(("define", "POST", "/v1/machines", {"memory_mib": MEMORY_MIB}))
        can += [
            ("branch", "POST", "/v1/branches", {"source": snapshot, "count": 2, **wait})
            for snapshot in ready
        ]
    for each in idle:
        can.append(("start", "POST", f"/v1/machines/{each}/start", wait))
        can.append(("delete", "DELETE", f"/v1/machines/{each}", {}))
    for each in running:
        can += [("exec", "POST", f"/v1/machines/{each}/exec", {"argv": ["sleep", "0.3"]})] * 3
        can.append(("pause", "POST", f"/v1/machines/{each}/pause", {}))
        if len(snapshots) < MOST_SNAPSHOTS:
            can += [("save", "POST", f"/v1/machines/{each}/snapshots", wait)] * 2
    for each in alive:
        can.append(("resume", "POST", f"/v1/machines/{each}/resume", {}))
        can.append(("stop", "POST", f"/v1/machines/{each}/stop", {"grace_s": 5.0, **wait}))
        can.append(("kill", "POST", f"/v1/machines/{each}/kill", {}))
    if len(snapshots) == MOST_SNAPSHOTS:
        chosen = choices.choice(snapshots)["snapshot_id"]
        can.append(("forget", "DELETE", f"/v1/snapshots/{chosen}", {}))
    return choices.choice(can)


def _look(daemon: Daemon, tally: Tally, began: float) -> None:
    """Hold what a new daemon says against what is there."""
    with Asker(daemon.socket, timeout_s=ANSWER_S) as asker:
        machines = asker.pages("/v1/machines")
        by_id = {machine["machine_id"]: machine for machine in machines}
        odd = [f"{m['machine_id']} is {m['state']}" for m in machines if m["state"] not in SETTLED]
        odd += [
            f"{m['machine_id']} is lost without a reason"
            for m in machines
            if m["state"] == "lost" and not m["reason"]
        ]
        alive = {name for name, machine in by_id.items() if machine["state"] in ALIVE}
        there = set(hosted.processes(daemon.state_dir))
        odd += [f"the process of {name} is nobody's" for name in there - alive]
        odd += [f"{name} is said to be alive and has no process" for name in alive - there]
        for name in sorted(alive):
            odd += _use(asker, name, paused=by_id[name]["state"] == "paused")
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
        unfinished = asker.pages("/v1/operations", state="running")
        odd += [f"operation {each['kind']} still runs" for each in unfinished]
        odd += _odd_files(daemon.state_dir, set(by_id), asker.pages("/v1/snapshots"))
        tally.adopted += len(alive)
        tally.lost += sum(1 for machine in machines if machine["state"] == "lost")
        tally.wrong += odd


def _use(asker: Asker, machine: str, *, paused: bool) -> list[str]:
    if paused:
        asker.post(f"/v1/machines/{machine}/resume")
    ran = asker.post(f"/v1/machines/{machine}/exec", argv=["cat", "/proc/sys/kernel/ostype"])
    if (ran["exit_code"], ran["stdout"]) == (0, "Linux\n"):
        return []
    return [f"{machine} was adopted and does not work: {ran}"]


def _odd_files(state: Path, machines: set[str], snapshots: list[Any]) -> list[str]:
    known = {each["snapshot_id"] for each in snapshots}
    odd = [
        f"snapshot {each['snapshot_id']} is {each['state']}"
        for each in snapshots
        if each["state"] != "ready"
    ]
    for folder, names in (("machines", machines), ("snapshots", known)):
        there = {path.name for path in (state / folder).glob("*")}
        odd += [f"{folder}/{name} is nobody's" for name in there - names]
    return odd


def _clean_up(daemon: Daemon) -> None:
    with Asker(daemon.socket, timeout_s=ANSWER_S) as asker:
        for machine in asker.pages("/v1/machines"):
            name = machine["machine_id"]
            if machine["state"] in ALIVE:
                asker.post(f"/v1/machines/{name}/kill")
            assert asker.ask("DELETE", f"/v1/machines/{name}").ok
        for snapshot in asker.pages("/v1/snapshots"):
            assert asker.ask("DELETE", f"/v1/snapshots/{snapshot['snapshot_id']}").ok


@contextmanager
def _nothing_left(daemon: Daemon) -> Generator[None]:
    """End the machines of a campaign that failed; one that did not has none left."""
    try:
        yield
    finally:
        for pid in hosted.processes(daemon.state_dir).values():
            os.kill(pid, signal.SIGKILL)

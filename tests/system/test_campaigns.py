"""A campaign that finds a bug: a store of three real machines whose leader forgets the majority.

The store is `lease_store.py`, which runs in the guests; clients reach each node by a port that is
forwarded to this host, so what is broken between the nodes does not hide anybody's answer.
"""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import Event
from time import monotonic, time_ns
from typing import Any

import pytest

import lease_store
from machines import LONG_S
from microvm_orchestrator.clusters.history import (
    EventType,
    Operation,
    Recorder,
    event_of,
    operations,
    read,
    recorded,
)
from microvm_orchestrator.clusters.linear import Answer, check_linearizable, explained
from system.living import MEMORY_MIB, Stage, living

NODES = {"n1": "10.9.0.11", "n2": "10.9.0.12", "n3": "10.9.0.13"}
TOPOLOGY = "cluster_name: trio\nnetwork: {name: lan, subnet: 10.9.0.0/24}\nnodes:\n" + "".join(
    f"  - {{name: {name}, memory_mb: {MEMORY_MIB}, ip: {address}}}\n"
    for name, address in NODES.items()
)
# Its first fault parts the first leader from the others, for longer than an election takes.
CAMPAIGN: dict[str, Any] = {
    "kinds": ["partition"],
    "seed": "10",
    "duration_s": 9.0,
    "interval_s": 1.5,
    "hold_s": 6.0,
}
# More than the store takes when it can answer at all, as it is driven here.
ANSWER_S = 1.5


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with living(tmp_path_factory.mktemp("campaigns") / "s") as stage:
        stage.ask("cluster_define", topology=TOPOLOGY)
        stage.done("cluster_start", cluster="trio")
        yield stage
        stage.done("cluster_destroy", cluster="trio", delete_disks=True)


class Client:
    """Asks one node for one thing at a time, and writes down what it asked and heard."""

    def __init__(self, number: int, address: str, recorder: Recorder) -> None:
        self._process = number
        self._place = address.rsplit(":", 1)
        self._recorder = recorder
        self._luck = random.Random(number)
        self._socket: socket.socket | None = None
        self._number = number
        self._writes = 0

    def ask(self, f: str, value: int | None = None) -> dict[str, Any]:
        """Ask for something; `info` where no answer comes."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(
                    (self._place[0], int(self._place[1])), ANSWER_S
                )
            self._socket.sendall(json.dumps({"f": f, "value": value}).encode() + b"\n")
            if said := self._socket.recv(4096):
                answer: dict[str, Any] = json.loads(said)
                return answer
        except OSError:
            pass
        self.close()
        return {"info": "no answer"}

    def work(self, over: Event) -> None:
        """Read and write until it is over."""
        while not over.is_set():
            f = self._luck.choice(["read", "write"])
            value = None
            if f == "write":
                self._writes += 1
                value = self._writes * 10 + self._number
            self._recorder.invoke(self._process, f, value)
            match self.ask(f, value):
                case {"ok": said}:
                    self._recorder.ok(self._process, said)
                case {"fail": str(why)}:
                    self._recorder.fail(self._process, value, why)
                case {"info": str(why)} if f == "write":
                    self._recorder.info(self._process, value, why)
                    # Whoever waits for ever goes on as somebody else.
                    self._process += len(NODES)
                case _:
                    self._recorder.fail(self._process, value, "no answer")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def ran(stage: Stage, folder: Path, *, planted: bool) -> tuple[dict[str, Any], list[Operation]]:
    """Run the store under the campaign: what that told, and what clients and nemesis did."""
    folder.mkdir()
    program = Path(lease_store.__file__).read_text()
    others = [f"{name}={address}" for name, address in NODES.items()]
    began_ns = time_ns()
    with ExitStack() as life:
        recorder = life.enter_context(recorded(folder / "history", time_ns))
        clients: list[Client] = []
        for number, name in enumerate(NODES):
            machine = f"trio.{name}"
            put = "cat >/tmp/store.py"
            stage.ask("node_exec", cluster="trio", node=name, script=put, stdin=program)
            argv = ["python3", "/tmp/store.py", name, "yes" if planted else "no", *others]
            store = {"exec_id": f"{folder.name}-{name}"}
            stage.ask("machine_exec", machine=machine, argv=argv, wait_s=0, **store)
            life.callback(stage.ask, "exec_wait", timeout_s=LONG_S, **store)
            life.callback(stage.ask, "exec_signal", signal="KILL", **store)
            port = stage.ask("forward_add", machine=machine, guest=str(lease_store.CLIENTS))
            life.callback(stage.ask, "forward_remove", forward_id=port["forward_id"])
            clients.append(Client(number, port["host"], recorder))
            life.callback(clients[-1].close)
        # The first one is the first to lead.
        late = monotonic() + LONG_S
        while "ok" not in (said := clients[0].ask("read")):
            assert monotonic() < late, said
        over = Event()
        with ThreadPoolExecutor(len(clients)) as pool:
            working = [pool.submit(client.work, over) for client in clients]
            try:
                told = stage.done("fault_campaign", cluster="trio", **CAMPAIGN)
            finally:
                over.set()
            for each in working:
                each.result()
    # Both clocks are that on the wall.
    late_ns = round(datetime.fromisoformat(told["started_at"]).timestamp() * 1e9) - began_ns
    nemesis = [event_of(json.dumps(each), "the campaign") for each in told["history"]]
    events = [replace(each, time=each.time + late_ns) for each in nemesis]
    events += read(folder / "history")
    return told, operations(sorted(events, key=lambda each: each.time))


@pytest.mark.long
def test_a_seeded_campaign_finds_the_planted_bug_replays_it_and_passes_the_repair(
    stage: Stage, tmp_path: Path
) -> None:
    schedules: list[Any] = []
    for planted, name in ((True, "found"), (True, "replayed"), (False, "repaired")):
        told, history = ran(stage, tmp_path / name, planted=planted)
        schedules.append(told["schedule"])
        assert (told["state"], told["injected"]) == ("succeeded", len(told["schedule"]))
        apart, healed = (each for each in history if each.process == "nemesis")
        assert apart.end is not None
        meanwhile = [
            each.process
            for each in history
            if each.f == "write"
            and each.outcome is EventType.OK
            and apart.end < each.start < healed.start
        ]
        # Somebody else leads, and is who was asked.
        assert meanwhile
        assert all(int(process) % len(NODES) != 0 for process in meanwhile)
        verdict = check_linearizable(history)
        if not planted:
            assert verdict.answer is Answer.VALID, verdict
            continue
        assert verdict.answer is Answer.INVALID
        wrong = verdict.counterexample
        assert wrong is not None
        print("\n".join(explained(wrong)))
        # It is the first leader that still answers reads, and what it says was written over.
        stale = [e for e in wrong.operations if e.f == "read" and int(e.process) % len(NODES) == 0]
        assert stale
        assert all(apart.start < each.start < healed.start for each in stale)
    assert schedules[0] == schedules[1] == schedules[2]

"""A daemon with real machines, as a process of its own, and somebody who talks to it.

`living` runs one with the guest that is kept for tests, and looks in the end that nothing of its
machines is left on the host. What it is asked goes over its socket, as the command line does it or
by the command line itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

import hosted
from daemon import Daemon, running_daemon
from machines import CACHE, LONG_S, built_image, know_host
from microvm_orchestrator import errors, places
from microvm_orchestrator.cli.client import Client
from microvm_orchestrator.machine.pool import TEMPLATE

PROGRAM = str(Path(sys.executable).with_name(places.NAME))
ALIVE = {"running", "paused"}
# As little as the guest is comfortable with: several run at once.
MEMORY_MIB = 160
DISK_MIB = 64


@dataclass(frozen=True, slots=True)
class Stage:
    """A daemon, and ways to talk to it."""

    daemon: Daemon
    client: Client

    def ask(self, call: str, **arguments: Any) -> dict[str, Any]:
        return self.client.call(call, arguments).value

    def done(self, call: str, **arguments: Any) -> dict[str, Any]:
        """See an operation through that succeeds; its result."""
        operation = self.ask(call, wait_s=LONG_S, **arguments)
        assert operation["state"] == "succeeded", operation
        result: dict[str, Any] = operation["result"]
        return result

    def refusal(self, call: str, **arguments: Any) -> str:
        """Ask for what is refused, at once or by the operation that began; the code of it."""
        try:
            answer = self.ask(call, **arguments)
        except errors.OrchestratorError as error:
            return error.code
        assert answer["state"] == "failed", answer
        return str(answer["error"]["code"])

    def said(self, machine: str, script: str) -> str:
        """Run a script that succeeds; what it says."""
        ran = self.ask("machine_exec", machine=machine, script=script, wait_s=LONG_S)
        assert ran["exit_code"] == 0, ran
        return str(ran["stdout"])

    def state(self, machine: str) -> tuple[str, str]:
        told = self.ask("machine_get", machine=machine)
        return told["state"], told["reason"]

    def boot(self, name: str, **wish: Any) -> dict[str, Any]:
        self.ask("machine_define", name=name, **{"memory_mib": MEMORY_MIB, **wish})
        return self.done("machine_start", machine=name)

    def branch(self, source: str, name: str, **more: Any) -> list[dict[str, Any]]:
        branched = self.done("machine_branch", source=source, name=name, **more)
        machines: list[dict[str, Any]] = branched["machines"]
        return machines

    # The journal

    def told(self, subject: str) -> list[str]:
        """Give the kinds of all events of something, in their order."""
        return [event["kind"] for event in self._journal(subject)]

    def _journal(self, subject: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = self.ask("event_wait", subjects=[subject], limit=1000)[
            "events"
        ]
        return events

    def hear(self, kind: str, subject: str) -> dict[str, Any]:
        """Wait for an event, or find that it was before; what it says."""
        asked = {"kinds": [kind], "subjects": [subject], "timeout_s": LONG_S}
        events = self.ask("event_wait", **asked)["events"]
        assert events, f"no {kind} of {subject}: {self._journal(subject)}"
        body: dict[str, Any] = events[0]["body"]
        return body

    # The command line

    def cli(self, *words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.words(*words), input=data, capture_output=True, timeout=LONG_S, check=False
        )

    def words(self, *words: str) -> list[str]:
        # Options come before what is for the machine.
        noun, verb, *rest = words
        return [PROGRAM, noun, verb, "--socket", str(self.daemon.socket), *rest]

    @contextmanager
    def started(self, *words: str) -> Generator[subprocess.Popen[bytes]]:
        pipe = subprocess.PIPE
        process = subprocess.Popen(self.words(*words), stdin=pipe, stdout=pipe, stderr=pipe)
        with process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()

    # The end

    def drop(self, machine: str) -> None:
        """End a machine, if it runs, and forget it, if it is known."""
        with contextlib.suppress(errors.NotFound):
            with contextlib.suppress(errors.StateForbids):
                self.ask("machine_kill", machine=machine)
            self.ask("machine_delete", machine=machine)

    def clear(self) -> None:
        """Let nothing be left but the daemon."""
        for machine in self.ask("machine_list", limit=200)["items"]:
            self.drop(machine["machine_id"])
        for snapshot in self.ask("snapshot_list", limit=200)["items"]:
            self.ask("snapshot_delete", snapshot_id=snapshot["snapshot_id"])


def furnish(state: Path) -> None:
    """Make a state directory in which the guest is there already, and how fast this host is."""
    anyio.run(built_image)
    anyio.run(know_host, state)
    (state / places.IMAGES).symlink_to(CACHE / "images")


@contextmanager
def staged(state: Path, **settings: dict[str, Any]) -> Generator[Stage]:
    """Run a daemon on a state directory until the block ends; machines go on after it."""
    with running_daemon(state, socket_path=None, **settings) as daemon:
        yield Stage(daemon, Client(daemon.socket))


@contextmanager
def living(state: Path, **settings: dict[str, Any]) -> Generator[Stage]:
    """Run a daemon with machines until the block ends, and see that nothing is left of them."""
    furnish(state)
    try:
        with staged(state, **settings) as stage:
            yield stage
            stage.clear()
            known = [item["machine_id"] for item in stage.ask("slot_list")["items"]]
            assert known == [], "somebody holds a slot"
        # What those that stand ready are made of is kept for the next daemon.
        left = [each for each in hosted.left(state) if TEMPLATE not in each]
        assert left == [], left
    finally:
        for pid in hosted.processes(state).values():
            os.kill(pid, signal.SIGKILL)


def template_in(stage: Stage) -> str:
    """Save a machine with a disk, from which others start in a moment; the snapshot's id."""
    stage.boot("source", disk_mib=DISK_MIB)
    saved = stage.done("snapshot_create", machine="source")
    stage.drop("source")
    return str(saved["snapshot_id"])

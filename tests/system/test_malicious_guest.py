"""A guest that is all malice, and what the daemon makes of it.

The agent in it is `hostile_agent.py`: each row is one thing it does. Whatever that is, the call is
refused with a reason that says which rule was broken, no file of the host is touched, the daemon
stays as small as it was, and the next machine works. Most rows run behind the QEMU that only looks
so, over real sockets; a core of them in a real QEMU, in a guest whose agent was replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemon import COMMAND, Daemon, running_daemon
from machines import fake_program, publish_no_image
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from system import doors

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

# Of the daemon, beside what it had when it had seen one machine: the windows of a few streams, the
# output it keeps, and what its allocator does not give back.
GROWTH_KIB = 96 * 1024
PATIENCE_S = 100.0

# By what an agent does instead of greeting: what the reason of the failed boot says.
BOOTS = {
    "speaks_another_version": "version 9 of the protocol",
    "sends_garbage_without_end": "answer nothing",
    "answers_somebody_else": "answer nothing",
    "does_not_say_who_it_is": "HELLO that says nothing",
    "says_who_it_is_twice": "HELLO frame on stream 0",
    "speaks_before_its_greeting": "before its HELLO",
    "acknowledges_all_but_its_name": "did not acknowledge hostname",
    "acknowledges_what_nobody_asked": "did not acknowledge entropy",
    # These take the whole time that a boot may take.
    "answers_nothing": "not ready within",
    "answers_one_byte_a_second": "not ready within",
    "is_ready_by_its_console_only": "not ready within",
}
SLOW = ("answers_nothing", "answers_one_byte_a_second", "is_ready_by_its_console_only")

# By what a command is answered with: the rule that breaks.
EXECS = {
    "longer-than-it-says": "does not end where it says",
    "shorter-than-it-says": "does not end where it says",
    "four-gigabytes-long": "4294967295 bytes",
    "of-no-length": "frame of 0 bytes",
    "of-an-unknown-kind": "no kind 127",
    "on-a-stream-nobody-opened": "stream 77, which is not open",
    "on-the-connection": "on stream 0",
    "grants-everything": "a grant",
    "grants-nothing": "a grant",
    "greets-again": "HELLO frame on stream 0",
    "a-status-of-256": "code is 256",
    "a-status-below-zero": "code is -1",
    "a-status-that-is-a-text": "code is no number",
    "a-signal-of-65": "signal is 65",
    "more-output-than-there-was": "offset is",
    "a-record-in-a-record": "a record",
    "a-list-of-four-billion": "a record",
    "a-field-of-four-gigabytes": "a record",
    "data-behind-its-end": "behind its END|between the output",
    "an-answer-to-a-command-of-ours": "CANCEL frame",
    "another-agent": "another agent",
    "opens-streams-without-end": "reads no answer",
}

# By what a file is answered with.
FILES = {
    "larger-than-allowed": "size is 4294967296",
    "smaller-than-nothing": "size is -1",
    "more-than-its-size": "more of a file",
    "less-than-its-size": "less of a file",
    "a-mode-of-a-device": "mode is",
}


@dataclass(frozen=True, slots=True)
class Den:
    """A daemon with a good machine, and a folder that nobody shall touch."""

    daemon: Daemon
    place: doors.Place
    outside: Path
    before: str
    small_kib: int

    def ask(self, call: str, /, **arguments: Any) -> doors.Reply:
        return doors.rest(self.place, None, call, json.dumps(arguments).encode())

    def get(self, call: str, /, **arguments: Any) -> dict[str, Any]:
        reply = self.ask(call, **arguments)
        assert reply.code == "ok", reply
        return reply.value

    def begin(self, name: str, image: str) -> str:
        """Begin to start a machine; return the operation."""
        self.get("machine_define", name=name, image=image)
        return self.get("machine_start", machine=name, wait_s=0)["operation_id"]

    def finish(self, operation: str) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            told = self.get("operation_wait", operation_id=operation, timeout_s=10.0)
            if told["finished"]:
                return told["operation"]
            assert time.monotonic() < deadline

    def run(self, name: str, word: str, **more: Any) -> doors.Reply:
        """Run a command to its end."""
        more = {"exec_id": f"e{time.monotonic_ns()}", "wait_s": 0, "timeout_s": 60.0, **more}
        reply = self.ask("machine_exec", machine=name, argv=[word], **more)
        deadline = time.monotonic() + PATIENCE_S
        while reply.code == "ok" and reply.value["state"] in {"queued", "starting", "running"}:
            assert time.monotonic() < deadline
            reply = self.ask("exec_wait", exec_id=more["exec_id"], timeout_s=10.0)
        return reply

    def check(self) -> None:
        """See that nothing of the host was touched, nothing grew, and a good machine works."""
        assert digest(self.outside) == self.before
        assert high_kib(self.daemon.pid) < self.small_kib + GROWTH_KIB
        done = self.get("machine_exec", machine="good", argv=["echo", "fine"])
        assert (done["stdout"], done["exit_code"]) == ("fine\n", 0)


def digest(folder: Path) -> str:
    """Tell a tree by its names, modes, links and contents."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        told = (str(path.relative_to(folder)), status.st_mode, status.st_size, status.st_mtime_ns)
        found.update(repr(told).encode())
        if path.is_symlink():
            found.update(os.fsencode(path.readlink()))
        elif path.is_file():
            found.update(path.read_bytes())
    return found.hexdigest()


def high_kib(pid: int) -> int:
    """Return the most memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0])


@pytest.fixture(scope="module")
def den(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Den]:
    state, outside = tmp_path_factory.mktemp("den"), tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("keep me")
    (outside / "link").symlink_to("precious")
    images = ImageStore(state / places.IMAGES)
    publish_no_image(images, "good")
    publish_no_image(images, "hostile", "fake.hostile")
    for boot in BOOTS:
        publish_no_image(images, boot, f"fake.hostile={boot}")
    machines = {"qemu": str(fake_program(state)), "count": 40, "memory_mib": 1 << 20, "vcpus": 99}
    with running_daemon(state, tcp={"listen": "127.0.0.1:0"}, machines=machines) as daemon:
        assert daemon.tcp is not None
        place = doors.Place(daemon.socket, daemon.tcp)
        new = Den(daemon, place, outside, digest(outside), 0)
        assert new.finish(new.begin("good", "good"))["state"] == "succeeded"
        new.get("machine_exec", machine="good", argv=["true"])
        yield Den(daemon, place, outside, digest(outside), high_kib(daemon.pid))
        new.get("machine_kill", machine="good")


@pytest.fixture
def hostile(den: Den) -> Generator[str]:
    """Give a machine that was taken over, and see afterwards that nothing else was."""
    assert den.finish(den.begin("hostile", "hostile"))["state"] == "succeeded"
    yield "hostile"
    den.get("machine_kill", machine="hostile")
    den.get("machine_delete", machine="hostile")
    den.check()


@pytest.fixture(scope="module")
def failed(den: Den, *, whole: bool) -> dict[str, dict[str, Any]]:
    """Start every guest that does not greet as it should, all at once; return how that ended."""
    begun = {
        boot: den.begin(boot.replace("_", "-"), boot) for boot in BOOTS if whole or boot not in SLOW
    }
    return {boot: den.finish(operation) for boot, operation in begun.items()}


@pytest.mark.parametrize("boot", BOOTS)
def test_a_guest_that_does_not_greet_as_it_should_is_never_served(
    den: Den, failed: dict[str, dict[str, Any]], boot: str
) -> None:
    if boot not in failed:
        pytest.skip("takes a minute: with --whole")
    ended = failed[boot]
    assert (ended["state"], ended["error"]["code"]) == ("failed", "machine-boot-failed")
    assert BOOTS[boot] in ended["error"]["message"]
    assert "\x1b" not in json.dumps(ended, ensure_ascii=False)
    machine = den.get("machine_get", machine=boot.replace("_", "-"))
    assert machine["state"] == "crashed"
    assert den.run(machine["machine_id"], "true").code == "state-forbids"
    den.get("machine_delete", machine=machine["machine_id"])
    den.check()


@dataclass(frozen=True, slots=True)
class Answered:
    """What came of asking a machine that was taken over, and what the daemon's log says of it."""

    reply: doors.Reply
    log: str


@pytest.fixture(scope="module")
def answered(den: Den) -> dict[str, Answered]:
    """Ask for every command and file that is answered against the rules, each in a machine."""

    def ask(act: str) -> Answered:
        image = {"name": act, "image": "hostile"}
        machine_id = den.get("machine_define", **image)["machine_id"]
        assert den.get("machine_start", machine=act)["state"] == "succeeded"
        if act in EXECS:
            reply = den.run(act, act)
        else:
            reply = den.ask("file_get", machine=act, path=f"/{act}")
        den.get("machine_kill", machine=act)
        den.get("machine_delete", machine=act)
        lines = den.daemon.log.read_text().splitlines()
        return Answered(reply, "\n".join(line for line in lines if machine_id in line))

    with ThreadPoolExecutor(8) as pool:
        acts = [*EXECS, *FILES]
        found = dict(zip(acts, pool.map(ask, acts), strict=True))
    den.check()
    return found


@pytest.mark.parametrize("act", EXECS)
def test_a_command_that_is_answered_against_the_rules_fails_and_says_why(
    answered: dict[str, Answered], act: str
) -> None:
    told = answered[act]
    # The second where it is sure that it had not begun.
    assert told.reply.code in {"unknown-outcome", "machine-unreachable"}, told.reply
    assert "\x1b" not in json.dumps(told.reply.value, ensure_ascii=False)
    assert re.search(EXECS[act], told.log)


@pytest.mark.parametrize("act", FILES)
def test_a_file_that_is_not_what_it_says_is_refused(
    answered: dict[str, Answered], act: str
) -> None:
    told = answered[act]
    assert told.reply.code == "protocol-broken", told.reply
    assert FILES[act] in json.dumps(told.reply.value)


def test_what_a_guest_refuses_a_command_with_harms_no_terminal(den: Den, hostile: str) -> None:
    reply = den.run(hostile, "an-error-of-escapes")
    assert reply.code == "guest-refused"
    assert "\x1b" not in json.dumps(reply.value, ensure_ascii=False)


def test_an_agent_that_broke_the_rules_is_talked_to_anew_and_what_ended_has_ended(
    den: Den, hostile: str
) -> None:
    ended = den.run(hostile, "ends-twice")
    if ended.code == "ok":  # the first end was right; what comes behind it breaks the connection
        assert ended.value["exit_code"] == 7
    assert den.get("machine_exec", machine=hostile, argv=["true"])["exit_code"] == 0
    assert den.get("machine_exec", machine=hostile, argv=["byte-by-byte"])["exit_code"] == 0


@pytest.mark.parametrize("act", ["silent", "never-ends-its-output"])
def test_a_command_that_is_never_answered_ends_by_the_hosts_clock(
    den: Den, hostile: str, act: str, *, whole: bool
) -> None:
    if act == "silent" and not whole:
        pytest.skip("takes half a minute: with --whole")
    reply = den.run(hostile, act, timeout_s=1.0)
    assert reply.code == "unknown-outcome", reply


def test_a_flood_of_output_is_cut_and_leaves_the_daemon_small(den: Den, hostile: str) -> None:
    reply = den.run(hostile, "floods-its-output")
    assert reply.code == "ok", reply
    told = reply.value
    assert (told["exit_code"], told["truncated"]) == (0, True)
    assert told["next"] >= 64 << 20
    assert len(told["stdout_base64"] or told["stdout"]) <= 4 << 20


def test_a_flood_of_reports_is_not_written_down(den: Den, hostile: str) -> None:
    since = den.get("event_wait", limit=1)["cursor"]
    log = den.daemon.log.stat().st_size
    assert den.run(hostile, "floods-with-reports").code == "ok"
    told = den.get("event_wait", after=since, kinds=["machine.oom"], limit=1000)["events"]
    assert len(told) <= 3
    for event in told:
        assert len(json.dumps(event)) < 2000
        assert "\x1b" not in event["body"]["text"]
    assert den.daemon.log.stat().st_size - log < 100_000


def test_a_console_that_is_flooded_takes_little_and_shows_nothing_that_a_terminal_obeys(
    den: Den, hostile: str
) -> None:
    assert den.run(hostile, "floods-its-console").code == "ok"
    machine_id = den.get("machine_get", machine=hostile)["machine_id"]
    console = den.daemon.state_dir / "machines" / machine_id / "console"
    deadline = time.monotonic() + PATIENCE_S
    while console.stat().st_blocks * 512 > 8 << 20:  # it is looked at every second
        assert time.monotonic() < deadline
    assert console.stat().st_size > 20 << 20
    words = [COMMAND, "machine", "logs", hostile]
    env = {**os.environ, places.SOCKET_VARIABLE: str(den.daemon.socket)}
    told = subprocess.run(words, env=env, capture_output=True, timeout=PATIENCE_S, check=True)
    shown = told.stdout
    assert b"flood flood" in shown
    assert not [byte for byte in shown if (byte < 32 and byte != ord("\n")) or byte == 127]
    assert "\x9b" not in shown.decode()
    for offset in (0, 10**9, 2**62, 2**63 - 1):
        told = den.get("machine_console", machine=hostile, offset=offset)
        assert len(told["text"]) <= 65_536


def test_a_snapshot_that_was_changed_on_the_disk_starts_no_machine(den: Den) -> None:
    saved = den.get("snapshot_create", machine="good")["result"]["snapshot_id"]
    state = den.daemon.state_dir / "snapshots" / saved / "state"
    with state.open("r+b") as file:
        file.write(b"\xff" * 16)
    for call, asked in (("machine_branch", {"source": saved}), ("snapshot_verify", {})):
        more = asked or {"snapshot_id": saved}
        ended = den.get(call, wait_s=20.0, **more)
        assert (ended["state"], ended["error"]["code"]) == ("failed", "snapshot-damaged")
    den.get("snapshot_delete", snapshot_id=saved)
    den.check()


def test_no_other_user_of_the_host_reaches_what_a_machine_is_commanded_by(den: Den) -> None:
    machine_id = den.get("machine_get", machine="good")["machine_id"]
    folder = den.daemon.state_dir / "machines" / machine_id
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    sockets = [path for path in folder.iterdir() if path.is_socket()]
    assert {"qmp", "ctl", "tty"} <= {path.name for path in sockets}
    for path in sockets:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path.name

"""Commands, files and terminals in a real machine, over every front end, and what cuts them off."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from machines import LONG_S
from microvm_orchestrator import errors, places
from microvm_orchestrator.cli.client import Client
from microvm_orchestrator.cli.duplex import DATA, END, HEADER, open_duplex
from system import doors, living

MIB = 1 << 20
# Far less than what is said, more than what the daemon takes for everything else it does.
ROOM_KIB = 96 << 10


@dataclass(frozen=True, slots=True)
class Stage(living.Stage):
    """One with a machine `box`."""

    def run(self, *argv: str, **more: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"wait_s": LONG_S, **more}
        if argv:
            given["argv"] = list(argv)
        return self.ask("machine_exec", machine="box", **given)

    def output(self, exec_id: str, until: str, offset: int = 0) -> str:
        text = ""
        deadline = time.monotonic() + LONG_S
        while until not in text:
            assert time.monotonic() < deadline, text
            read = self.ask("exec_output", exec_id=exec_id, offset=offset, timeout_s=10.0)
            text += "".join(piece["text"] for piece in read["pieces"])
            offset = read["next"]
            assert until in text or not read["ended"], text
        return text


@contextmanager
def stage_in(state: Path) -> Generator[Stage]:
    with living.staged(state, tcp={"listen": "127.0.0.1:0"}) as stage:
        yield Stage(stage.daemon, stage.client)


@contextmanager
def machine_in(state: Path) -> Generator[None]:
    """Let a machine `box` run whatever becomes of the daemons on this folder."""
    living.furnish(state)
    with stage_in(state) as stage:
        stage.boot("box", memory_mib=192)
    try:
        yield
    finally:
        with stage_in(state) as stage, contextlib.suppress(errors.StateForbids):
            stage.ask("machine_kill", machine="box")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    state = tmp_path_factory.mktemp("exec") / "state"
    with machine_in(state), stage_in(state) as stage:
        yield stage


# Calls


@pytest.mark.parametrize("door", [doors.rest, doors.stream, doors.streamable])
def test_a_command_runs_over_every_door(stage: Stage, door: Any) -> None:
    place = doors.Place(stage.daemon.socket, stage.daemon.tcp or "")
    asked = {
        "machine": "box",
        "script": 'cat; echo "$X $PWD $(id -un)"; echo err >&2; exit 3',
        "stdin": "in ",
        "env": {"X": "é"},
        "cwd": "/usr",
        "user": "nobody",
        "wait_s": LONG_S,
    }
    reply = door(place, None, "machine_exec", json.dumps(asked).encode())
    assert reply.code == "ok", reply
    told = reply.value
    assert (told["exit_code"], told["stderr"]) == (3, "err\n")
    assert told["stdout"] == "in é /usr nobody\n"


def test_exits_signals_and_timeouts_are_those_of_the_guest(stage: Stage) -> None:
    assert stage.run("sh", "-c", "exit 42")["exit_code"] == 42
    assert stage.run(script="kill -TERM $$")["signal"] == signal.SIGTERM
    late = stage.run(script="echo partial; sleep 1000", timeout_s=2.0)
    assert (late["timed_out"], late["stdout"], late["exit_code"]) == (True, "partial\n", None)
    with pytest.raises(errors.NotFound):
        stage.run("/no/such/program")
    with pytest.raises(errors.NotFound):
        stage.ask("machine_exec", machine="nobody", argv=["true"])


def test_what_is_no_text_arrives_as_it_was(stage: Stage) -> None:
    ran = stage.cli("machine", "exec", "-n", "box", "--", "printf", r"\377\000\r\n\001")
    assert (ran.returncode, ran.stdout) == (0, b"\xff\x00\r\n\x01")


def test_a_flood_reaches_its_reader_whole_and_the_daemon_stays_small(
    stage: Stage, whole: bool
) -> None:
    flood = (1000 if whole else 100) * MIB
    stage.run("true")
    before = stage.daemon.resident_kib
    words = ("machine", "exec", "-n", "--timeout-s", "36000", "box", "--", "head", "-c", str(flood))
    most = count = 0
    with stage.started(*words, "/dev/zero") as process:
        assert process.stdout is not None
        while data := process.stdout.read(MIB):
            assert data.count(0) == len(data)
            count += len(data)
            most = max(most, stage.daemon.resident_kib)
        assert process.wait(LONG_S) == 0
    assert count == flood
    assert most < before + ROOM_KIB


def test_a_flood_that_nobody_reads_is_kept_to_its_last_part(stage: Stage) -> None:
    before = stage.daemon.resident_kib
    script = f"head -c {100 * MIB} /dev/zero; echo end; echo err >&2"
    ran = stage.run(script=script, output_cap=10)
    assert (ran["exit_code"], ran["truncated"], ran["stderr"]) == (0, True, "err\n")
    assert ran["stdout"].endswith("\0end\n")
    assert ran["next"] == 100 * MIB + 8
    assert stage.daemon.resident_kib < before + ROOM_KIB
    read = stage.ask("exec_output", exec_id=ran["exec_id"], limit=100)
    assert (read["missed"], read["pieces"][0]["offset"] > 90 * MIB) == (True, True)


def test_two_follow_one_command(stage: Stage) -> None:
    script = "echo one; read x; echo $x; read x; exit 9"
    stage.run(script=script, stdin_open=True, wait_s=0.0, exec_id="two")
    with stage.started("exec", "attach", "two") as first:
        with stage.started("exec", "attach", "two") as second:
            outs = [process.stdout for process in (first, second)]
            assert [out.readline() for out in outs if out] == [b"one\n"] * 2
            stage.ask("exec_input", exec_id="two", data="go\n")
            assert [out.readline() for out in outs if out] == [b"go\n"] * 2
            second.kill()
        # It goes on when one of those who follow it is gone.
        stage.ask("exec_input", exec_id="two", data="\n")
        assert first.wait(LONG_S) == 9


# The command line


def test_the_command_line_is_a_pipe_through_the_machine(stage: Stage) -> None:
    data = os.urandom(3 * MIB)
    ran = stage.cli("machine", "exec", "box", "--", "cat", data=data)
    assert (ran.returncode, ran.stdout == data) == (0, True)
    ran = stage.cli("machine", "exec", "box", "--script", "echo a; echo b >&2; kill -9 $$")
    assert (ran.returncode, ran.stdout, ran.stderr) == (128 + 9, b"a\n", b"b\n")
    ran = stage.cli("machine", "exec", "-n", "--timeout-s", "1", "box", "--", "sleep", "60")
    assert ran.returncode == 124


def test_an_interrupt_goes_to_the_command(stage: Stage) -> None:
    script = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.1; done"
    with stage.started("machine", "exec", "-n", "box", "--script", script) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert (process.stdout.read(), process.wait(LONG_S)) == (b"caught\n", 5)


def test_a_command_ends_when_the_program_that_stays_with_it_is_killed(stage: Stage) -> None:
    words = ("machine", "exec", "box", "--exec-id", "orphan", "--script", "echo ready; sleep 1000")
    with stage.started(*words) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.kill()
    ended = stage.ask("exec_wait", exec_id="orphan", timeout_s=LONG_S)
    assert (ended["state"], ended["signal"]) == ("exited", signal.SIGTERM)


class Screen:
    """A terminal that somebody sits at."""

    def __init__(self, words: list[str]) -> None:
        self.fd, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (30, 100))
        self.before = termios.tcgetattr(theirs)
        env = {**os.environ, "TERM": "dumb"}
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True
        )
        self.theirs = theirs
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def shows(self, pattern: str) -> None:
        """Wait until something new is shown."""
        deadline = time.monotonic() + LONG_S
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            assert ready, self.text
            self.text += os.read(self.fd, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self.fd, (rows, columns))
        os.kill(self.process.pid, signal.SIGWINCH)

    def ended(self) -> int:
        """Wait for the program's end, and look that the terminal is as it was."""
        over = os.pidfd_open(self.process.pid)
        try:
            while True:
                ready, _, _ = select.select([self.fd, over], [], [], LONG_S)
                assert ready, self.text
                if self.fd not in ready:
                    break
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        finally:
            os.close(over)
        status = self.process.wait(LONG_S)
        assert termios.tcgetattr(self.theirs) == self.before
        return status

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.theirs)


@contextmanager
def screen(words: list[str]) -> Generator[Screen]:
    here = Screen(words)
    try:
        yield here
    finally:
        here.close()


def test_a_shell_has_this_terminal_and_its_size_and_gives_it_back(stage: Stage) -> None:
    with screen(stage.words("machine", "shell", "box")) as here:
        here.type("stty size; echo TERM-$TERM\n")
        here.shows(r"30 100\r\n(.|\s)*TERM-dumb")
        here.resize(40, 120)
        here.type("stty size\n")
        here.shows(r"40 120")
        # Ctrl-C is for the program there, not for us; what says this has the terminal already.
        here.type("sh -c 'echo goes-$((40+1)); exec sleep 1000'\n")
        here.shows("goes-41")
        here.type("\x03")
        here.shows("# ")
        here.type("echo alive-$((40+2))\n")
        here.shows("alive-42")
        here.type("exit 6\n")
        assert here.ended() == 6


def test_one_leaves_a_shell_and_comes_back_to_it(stage: Stage) -> None:
    with screen(stage.words("machine", "shell", "box", "--", "sh")) as here:
        here.type("x=$((40+3)); echo set-$x\n")
        here.shows("set-43")
        here.type("\x1d")
        here.shows("exec attach ")
        assert here.ended() == 0
    [running] = stage.ask("exec_list", machine="box", state="running")["items"]
    with screen(stage.words("exec", "attach", running["exec_id"])) as here:
        here.type("echo again-$x\n")
        here.shows("again-43")
        here.type("exit\n")
        assert here.ended() == 0


def test_the_terminal_is_itself_again_when_the_program_is_told_to_end(stage: Stage) -> None:
    with screen(stage.words("machine", "shell", "box", "--", "sh")) as here:
        here.type("echo here-$((40+4))\n")
        here.shows("here-44")
        here.process.terminate()
        assert here.ended() == 128 + signal.SIGTERM


def test_the_console_comes_with_what_it_said_before(stage: Stage) -> None:
    with screen(stage.words("machine", "attach", "box")) as here:
        here.shows(r"\S")
        with pytest.raises(errors.StateForbids):
            open_duplex(stage.client, "machine_attach", {"machine": "box"})
        stage.run(script="echo said-on-console >/dev/console")
        here.shows("said-on-console")
        here.type("\x1d")
        assert here.ended() == 0


# Files


def test_trees_with_odd_names_travel_both_ways(stage: Stage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "run").write_text("#!/bin/sh\n")
    (source / "a" / "run").chmod(0o755)
    (source / "empty").touch()
    names = [b"-rf", b"\xff\xfe", b"new\nline", b"\x1b[31mred", b"$(reboot)", b"sp ace", b"n" * 255]
    for name in names:
        (source / "a" / "b" / os.fsdecode(name)).write_bytes(name)
    (source / "big").write_bytes(os.urandom(3 * MIB))
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    assert stage.cli("machine", "cp", "-r", str(source), "box:/tmp/there").returncode == 0
    counted = stage.run(script="find /tmp/there -type f | tr -cd '\\n' | wc -c; ls -l /tmp/there/a")
    assert "-rwxr-xr-x" in counted["stdout"]
    back = tmp_path / "back"
    fetched = stage.cli("machine", "cp", "-r", "box:/tmp/there", str(back))
    assert (fetched.returncode, fetched.stderr) == (0, b"")

    def content(folder: Path) -> dict[bytes, bytes | None]:
        return {
            os.fsencode(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in folder.rglob("*")
            if not path.is_symlink() and not path.is_fifo()
        }

    assert content(back) == content(source)
    again = stage.cli("machine", "cp", "-r", "box:/tmp/there", str(back))
    assert again.returncode == 2
    assert b"exists" in again.stderr.lower()


def test_links_and_devices_of_a_guest_do_not_travel(stage: Stage, tmp_path: Path) -> None:
    script = (
        "mkdir -p /tmp/traps/in && cd /tmp/traps && ln -s /etc/passwd link && ln -s / up && "
        "mknod null c 1 3 && mkfifo pipe && echo fine >in/file"
    )
    assert stage.run(script=script)["exit_code"] == 0
    out = tmp_path / "out"
    fetched = stage.cli("machine", "cp", "-r", "box:/tmp/traps/", str(out) + "/")
    assert fetched.stdout == b"4 links or devices were left out\n"
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    assert found == ["traps", "traps/in", "traps/in/file"]
    refused = stage.cli("machine", "cp", "box:/tmp/traps/null", str(tmp_path / "null"))
    assert refused.returncode == 2
    assert not (tmp_path / "null").exists()


def test_a_file_of_any_size_goes_through_pipes(stage: Stage) -> None:
    data = os.urandom(5 * MIB)
    assert stage.cli("machine", "cp", "-", "box:/tmp/file", data=data).returncode == 0
    assert stage.cli("machine", "cp", "box:/tmp/file", "-").stdout == data
    wrong = stage.cli("machine", "cp", "box:/tmp/nothing", "-")
    assert (wrong.returncode, wrong.stdout) == (3, b"")
    assert stage.cli("machine", "cp", "a", "b").returncode == 2
    assert list((stage.daemon.state_dir / places.TRANSFERS).glob("*")) == []


def test_only_so_many_folders_are_on_their_way_at_once(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    above = stage.daemon.state_dir / places.TRANSFERS
    above.mkdir(exist_ok=True)
    others = [above / f"other-{number}" for number in range(16)]
    for other in others:
        other.mkdir()
    try:
        refused = stage.cli("machine", "cp", "-r", str(tmp_path / "folder"), "box:/tmp/copied")
        assert b"16 folders are being copied" in refused.stderr, refused
    finally:
        for other in others:
            other.rmdir()
    sent = stage.cli("machine", "cp", "-r", str(tmp_path / "folder"), "box:/tmp/copied")
    assert sent.returncode == 0, sent


# What cuts it off


def test_a_revoked_token_ends_its_streams_and_their_commands(stage: Stage) -> None:
    made = stage.ask("token_create", name="short", role="operator")
    client = Client(stage.daemon.socket, f"http://{stage.daemon.tcp}", made["token"])
    asked = {"machine": "box", "script": "echo ready; sleep 1000", "exec_id": "revoked"}
    duplex = open_duplex(client, "machine_exec", {**asked, "stdin_open": True})
    duplex.sock.settimeout(LONG_S)
    with duplex.sock, duplex.sock.makefile("rb") as frames:
        kind, length = HEADER.unpack(frames.read(HEADER.size))
        assert (kind, frames.read(length)) == (DATA, b"ready\n")
        stage.ask("token_revoke", token_id=made["token_id"])
        assert END not in frames.read()[:1]
    ended = stage.ask("exec_wait", exec_id="revoked", timeout_s=LONG_S)
    assert ended["signal"] == signal.SIGTERM
    with pytest.raises(errors.Unauthenticated):
        open_duplex(client, "machine_exec", asked)
    viewer = stage.ask("token_create", name="looker", role="viewer")["token"]
    with pytest.raises(errors.Denied):
        open_duplex(Client(stage.daemon.socket, token=viewer), "machine_attach", {"machine": "box"})


@pytest.mark.parametrize(
    "said",
    [
        b'{"stream": 1}\n',
        b'{"stream": {"call": "nothing"}}\n{}\n',
        b'{"stream": {"call": "machine_exec"}}\n[]\n',
        b'{"stream": {"call": "machine_exec"}}\n{"machine": "box", "nonsense": 1}\n',
        b'{"stream": {"call": "machine_exec", "token": "mo_wrong"}}\n{}\n',
        b'{"stream": {"call": "exec_attach"}}\n{"exec_id": "none"}\n',
    ],
)
def test_what_is_no_stream_is_refused_in_one_line(stage: Stage, said: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client, client.makefile("rb") as lines:
        client.settimeout(LONG_S)
        client.connect(str(stage.daemon.socket))
        client.sendall(said)
        assert "error" in json.loads(lines.readline())
        assert lines.read() == b""


def test_a_command_goes_on_through_the_death_of_the_daemon(tmp_path: Path) -> None:
    state = tmp_path / "state"
    script = "echo before; read x; i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done"
    with machine_in(state), stage_in(state) as stage:
        follow = f"{script}; exit 4"
        stage.run(script=follow, exec_id="cut", stdin_open=True, wait_s=0.0)
        stage.output("cut", "before")
        words = ("machine", "exec", "-n", "box", "--exec-id", "seen", "--script")
        shown = "echo one; while ! test -e /tmp/go; do sleep 0.1; done; echo two; exit 8"
        with stage.started(*words, shown) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"one\n"
            stage.daemon.kill()
            with stage_in(state) as again:
                again.ask("exec_input", exec_id="cut", data="go\n")
                assert "line 1999" in again.output("cut", "line 1999")
                ended = again.ask("exec_wait", exec_id="cut", timeout_s=LONG_S)
                assert ended["exit_code"] == 4
                lines = ["before", *(f"line {number}" for number in range(2000))]
                assert ended["stdout"].splitlines() == lines
                again.run("touch", "/tmp/go")
                # Whoever stayed with a command sees the rest of it.
                assert (process.stdout.read(), process.wait(LONG_S)) == (b"two\n", 8)
                events = again.ask("event_wait", kinds=["exec.*"], limit=200)["events"]
                told = [(event["subject"], event["kind"]) for event in events]
                for name in ("cut", "seen"):
                    mine = [kind for subject, kind in told if subject == name]
                    assert mine == ["exec.started", "exec.exited"]

"""The command line as people and scripts use it: the real program, and a real daemon."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon, running_daemon
from microvm_orchestrator import places
from microvm_orchestrator.cli import failure

PROGRAM = Path(sys.executable).with_name(places.NAME)
# Longer than anything here takes on a busy machine; only a test that fails waits so long.
PATIENCE_S = 30.0

DIAMOND = """
[[tasks]]
key = "setup"
title = "Set up"
[[tasks]]
key = "build"
depends_on = ["setup"]
[[tasks]]
key = "lint"
depends_on = ["setup"]
[[tasks]]
key = "deploy"
depends_on = ["build", "lint"]
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("cli"), tcp={"listen": "127.0.0.1:0"}) as running:
        yield running


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(places.PREFIX)}
    return {**kept, **more}


def mo(
    at: Daemon | Path, *words: str, told: str = "", **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the program against a daemon."""
    path = at.socket if isinstance(at, Daemon) else at
    return subprocess.run(
        [PROGRAM, *words],
        env=environment(**{places.SOCKET_VARIABLE: str(path), **env}),
        input=told,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def answer(at: Daemon | Path, *words: str, told: str = "") -> Any:
    """Run a command that has to succeed, and read the JSON it prints."""
    ran = mo(at, *words, "--json", told=told)
    assert ran.returncode == failure.OK, ran.stderr
    assert ran.stdout.count("\n") == 1
    return json.loads(ran.stdout)


def claimed(at: Daemon, group: str) -> list[str]:
    """Claim a task of a group: the words that name it and its lease."""
    found = answer(at, "task", "claim", "--group", group)["tasks"][0]
    return [found["task"]["task_id"], "--token", str(found["lease"]["token"])]


@contextmanager
def started(at: Daemon | Path, *words: str) -> Generator[subprocess.Popen[str]]:
    path = at.socket if isinstance(at, Daemon) else at
    process = subprocess.Popen(
        [PROGRAM, *words],
        env=environment(**{places.SOCKET_VARIABLE: str(path)}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        pytest.fail(f"nothing more came: {process.stderr.read()}")
    return line


def get(at: Daemon, target: str) -> bytes:
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(at.socket))
    with closing(connection):
        connection.request("GET", target)
        return connection.getresponse().read()


def submit_diamond(at: Daemon, group: str, folder: Path) -> list[str]:
    file = folder / "diamond.toml"
    file.write_text(DIAMOND)
    found = answer(at, "graph", "submit", str(file), "--group", group)
    return [task["task_id"] for task in found["tasks"]]


def finish(at: Daemon, group: str, tasks: int) -> None:
    for _ in range(tasks):
        assert mo(at, "task", "complete", *claimed(at, group)).returncode == failure.OK


def test_a_graph_is_worked_off_from_the_shell(daemon: Daemon, tmp_path: Path) -> None:
    submit_diamond(daemon, "shell", tmp_path)
    listed = mo(daemon, "group", "tasks", "shell")
    assert "all:build,lint" in listed.stdout
    lease = claimed(daemon, "shell")
    beat = mo(daemon, "task", "heartbeat", *lease, "--fraction", "0.5", "--message", "half way")
    assert beat.returncode == failure.OK
    assert "50% half way" in mo(daemon, "task", "list", "--group", "shell").stdout
    done = mo(daemon, "task", "complete", *lease, "--result", '{"n": 1}')
    assert "unlocked" in done.stdout
    assert "build" in done.stdout
    assert "lint" in done.stdout
    finish(daemon, "shell", 3)
    assert answer(daemon, "task", "claim", "--group", "shell")["verdict"] == "all_done"
    assert answer(daemon, "group", "get", "shell")["state"] == "done"
    assert answer(daemon, "task", "get", "setup", "--group", "shell")["result"] == {"n": 1}
    history = mo(daemon, "task", "history", "setup", "--group", "shell").stdout.splitlines()
    assert [line.split()[2] for line in history] == [
        "task.submitted",
        "task.claimed",
        "task.progress",
        "task.done",
    ]
    assert mo(daemon, "task", "runs", "setup", "--group", "shell").stdout.count("succeeded") == 1
    late = mo(daemon, "task", "fail", *lease)
    assert late.returncode == failure.CONFLICT
    assert "(lease-lost)" in late.stderr


def test_json_is_what_the_api_answers_to_the_byte(daemon: Daemon) -> None:
    answer(daemon, "task", "submit", "Ünï\u202e\x1b", "--key", "bytes", "--group", "json")
    shown = mo(daemon, "task", "get", "bytes", "--group", "json", "--json").stdout
    assert shown.encode() == get(daemon, "/v1/tasks/bytes?group=json") + b"\n"


def test_a_wait_ends_with_how_the_task_ended(daemon: Daemon) -> None:
    def wait(key: str, *more: str) -> int:
        return mo(daemon, "task", "wait", key, "--group", "ends", *more).returncode

    for key in ("good", "bad", "off"):
        answer(daemon, "task", "submit", "--key", key, "--group", "ends")
    assert wait("good", "--timeout-s", "0") == failure.TIMED_OUT
    mo(daemon, "task", "cancel", "off", "--group", "ends")
    with started(daemon, "task", "wait", "good", "--group", "ends") as waiting:
        finish(daemon, "ends", 1)
        assert waiting.wait(PATIENCE_S) == failure.OK
    mo(daemon, "task", "fail", *claimed(daemon, "ends"), "--message", "broken")
    assert wait("bad") == failure.TASK_FAILED
    assert wait("off") == failure.TASK_CANCELLED
    assert wait("none") == failure.NOT_FOUND


def test_what_is_refused_has_the_code_of_its_kind(daemon: Daemon) -> None:
    answer(daemon, "task", "submit", "--key", "taken", "--group", "codes")
    cases: list[tuple[list[str], int, str]] = [
        (["task", "submit", "--key", "taken", "--group", "codes"], 4, "already-exists"),
        (["task", "submit", "--group", "no spaces"], 2, "invalid-input"),
        (["task", "submit", "--description", "@/dev/null", "--key", "k" * 201], 2, "too-large"),
        (["task", "get", "none"], 3, "not-found"),
        (["event", "wait", "--after", "nonsense"], 2, "cursor-invalid"),
        (["worker", "get", "nobody"], 3, "not-found"),
        (["template", "run", "none", "--param", "a=b"], 3, "not-found"),
    ]
    for words, status, code in cases:
        ran = mo(daemon, *words, "--json")
        assert (words, ran.returncode, ran.stdout) == (words, status, "")
        assert ran.stderr.startswith("error: ")
        assert f"({code})" in ran.stderr


def test_watching_off_a_terminal_is_a_line_for_each_change(daemon: Daemon, tmp_path: Path) -> None:
    submit_diamond(daemon, "lines", tmp_path)
    with started(daemon, "task", "watch", "--group", "lines") as watching:
        first = [read_line(watching).split()[:2] for _ in range(4)]
        finish(daemon, "lines", 4)
        told, _ = watching.communicate(timeout=PATIENCE_S)
    assert first == [["ready", "setup"], *(["blocked", key] for key in ("build", "lint", "deploy"))]
    assert watching.returncode == failure.OK
    steps = [(line.split()[2], line.split()[3]) for line in told.splitlines()]
    assert steps[:2] == [("task.claimed", "setup"), ("task.done", "setup")]
    assert steps[-1] == ("task.done", "deploy")
    assert len(steps) == 4 * 2 + 3


def test_watching_as_json_is_an_event_a_line(daemon: Daemon) -> None:
    answer(daemon, "task", "submit", "--key", "one", "--group", "events")
    answer(daemon, "task", "submit", "--key", "two", "--group", "events")
    one = answer(daemon, "task", "get", "one", "--group", "events")["task_id"]
    looked = times_called(daemon, "task_get")
    with started(daemon, "task", "watch", "one", "--group", "events", "--json") as watching:
        deadline = time.monotonic() + PATIENCE_S
        while times_called(daemon, "task_get") == looked:
            assert time.monotonic() < deadline
        mo(daemon, "group", "cancel", "events", "--reason", "enough")
        told, _ = watching.communicate(timeout=PATIENCE_S)
    assert watching.returncode == failure.TASK_CANCELLED
    events = [json.loads(line) for line in told.splitlines()]
    assert [(event["kind"], event["subject"]) for event in events] == [("task.cancelled", one)]
    assert mo(daemon, "task", "watch", "--group", "nothing-here").returncode == failure.NOT_FOUND


def times_called(at: Daemon, call: str) -> float:
    """How often a call was answered so far: how a test knows what a silent program has done."""
    counted = f'requests_total{{call="{call}",outcome="ok",via="rest"}}'
    lines = [line for line in get(at, "/metrics").decode().splitlines() if counted in line]
    return float(lines[0].split()[-1]) if lines else 0.0


def test_watching_on_a_terminal_draws_the_graph_until_it_is_done(
    daemon: Daemon, tmp_path: Path
) -> None:
    submit_diamond(daemon, "drawn", tmp_path)
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [PROGRAM, "task", "watch", "--group", "drawn", "--socket", str(daemon.socket)],
        env=environment(TERM="xterm-256color", COLUMNS="100", LINES="30"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    with process:
        try:
            seen = read_until(ours, b"deploy")
            finish(daemon, "drawn", 4)
            seen += read_until(ours, b"4 done")
            assert process.wait(PATIENCE_S) == failure.OK
            assert b"\x1b[" in seen
            assert b"group " in seen
            for key in (b"setup", b"build", b"lint", b"blocked"):
                assert key in seen
        finally:
            process.kill()
            os.close(ours)


def read_until(handle: int, mark: bytes) -> bytes:
    seen = b""
    while mark not in seen:
        ready, _, _ = select.select([handle], [], [], PATIENCE_S)
        assert ready, f"{mark!r} did not come: {seen!r}"
        seen += os.read(handle, 65_536)
    return seen


def test_following_goes_on_through_a_restart_of_the_daemon(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running_daemon(state) as first:
        path = first.socket
        words = ["event", "follow", "--after", "begin", "--kind", "task.submitted", "--json"]
        answer(first, "task", "submit", "--key", "one")
        with started(first, *words) as following:
            seen = [json.loads(read_line(following))]
            first.kill()
            with running_daemon(state, socket_path=path) as second:
                answer(second, "task", "submit", "--key", "two")
                seen.append(json.loads(read_line(following)))
                following.send_signal(signal.SIGINT)
                _, told = following.communicate(timeout=PATIENCE_S)
    assert [event["body"]["key"] for event in seen] == ["one", "two"]
    assert following.returncode == failure.INTERRUPTED
    assert "waiting for the daemon to come back" in told
    assert "to go on: microvm-orchestrator event follow --after " in told


def test_a_backup_is_put_back_and_what_it_replaces_is_kept(tmp_path: Path) -> None:
    state, backup = tmp_path / "state", tmp_path / "backup.sqlite"
    with running_daemon(state) as running:
        answer(running, "task", "submit", "--key", "before")
        assert answer(running, "backup", "create", str(backup))["path"] == str(backup)
        answer(running, "task", "submit", "--key", "after")
        cursor = answer(running, "event", "wait")["cursor"]
        refused = mo(running, "backup", "restore", str(backup), "--state-dir", str(state))
        assert refused.returncode == failure.UNAVAILABLE
        assert "(already-running)" in refused.stderr
        path = running.socket
        running.kill()
    restore = ["backup", "restore", str(backup), "--state-dir", str(state)]
    told = answer(path, *restore)
    assert keys_of(Path(told["kept"])) == {"before", "after"}
    with running_daemon(state) as running:
        tasks = answer(running, "task", "list")["items"]
        assert [task["key"] for task in tasks] == ["before"]
        assert answer(running, "doctor")["healthy"]
        stale = mo(running, "event", "wait", "--after", cursor)
        assert stale.returncode == failure.NOT_FOUND
        assert "(cursor-expired)" in stale.stderr
        fresh = answer(running, "event", "wait")["cursor"]
    answer(path, *restore)
    with running_daemon(state) as running:
        # The same backup once more is another history all the same.
        assert mo(running, "event", "wait", "--after", fresh).returncode == failure.NOT_FOUND


def keys_of(store: Path) -> set[str]:
    with closing(sqlite3.connect(store)) as connection:
        return {row[0] for row in connection.execute("SELECT key FROM task")}


def test_what_is_no_backup_replaces_nothing(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running_daemon(state) as running:
        answer(running, "task", "submit", "--key", "kept")
        good = Path(answer(running, "backup", "create")["path"])
        path = running.socket
    whole = good.read_bytes()
    bad = tmp_path / "bad"
    other = tmp_path / "other"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE meta (name TEXT, value TEXT)")
    files = {
        "text": b"not a database",
        "half": whole[: len(whole) // 2],
        "spoiled": whole[:8192] + b"\xaa" * 4096 + whole[12_288:],
        "empty": b"",
        "other": other.read_bytes(),
    }
    before = sorted(entry.name for entry in state.iterdir())
    for name, data in files.items():
        bad.write_bytes(data)
        ran = mo(path, "backup", "restore", str(bad), "--state-dir", str(state))
        assert (name, ran.returncode) == (name, failure.INVALID), ran.stderr
    missing = mo(path, "backup", "restore", str(tmp_path / "none"), "--state-dir", str(state))
    assert missing.returncode == failure.INVALID
    assert sorted(entry.name for entry in state.iterdir()) == before
    assert keys_of(state / places.STORE_FILE) == {"kept"}


def test_a_token_opens_the_network_door_as_far_as_its_role(daemon: Daemon, tmp_path: Path) -> None:
    made = answer(daemon, "token", "create", "builder-1", "worker")
    file = tmp_path / "token"
    file.write_text(made["token"])
    there = ["--address", f"http://{daemon.tcp}"]
    who = mo(tmp_path / "none", "whoami", *there, "--token-file", str(file), "--json")
    assert json.loads(who.stdout)["name"] == "builder-1"
    piped = mo(tmp_path / "none", "whoami", *there, "--token-file", "-", told=made["token"])
    assert piped.returncode == failure.OK
    env = {places.TOKEN_VARIABLE: made["token"], places.ADDRESS_VARIABLE: f"http://{daemon.tcp}"}
    # An address in the environment leads there though a socket is named in it too.
    assert "builder-1" in mo(daemon, "whoami", **env).stdout
    denied = mo(daemon, "task", "submit", "x", **env)
    assert denied.returncode == failure.DENIED
    assert "(denied)" in denied.stderr
    assert mo(daemon, "whoami", *there).returncode == failure.DENIED
    assert answer(daemon, "token", "revoke", made["token_id"])["live"] is False
    assert mo(daemon, "whoami", **env).returncode == failure.DENIED


def test_a_template_takes_words_as_the_types_it_declares(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "release.toml"
    file.write_text(
        'group_prefix = "rel"\n'
        '[parameters.version]\ntype = "string"\n[parameters.replicas]\ntype = "integer"\n'
        '[[tasks]]\nkey = "ship"\ntitle = "Ship {{version}}"\n'
        'input = { replicas = { "$param" = "replicas" } }\n'
    )
    assert answer(daemon, "template", "save", str(file), "--name", "release")["version"] == 1
    params = ["release", "--param", "version=1.10", "--param", "replicas=3"]
    shown = mo(daemon, "template", "preview", *params)
    assert "Ship 1.10" in shown.stdout
    run = answer(daemon, "template", "run", *params, "--idempotency-key", "once")
    again = answer(daemon, "template", "run", *params, "--idempotency-key", "once")
    assert run["tasks"] == again["tasks"]
    assert again["replayed"]
    task = answer(daemon, "task", "get", run["tasks"][0]["task_id"])
    assert (task["title"], task["input"]) == ("Ship 1.10", {"replicas": 3})
    assert mo(daemon, "template", "get", "release").returncode == failure.OK
    wrong = mo(daemon, "template", "run", "release", "--param", "replicas=many")
    assert wrong.returncode == failure.INVALID


def test_everything_can_be_shown_to_people(daemon: Daemon) -> None:
    answer(daemon, "task", "submit", "Look", "--key", "look", "--group", "people")
    answer(daemon, "worker", "register", "--worker", "w1", "--capability", "node")
    for words in (
        ["whoami"],
        ["version"],
        ["metrics"],
        ["doctor"],
        ["task", "get", "look", "--group", "people"],
        ["task", "update", "look", "--group", "people", "--priority", "high"],
        ["group", "list"],
        ["group", "report", "people"],
        ["group", "prioritize", "people", "low"],
        ["worker", "list"],
        ["worker", "heartbeat", "--worker", "w1"],
        ["worker", "drain", "w1"],
        ["worker", "remove", "w1"],
        ["event", "wait", "--limit", "3"],
        ["audit", "list", "--action", "task_submit"],
        ["token", "list"],
        ["webhook", "list"],
        ["delivery", "list"],
        ["template", "list"],
        ["group", "cancel", "people"],
        ["group", "retry", "people"],
        ["task", "delete", "look", "--group", "people"],
    ):
        ran = mo(daemon, *words)
        assert (words, ran.returncode) == (words, failure.OK), ran.stderr
        assert ran.stdout or "no " in ran.stderr or ran.stderr == "none\n"
    answer(daemon, "task", "submit", "--group", "given-back")
    back = mo(daemon, "task", "release", *claimed(daemon, "given-back"), "--reason", "busy")
    assert "ready" in back.stdout


def test_settings_are_explained_and_can_be_written_down(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[log]\nlevel = "debug"\n[access]\nuid_roles = { 1000 = "admin" }\n')
    nowhere = tmp_path / "socket"
    words = ["--config", str(file), "--state-dir", str(tmp_path / "s"), "--tcp", "127.0.0.1:0"]
    rows = {row["setting"]: row for row in answer(nowhere, "config", "check", *words)["settings"]}
    assert (rows["log.level"]["value"], rows["log.level"]["source"]) == ("debug", str(file))
    assert rows["tcp.listen"] == {
        "setting": "tcp.listen",
        "value": "127.0.0.1:0",
        "source": "command line",
    }
    assert rows["socket.path"]["source"] == places.SOCKET_VARIABLE
    assert rows["log.format"]["source"] == "default"
    shown = mo(nowhere, "config", "show", *words)
    assert tomllib.loads(shown.stdout)["access"]["uid_roles"] == {"1000": "admin"}
    copy = tmp_path / "copy.toml"
    copy.write_text(shown.stdout)
    assert answer(nowhere, "config", "show", "--config", str(copy)) == answer(
        nowhere, "config", "show", *words
    )
    file.write_text("[log]\nlevle = 1\n")
    wrong = mo(nowhere, "config", "check", "--config", str(file))
    assert wrong.returncode == failure.INVALID
    assert "hint: the nearest is log.level" in wrong.stderr


def test_a_shell_completes_commands_and_what_the_daemon_knows(
    daemon: Daemon, tmp_path: Path
) -> None:
    answer(daemon, "task", "submit", "--key", "compile-it", "--group", "tab-group")
    answer(daemon, "network", "create", "tab-lan")
    script = tmp_path / "completion.bash"
    script.write_text(mo(daemon, "completion", "bash").stdout)
    name = places.NAME

    def complete(*words: str, env: dict[str, str] | None = None) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in (name, *words))
        asked = f"""
            source {script}
            COMP_WORDS=({quoted}); COMP_CWORD={len(words)}
            _microvm_orchestrator_completion {name}
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        ran = subprocess.run(
            ["bash", "--norc", "-c", asked],
            env=environment(
                PATH=f"{PROGRAM.parent}:{os.environ['PATH']}",
                **(env or {places.SOCKET_VARIABLE: str(daemon.socket)}),
            ),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=True,
        )
        assert ran.stderr == ""
        return ran.stdout.split()

    assert complete("temp") == ["template"]
    assert complete("task", "hist") == ["history"]
    assert complete("task", "submit", "--depen") == ["--depends-on"]
    assert complete("task", "list", "--state", "re") == ["ready"]
    assert complete("group", "get", "tab") == ["tab-group"]
    assert complete("network", "get", "tab") == ["tab-lan"]
    assert complete("task", "get", "--group", "tab-group", "comp") == ["compile-it"]
    nobody = {places.SOCKET_VARIABLE: str(tmp_path / "none")}
    assert complete("group", "get", "tab", env=nobody) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_of_each_shell_names_the_program(shell: str, tmp_path: Path) -> None:
    script = mo(tmp_path / "none", "completion", shell)
    assert script.returncode == failure.OK
    assert "_MICROVM_ORCHESTRATOR_COMPLETE=complete_" in script.stdout


def test_the_bridge_is_an_mcp_server(daemon: Daemon) -> None:
    meta: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params: dict[str, Any] = {"name": "whoami", "arguments": {}, "_meta": meta}
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params}
    ran = mo(daemon, "connect", told=json.dumps(request) + "\n")
    assert (ran.returncode, ran.stderr) == (failure.OK, "")
    told = json.loads(ran.stdout)
    assert told["id"] == 7
    assert told["result"]["structuredContent"]["via"] == "mcp"
    assert mo(daemon, "connect", "--help").stdout.startswith("Usage: microvm-orchestrator connect")


def test_serve_becomes_the_daemon_until_it_is_told_to_stop(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    words = ["--state-dir", str(tmp_path / "state"), "--socket", str(path)]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(PATIENCE_S)
        process = subprocess.Popen(
            [PROGRAM, "serve", *words, "--tcp", "127.0.0.1:0", "--log-level", "debug"],
            env=environment(NOTIFY_SOCKET=str(tmp_path / "notify")),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with process:
            try:
                assert b"READY=1" in ear.recv(4096)
                assert answer(path, "whoami")["role"] == "admin"
                second = mo(path, "serve", *words)
                assert second.returncode not in {0, 2}
                assert "another daemon works in" in second.stderr
                process.send_signal(signal.SIGTERM)
                process.communicate(timeout=PATIENCE_S)
                assert process.returncode == failure.OK
            finally:
                process.kill()
    assert mo(path, "whoami").returncode == failure.UNAVAILABLE


def test_a_reader_that_leaves_early_is_no_error_of_ours(daemon: Daemon) -> None:
    with started(daemon, "event", "follow", "--after", "begin") as following:
        read_line(following)
        assert following.stdout is not None
        assert following.stderr is not None
        following.stdout.close()
        answer(daemon, "task", "submit", "--group", "pipe")
        assert following.wait(PATIENCE_S) != failure.OK
        assert "Traceback" not in following.stderr.read()

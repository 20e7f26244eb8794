"""The daemon as systemd and its clients see it: a process, its signals, its sockets."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daemon import running_daemon
from microvm_orchestrator import places
from microvm_orchestrator.daemon import EXIT_CONFIG

if TYPE_CHECKING:
    from collections.abc import Generator

# Longer than anything here takes on a busy machine; only a test that fails waits so long.
PATIENCE_S = 20.0

COMMAND = Path(sys.executable).with_name("microvm-orchestrator")


@dataclass(frozen=True)
class Started:
    """A daemon in the hands of a test that plays systemd."""

    process: subprocess.Popen[bytes]
    ear: socket.socket
    path: Path
    config: Path
    log: Path

    def hear(self, wanted: str) -> list[str]:
        """Return what the daemon says up to and including `wanted`."""
        heard: list[str] = []
        while not heard or heard[-1] != wanted:
            ready, _, _ = select.select([self.ear], [], [], PATIENCE_S)
            assert ready, f"heard only {heard}; the log:\n{self.log.read_text()}"
            heard += self.ear.recv(4096).decode().splitlines()
        return heard

    def end(self) -> int:
        return self.process.wait(PATIENCE_S)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.log.read_text().splitlines()]


@contextmanager
def start(
    tmp_path: Path,
    *,
    settings: str = "",
    env: dict[str, str] | None = None,
    within: tuple[str, ...] = (),
    pass_fds: tuple[int, ...] = (),
) -> Generator[Started]:
    """Start a daemon on `tmp_path`; `within` is a command that starts it in turn."""
    file = tmp_path / "config.toml"
    file.write_text(settings)
    notify = tmp_path / "notify"
    notify.unlink(missing_ok=True)
    given = {key: value for key, value in os.environ.items() if not key.startswith(places.PREFIX)}
    given |= {
        "NOTIFY_SOCKET": str(notify),
        "STATE_DIRECTORY": str(tmp_path / "state"),
        "RUNTIME_DIRECTORY": str(tmp_path),
        **(env or {}),
    }
    log = tmp_path / "log"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear, log.open("wb") as stderr:
        ear.bind(str(notify))
        process = subprocess.Popen(
            [*within, COMMAND, "serve", "--config", file],
            env=given,
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=pass_fds,
        )
        try:
            yield Started(process, ear, tmp_path / "socket", file, log)
        finally:
            process.kill()
            process.wait()


@contextmanager
def running(tmp_path: Path, **given: Any) -> Generator[Started]:
    """Start a daemon, wait until it is ready, and stop it politely in the end."""
    with start(tmp_path, **given) as daemon:
        daemon.hear("READY=1")
        yield daemon
        daemon.process.terminate()
        assert daemon.end() == 0, daemon.log.read_text()


class Client(http.client.HTTPConnection):
    """HTTP over the unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("local", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path)

    def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, Any]]:
        self.send_request(method, path, body, **headers)
        return self.answer()

    def send_request(self, method: str, path: str, body: object = None, **headers: str) -> None:
        headers = {key.replace("_", "-"): value for key, value in headers.items()}
        if body is not None:
            headers = {"content-type": "application/json"} | headers
        self.request(method, path, None if body is None else json.dumps(body), headers)

    def answer(self) -> tuple[int, dict[str, Any]]:
        answer = self.getresponse()
        return answer.status, json.loads(answer.read())


@contextmanager
def client(path: Path) -> Generator[Client]:
    connection = Client(path)
    try:
        yield connection
    finally:
        connection.close()


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE_S)
    connection.connect(str(path))
    return connection


def discover(connection: socket.socket) -> str:
    """Ask an MCP server who it is, over a stream."""
    version: dict[str, Any] = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    question: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "server/discover",
        "params": {"_meta": version},
    }
    connection.sendall(json.dumps(question).encode() + b"\n")
    with connection.makefile("rb") as lines:
        told = json.loads(lines.readline())["result"]["_meta"]
    return told["io.modelcontextprotocol/serverInfo"]["name"]


def test_systemd_hears_of_every_step(tmp_path: Path) -> None:
    with start(tmp_path, env={"WATCHDOG_USEC": "200000"}) as daemon:
        daemon.hear("READY=1")
        assert set(daemon.hear("WATCHDOG=1")) == {"WATCHDOG=1"}
        daemon.hear("WATCHDOG=1")
        daemon.process.send_signal(signal.SIGHUP)
        told = [line for line in daemon.hear("READY=1") if line != "WATCHDOG=1"]
        assert [line.partition("=")[0] for line in told] == ["RELOADING", "MONOTONIC_USEC", "READY"]
        assert int(told[1].partition("=")[2]) > 0
        daemon.process.terminate()
        daemon.hear("STOPPING=1")
        assert daemon.end() == 0
    assert daemon.events()[-1] == "daemon_stopped"
    assert not daemon.path.exists()


def test_the_watchdog_is_meant_for_the_process_it_names(tmp_path: Path) -> None:
    env = {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())}
    with start(tmp_path, env=env) as daemon:
        daemon.hear("READY=1")
        daemon.process.terminate()
        assert daemon.hear("STOPPING=1") == ["STOPPING=1"]
        assert daemon.end() == 0


def test_a_stop_ends_waits_with_a_reason(tmp_path: Path) -> None:
    with start(tmp_path) as daemon, client(daemon.path) as waiting:
        daemon.hear("READY=1")
        waiting.send_request("GET", "/v1/events?after=now&timeout_s=60")
        with client(daemon.path) as other:
            assert other.ask("GET", "/healthz")[0] == 200  # after the wait had begun
        daemon.process.terminate()
        status, told = waiting.answer()
        assert (status, told["code"]) == (503, "stopping")
        assert daemon.end() == 0


def test_a_second_signal_does_not_wait_for_a_request_that_hangs(tmp_path: Path) -> None:
    with start(tmp_path) as daemon, ExitStack() as stack:
        daemon.hear("READY=1")
        hanging = stack.enter_context(connected(daemon.path))
        head = b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        hanging.sendall(head + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n")
        assert hanging.recv(64).startswith(b"HTTP/1.1 100")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.hear("STOPPING=1")
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(PATIENCE_S) == 0
    assert "a second signal came" in daemon.log.read_text()


def test_a_reload_takes_new_limits_and_keeps_the_old_ones_when_they_are_wrong(
    tmp_path: Path,
) -> None:
    task = {"title": "x" * 500}
    with running(tmp_path) as daemon, client(daemon.path) as user:
        assert user.ask("POST", "/v1/tasks", task)[0] == 200
        for settings in ("[limits]\nmax_request_bytes = 100\n", "[limits]\nmax_bytes = 100000\n"):
            daemon.config.write_text(settings)
            daemon.process.send_signal(signal.SIGHUP)
            daemon.hear("READY=1")
            assert user.ask("POST", "/v1/tasks", task)[1]["code"] == "too-large"
    assert daemon.events().count("settings_reloaded") == 1
    assert "reload_failed" in daemon.events()


def test_a_second_daemon_leaves_the_first_one_alone(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        same_state = {"STATE_DIRECTORY": str(tmp_path / "state")}
        same_socket = {"RUNTIME_DIRECTORY": str(tmp_path)}
        for env in (same_state, same_socket):
            with start(elsewhere, env=env) as second:
                assert second.end() == 1
            assert '"code": "already-running"' in second.log.read_text()
        with client(first.path) as user:
            assert user.ask("GET", "/healthz")[0] == 200


def test_settings_that_cannot_work_have_their_own_exit_status(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with start(tmp_path, env={"STATE_DIRECTORY": str(tmp_path / "file")}) as daemon:
        assert daemon.end() == EXIT_CONFIG
    assert "cannot use the state directory" in daemon.log.read_text()


def test_a_killed_daemon_leaves_nothing_in_the_way_of_the_next(tmp_path: Path) -> None:
    with start(tmp_path) as killed:
        killed.hear("READY=1")
        with client(killed.path) as user:
            user.ask("POST", "/v1/tasks", {"title": "kept"})
        killed.process.kill()
        killed.process.wait()
    assert killed.path.exists()
    with running(tmp_path) as daemon, client(daemon.path) as user:
        assert user.ask("GET", "/v1/tasks")[1]["items"][0]["title"] == "kept"


def handing(*sockets: socket.socket) -> dict[str, Any]:
    """Pass sockets as systemd does: from descriptor 3 on, to the process that is named."""
    fds = tuple(each.fileno() for each in sockets)
    become = f"""
import os, sys
for place, fd in enumerate({fds}, start=3):
    os.dup2(fd, place)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[1], sys.argv[1:])
"""
    return {
        "env": {"LISTEN_FDS": str(len(fds))},
        "within": (sys.executable, "-c", become),
        "pass_fds": fds,
    }


def test_systemd_hands_over_sockets_on_which_clients_wait_already(tmp_path: Path) -> None:
    path = tmp_path / "handed"
    with ExitStack() as stack:
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(path))
        network = stack.enter_context(socket.socket(socket.AF_INET))
        network.bind(("127.0.0.1", 0))
        for each in (local, network):
            each.listen()
        handed = handing(local, network)
        early = stack.enter_context(client(path))
        early.send_request("GET", "/healthz")
        with running(tmp_path, **handed) as daemon:
            assert early.answer()[0] == 200
            assert not daemon.path.exists()
            port = network.getsockname()[1]
            remote = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
            remote.request("GET", "/v1/whoami")
            assert remote.getresponse().status == 401
            remote.close()
        assert path.exists()
        between = stack.enter_context(client(path))
        between.send_request("GET", "/healthz")
        with running(tmp_path, **handed):
            assert between.answer()[0] == 200


def test_a_descriptor_that_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    one, other = socket.socketpair()
    with one, other, start(tmp_path, **handing(one)) as daemon:
        assert daemon.end() == EXIT_CONFIG
    assert "no listening socket" in daemon.log.read_text()


def test_a_thousand_silent_connections_shut_nobody_out(tmp_path: Path) -> None:
    settings = "[limits]\nmax_connections = 300\n"
    few = ("sh", "-c", 'ulimit -S -n 100; exec "$@"', "sh")
    with running(tmp_path, settings=settings, within=few) as daemon, ExitStack() as stack:
        for _ in range(1000):
            stack.enter_context(connected(daemon.path))
        with client(daemon.path) as user:
            assert user.ask("GET", "/healthz")[0] == 200
            assert user.ask("POST", "/v1/tasks", {"title": "a"})[0] == 200
        with connected(daemon.path) as stream:
            assert discover(stream) == "microvm-orchestrator"
        assert "accept_failed" not in daemon.events()


def test_an_mcp_client_that_is_there_first_is_answered(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        with connected(daemon.path) as stream:
            assert discover(stream) == "microvm-orchestrator"
        with connected(daemon.path) as stream:
            stream.sendall(b'{"connect":{"profile":"orchestrator-server"}}\n')
            assert discover(stream) != "microvm-orchestrator"


def test_a_page_of_somebody_else_changes_nothing(tmp_path: Path) -> None:
    with running_daemon(tmp_path, tcp={"listen": "127.0.0.1:0"}) as daemon:
        assert daemon.tcp is not None
        with client(daemon.socket) as user:
            asked = {"name": "page", "role": "operator"}
            token = user.ask("POST", "/v1/tokens", asked)[1]["token"]
            right = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            for status, headers in (
                (421, right | {"host": "evil.example"}),
                (403, right | {"origin": "http://evil.example", "content-type": "text/plain"}),
                (415, right | {"content-type": "text/plain"}),
                (401, {"content-type": "application/json"}),
            ):
                assert posted(daemon.tcp, "/v1/tasks", headers) == status
                assert posted(daemon.tcp, "/mcp", headers) == status
            assert user.ask("GET", "/v1/tasks")[1]["items"] == []
            assert posted(daemon.tcp, "/v1/tasks", right) == 200


def posted(address: str, path: str, headers: dict[str, str]) -> int:
    remote = http.client.HTTPConnection(address, timeout=PATIENCE_S)
    try:
        remote.request("POST", path, b'{"title": "forged"}', headers)
        return remote.getresponse().status
    finally:
        remote.close()

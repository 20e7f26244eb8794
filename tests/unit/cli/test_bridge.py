from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from microvm_orchestrator.cli import failure

# Longer than anything here takes on a busy machine; only a test that fails waits so long.
PATIENCE_S = 20.0
MAIN = "import sys; from microvm_orchestrator.cli.main import main; sys.exit(main())"


class Daemon:
    """The daemon's end, played by the test: a socket that can be closed and opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listening: socket.socket | None = None
        self._connection: socket.socket | None = None
        self._lines: Any = None

    def listen(self) -> None:
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(str(self.path))
        self._listening.listen()
        self._listening.settimeout(PATIENCE_S)

    def accept(self) -> None:
        assert self._listening is not None
        self._connection, _ = self._listening.accept()
        self._connection.settimeout(PATIENCE_S)
        self._lines = self._connection.makefile("rb")

    def hear(self) -> dict[str, Any]:
        line = self._lines.readline()
        assert line, "the bridge hung up"
        return json.loads(line)

    def hear_some(self) -> bytes:
        return self._lines.read(1000)

    def heard_the_end(self) -> bool:
        return self._lines.read() == b""

    def say(self, message: dict[str, Any]) -> None:
        self.say_raw(json.dumps(message).encode() + b"\n")

    def say_raw(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    def hang_up(self) -> None:
        if self._connection is not None:
            self._lines.close()
            self._connection.close()
            self._connection = None

    def stop(self) -> None:
        # First nobody is let in: one who waits to be let in would be hung up on too.
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            self.path.unlink()
        self.hang_up()


@dataclass(frozen=True)
class Bridge:
    """The client's end: a process that speaks lines."""

    process: subprocess.Popen[bytes]

    def say(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message).encode() + b"\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the bridge said nothing more"
        return json.loads(line)

    def end(self) -> int:
        """Close its input, and wait for it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE_S)

    @property
    def complaint(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()


@contextmanager
def played(tmp_path: Path) -> Generator[Daemon]:
    daemon = Daemon(tmp_path / "socket")
    try:
        yield daemon
    finally:
        daemon.stop()


@contextmanager
def bridge(path: Path, *words: str, **env: str) -> Generator[Bridge]:
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "connect", "--socket", str(path), *words],
        env={**os.environ, **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield Bridge(process)
        finally:
            process.kill()


def request(number: int, method: str = "tools/call", **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": method, "params": params}


def answer(number: int | str, **result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": result}


def test_lines_go_both_ways_and_the_end_of_one_side_is_told_to_the_other(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            client.say(request(1, name="task_get"))
            assert daemon.hear() == request(1, name="task_get")
            daemon.say(answer(1, state="ready"))
            assert client.hear() == answer(1, state="ready")
            client.say(request(2))
            assert client.process.stdin is not None
            client.process.stdin.close()
            assert daemon.hear() == request(2)
            assert daemon.heard_the_end()
            daemon.say(answer(2, last="word"))
            assert client.hear() == answer(2, last="word")
            daemon.hang_up()
            assert client.process.wait(PATIENCE_S) == failure.OK
            assert client.complaint == ""


def test_the_preface_says_profile_and_token_first(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        token = tmp_path / "token"
        token.write_text("mo_tok_1_abc\n")
        words = ("--profile", "vmcluster", f"--token-file={token}")
        with bridge(daemon.path, *words) as client:
            daemon.accept()
            client.say(request(1))
            assert daemon.hear() == {"connect": {"profile": "vmcluster", "token": "mo_tok_1_abc"}}
            assert daemon.hear() == request(1)
            daemon.say(answer(1))
            client.hear()
            daemon.hang_up()
            daemon.accept()  # and again to the next daemon
            assert daemon.hear() == {"connect": {"profile": "vmcluster", "token": "mo_tok_1_abc"}}


def test_large_messages_pass_both_ways_at_once(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            text = "ä" * 1_500_000

            def say_both() -> None:
                client.say(request(1, text=text))
                client.say(request(2, text=text))

            # More than fits in between: the client is held up until the daemon reads.
            saying = threading.Thread(target=say_both)
            saying.start()
            assert daemon.hear()["params"]["text"] == text
            daemon.say_raw((json.dumps(answer(1, text=text)) + "\n").encode()[:1_000_000])
            daemon.say_raw((json.dumps(answer(1, text=text)) + "\n").encode()[1_000_000:])
            assert daemon.hear()["params"]["text"] == text
            assert client.hear()["result"]["text"] == text
            saying.join(PATIENCE_S)


def test_a_restart_of_the_daemon_answers_what_was_asked_and_repeats_nothing(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            for number in (1, 2, 3):
                client.say(request(number))
                daemon.hear()
            client.say({"jsonrpc": "2.0", "method": "notifications/cancelled"})
            daemon.hear()
            daemon.say(answer(2))
            assert client.hear() == answer(2)
            daemon.say_raw(b'{"jsonrpc": "2.0", "id": 1, "res')
            daemon.stop()
            lost = [client.hear(), client.hear()]
            assert [message["id"] for message in lost] == [1, 3]
            for message in lost:
                assert "unknown-outcome" in message["error"]["message"]
            client.say(request(4))  # while nobody is there
            daemon.listen()
            daemon.accept()
            assert daemon.hear() == request(4)
            daemon.say(answer(4))
            assert client.hear() == answer(4)


def test_a_request_that_was_only_half_sent_is_not_repeated(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            client.say(request(1, text="x" * 4_000_000))
            client.say(request(2))
            assert daemon.hear_some()
            daemon.stop()
            assert client.hear()["error"]["message"].startswith("unknown-outcome")
            daemon.listen()
            daemon.accept()
            assert daemon.hear() == request(2)


def test_a_client_of_the_older_eras_hears_that_its_daemon_is_gone(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            client.say(request(0, "initialize", protocolVersion="2025-11-25"))
            daemon.hear()
            daemon.say(answer(0))
            client.hear()
            client.say(request(1))
            daemon.hear()
            daemon.hang_up()
            assert client.hear()["id"] == 1
            assert client.process.wait(PATIENCE_S) == failure.UNAVAILABLE
            assert "the daemon hung up" in client.complaint


def test_a_connection_that_is_refused_is_not_made_again(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path, MICROVM_ORCHESTRATOR_TOKEN="mo_bad") as client:
            daemon.accept()
            assert daemon.hear() == {"connect": {"token": "mo_bad"}}
            refusal = {"code": -32600, "message": "unauthenticated: the token is not valid"}
            daemon.say({"jsonrpc": "2.0", "id": None, "error": refusal})
            daemon.hang_up()
            assert client.hear()["error"] == refusal
            assert client.process.wait(PATIENCE_S) == failure.DENIED
            assert "the token is not valid" in client.complaint


def test_without_a_daemon_it_says_so_and_ends(tmp_path: Path) -> None:
    with bridge(tmp_path / "none") as client:
        assert client.process.wait(PATIENCE_S) == failure.UNAVAILABLE
        assert "microvm-orchestrator serve" in client.complaint
    with bridge(tmp_path / "none", "--wait", "soon") as client:
        assert client.process.wait(PATIENCE_S) == failure.INVALID
    with bridge(tmp_path / "none", "--token-file", "-") as client:
        assert client.process.wait(PATIENCE_S) == failure.INVALID


def test_it_waits_for_the_daemon_as_long_as_it_is_told(tmp_path: Path) -> None:
    with played(tmp_path) as daemon, bridge(daemon.path, "--wait", "60") as client:
        client.say(request(1))
        daemon.listen()
        daemon.accept()
        assert daemon.hear() == request(1)


def test_it_ends_with_its_client_though_the_daemon_is_away(tmp_path: Path) -> None:
    with bridge(tmp_path / "none", "--wait", "60") as client:
        assert client.end() == failure.OK


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            client.say(request(1))
            daemon.hear()
            client.process.send_signal(number)
            assert client.process.wait(PATIENCE_S) == -number
            assert client.complaint == ""
            assert daemon.heard_the_end()


def test_a_client_that_reads_no_more_ends_it_quietly(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            assert client.process.stdout is not None
            client.process.stdout.close()
            daemon.say(answer(1))
            assert client.process.wait(PATIENCE_S) == failure.OK
            assert client.complaint == ""


def test_lines_that_are_no_json_are_the_daemons_to_judge(tmp_path: Path) -> None:
    with played(tmp_path) as daemon:
        daemon.listen()
        with bridge(daemon.path) as client:
            daemon.accept()
            assert client.process.stdin is not None
            client.process.stdin.write(
                b'"text"\n[1, {"id": 5, "method": "m"}]\n{"id": 6, "method": "m"}'
            )
            client.process.stdin.close()
            assert daemon.hear() == "text"
            assert daemon.hear() == [1, {"id": 5, "method": "m"}]
            assert daemon.hear() == {"id": 6, "method": "m"}
            daemon.say_raw(b"\xff\n")
            assert client.process.stdout is not None
            assert client.process.stdout.readline() == b"\xff\n"
            daemon.hang_up()
            assert {client.hear()["id"], client.hear()["id"]} == {5, 6}
            assert client.process.wait(PATIENCE_S) == failure.OK

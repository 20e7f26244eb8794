from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from answering import Asked, answering
from commands import run
from microvm_orchestrator import errors
from microvm_orchestrator.cli import address, failure
from microvm_orchestrator.cli.client import Client

PATIENCE_S = 10.0
NOBODY = 65_534


@contextmanager
def scripted(path: Path, script: Callable[[socket.socket], None]) -> Generator[list[bytes]]:
    """Let `script` have every connection, one after another; gives what the requests began with."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        listening.settimeout(PATIENCE_S)

        def serve() -> None:
            while True:
                connection, _ = listening.accept()
                with connection:
                    connection.settimeout(PATIENCE_S)
                    first = connection.recv(65_536)
                    if first == b"end":
                        return
                    heard.append(first)
                    script(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield heard
        finally:
            with socket.socket(socket.AF_UNIX) as last:
                last.connect(str(path))
                last.sendall(b"end")
            thread.join()


def hang_up(connection: socket.socket) -> None:
    """Say nothing."""


def test_a_change_whose_answer_was_lost_has_an_unknown_outcome_and_is_sent_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    with scripted(path, hang_up) as heard:
        assert run(["task", "submit", "x", "--socket", str(path)]) == failure.UNKNOWN_OUTCOME
        assert len(heard) == 1
    told = capsys.readouterr().err
    assert "unknown-outcome" in told
    assert "hint: look before you repeat it: `microvm-orchestrator task get`" in told


def test_a_question_whose_answer_was_lost_is_only_unanswered(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with scripted(path, hang_up) as heard:
        assert run(["task", "get", "x", "--socket", str(path)]) == failure.UNAVAILABLE
        words = ["template", "preview", "x", "--socket", str(path)]
        assert run(words) == failure.UNAVAILABLE
        assert len(heard) == 2


@pytest.mark.parametrize(
    "half",
    [b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{", b"HTTP/1.1 2", b"SSH-2.0-OpenSSH_9.2\r\n"],
)
def test_half_an_answer_is_none(tmp_path: Path, half: bytes) -> None:
    path = tmp_path / "socket"
    with scripted(path, lambda connection: connection.sendall(half)):
        with pytest.raises(errors.UnknownOutcome):
            Client(path).call("task_retry", {"task_id": "x"})
        with pytest.raises(errors.Unavailable):
            Client(path).call("task_get", {"task_id": "x"})


def test_an_answer_that_does_not_come_in_time_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    gone = threading.Event()

    def say_nothing(_: socket.socket) -> None:
        gone.wait(PATIENCE_S)

    with scripted(path, say_nothing):
        with pytest.raises(errors.UnknownOutcome, match="in time"):
            Client(path, answer_timeout_s=0.05).call("task_claim", {"wait_s": 0.05})
        gone.set()


def test_a_large_request_that_is_refused_half_way_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    body = b'{"code": "too-large", "detail": "the body has more than 5 bytes", "status": 413}'
    answer = b"HTTP/1.1 413 X\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    with (
        scripted(path, lambda connection: connection.sendall(answer)),
        pytest.raises(errors.TooLarge, match="5 bytes"),
    ):
        Client(path).call("task_submit", {"description": "x" * 10_000_000})


def test_what_is_no_answer_of_a_daemon_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>"
    with (
        scripted(path, lambda connection: connection.sendall(answer)),
        pytest.raises(errors.OrchestratorError, match="something else than a JSON object"),
    ):
        Client(path).call("whoami", {})


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "not-found", errors.NotFound),
        (404, "cursor-expired", errors.CursorExpired),
        (409, "lease-lost", errors.LeaseLost),
        (409, "of-a-later-release", errors.Conflict),
        (503, "of-a-later-release", errors.Unavailable),
        (405, "method-not-allowed", errors.InvalidInput),
        (503, "command-failed", errors.CommandFailed),
        (418, "teapot", errors.OrchestratorError),
    ],
)
def test_a_refusal_keeps_its_code_and_comes_back_as_its_kind(
    tmp_path: Path, status: int, code: str, kind: type[errors.OrchestratorError]
) -> None:
    problem: dict[str, Any] = {"code": code, "detail": "why", "hint": "next", "status": status}
    with (
        answering(tmp_path / "socket", lambda _: (status, problem)) as here,
        pytest.raises(kind) as caught,
    ):
        Client(here.socket).call("whoami", {})
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert (caught.value.message, caught.value.hint) == ("why", "next")


def test_a_socket_that_leads_nowhere_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dead, file = tmp_path / "dead", tmp_path / "file"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(dead))
    file.touch()
    cases = {
        str(tmp_path / "none"): (failure.UNAVAILABLE, "there is no socket"),
        str(dead): (failure.UNAVAILABLE, "nobody listens on"),
        str(file): (failure.UNAVAILABLE, "nobody listens on"),
        str(tmp_path): (failure.UNAVAILABLE, "nobody listens on"),
        str(file / "x"): (failure.INVALID, "no socket to connect to"),
        "x" * 200: (failure.INVALID, "path too long"),
    }
    for path, (status, why) in cases.items():
        assert (path, run(["whoami", "--socket", path])) == (path, status)
        told = capsys.readouterr().err
        assert why in told
        assert status == failure.INVALID or "systemctl status microvm-orchestrator" in told


def test_a_socket_that_is_not_for_us_is_denied(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0)
        child = os.fork()
        if not child:
            if os.geteuid() == 0:
                os.setuid(NOBODY)  # nothing is forbidden to root
            os._exit(run(["whoami", "--socket", str(path)]))
        _, ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended) == failure.DENIED
    assert "you may not open" in (told := capfd.readouterr().err)
    assert "ls -l" in told


def test_a_token_comes_from_a_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("mo_tok_1_abc\n")
    env = {"MICROVM_ORCHESTRATOR_TOKEN": "mo_env", "MICROVM_ORCHESTRATOR_TOKEN_FILE": str(file)}
    assert address.find_token(env, str(file)) == "mo_tok_1_abc"
    assert address.find_token(env, None) == "mo_env"
    del env["MICROVM_ORCHESTRATOR_TOKEN"]
    assert address.find_token(env, None) == "mo_tok_1_abc"
    assert address.find_token({}, None) is None


@pytest.mark.parametrize("text", ["", "two words", "evil\r\nX-Admin: yes", "mo_ä", "a\x00b"])
def test_what_cannot_be_a_token_is_not_sent(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(errors.InvalidInput, match="no token in"):
        address.find_token({}, str(file))


def test_the_token_is_shown_to_the_daemon(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("mo_tok_1_abc\n")
    with answering(tmp_path / "socket") as here:
        run(["whoami", "--socket", str(here.socket), "--token-file", str(file)])
        assert here.asked[0].headers["authorization"] == "Bearer mo_tok_1_abc"


@pytest.mark.parametrize(
    "words",
    [
        ["task", "get", "a/b"],
        ["task", "get", ""],
        ["task", "get", ".."],
        ["task", "get", "\udcff"],
        ["task", "list", "--text", "\udcff"],
        ["task", "submit", "--input", '{"a": NaN}'],
        ["task", "submit", "--label", "team"],
        ["task", "submit", "--priority", "soon"],
        ["graph", "submit", "no-such-file"],
        ["whoami", "--address", "http://127.0.0.1:1"],
        ["token", "create", "w", "viewer", "--scope-label", "team"],
    ],
)
def test_what_cannot_be_asked_is_invalid_and_asks_nothing(tmp_path: Path, words: list[str]) -> None:
    with answering(tmp_path / "socket") as here:
        assert run([*words, "--socket", str(here.socket)]) == failure.INVALID
        assert here.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:70",
        "ftp://x",
        "http://",
        "http://x:y",
        "http://x/v1",
        "http://x?a=b",
        "http://[::1",
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert run(["whoami", "--address", url]) == failure.INVALID


def test_an_address_where_nobody_listens_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert run(["whoami", "--address", f"http://127.0.0.1:{port}"]) == failure.UNAVAILABLE


def test_an_odd_key_stands_in_the_path_as_one_segment(tmp_path: Path) -> None:
    with answering(tmp_path / "socket") as here:
        run(["task", "get", "a b?c#d%2F&e=ä", "--socket", str(here.socket)])
        assert here.asked[0].target == "/v1/tasks/a%20b%3Fc%23d%252F%26e%3D%C3%A4"


def test_a_question_goes_on_through_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    times: list[Asked] = []

    def answer(asked: Asked) -> tuple[int, dict[str, Any]]:
        times.append(asked)
        if len(times) == 1:
            return 503, {"code": "stopping", "detail": "the daemon stops", "status": 503}
        return 200, {"events": []}

    with answering(path, answer) as here:
        assert Client(here.socket).call_through_restarts("event_wait", {}).value == {"events": []}
    assert len(times) == 2


def test_a_store_that_is_damaged_is_not_asked_again(tmp_path: Path) -> None:
    problem: dict[str, Any] = {"code": "store-corrupt", "detail": "damaged", "status": 503}
    with (
        answering(tmp_path / "socket", lambda _: (503, problem)) as here,
        pytest.raises(errors.StoreCorrupt),
    ):
        Client(here.socket).call_through_restarts("event_wait", {})
    assert len(here.asked) == 1

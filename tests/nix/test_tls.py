"""TLS as the unit that Nix rendered ends it: a client of the network, and the daemon behind it."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from daemon import COMMAND, Daemon, running_daemon

UNIT = Path(__file__).with_name("rendered") / "microvm-orchestrator-tls.service"
SOCAT = shutil.which("socat")
OPENSSL = shutil.which("openssl")
HOST = "vms.example.org"
SOON_S = 30.0

pytestmark = pytest.mark.skipif(
    SOCAT is None or OPENSSL is None, reason="this host has no socat, or no openssl"
)


@contextmanager
def ended_tls(daemon: Daemon, folder: Path) -> Generator[int]:
    """Run what the unit starts, in front of a daemon; give its port."""
    assert SOCAT
    assert OPENSSL
    assert daemon.tcp
    key, certificate = folder / "key", folder / "certificate"
    words = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}")
    files = ("-keyout", key, "-out", certificate)
    subprocess.run([OPENSSL, *words, *names, *files], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    [start] = re.findall(r"^ExecStart=(.*)$", UNIT.read_text(), re.MULTILINE)
    _, front, back = start.split(" ")
    for said, instead in {
        "OPENSSL-LISTEN:7070": f"OPENSSL-LISTEN:{port}",
        "bind=192.0.2.7": "bind=127.0.0.1",
        "%d": str(folder),
    }.items():
        assert said in front
        front = front.replace(said, instead)
    assert back == "TCP4:127.0.0.1:7071"
    with subprocess.Popen([SOCAT, front, f"TCP4:{daemon.tcp}"]) as process:
        try:
            deadline = time.monotonic() + SOON_S
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)  # socat tells nobody when it listens
            yield port
        finally:
            process.terminate()


def asked(port: int, folder: Path, token: str | None, host: str = HOST) -> tuple[int, str]:
    """Ask who one is over TLS, as a client that checks the certificate."""
    context = ssl.create_default_context(cafile=folder / "certificate")
    with (
        socket.create_connection(("127.0.0.1", port), SOON_S) as plain,
        context.wrap_socket(plain, server_hostname=HOST) as wrapped,
    ):
        connection = http.client.HTTPConnection(host)
        connection.sock = wrapped
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        connection.request("GET", "/v1/whoami", headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_a_client_with_a_token_is_served_over_tls_and_nobody_else(tmp_path: Path) -> None:
    tcp = {"listen": "127.0.0.1:0", "allowed_hosts": [HOST]}
    with running_daemon(tmp_path / "s", tcp=tcp) as daemon:
        made = subprocess.run(
            [COMMAND, "token", "create", "builder", "worker", "--json", "--socket", daemon.socket],
            capture_output=True,
            check=True,
            text=True,
        )
        token = json.loads(made.stdout)["token"]
        with ended_tls(daemon, tmp_path) as port:
            status, said = asked(port, tmp_path, token)
            assert (status, json.loads(said)["name"]) == (200, "builder")
            assert asked(port, tmp_path, None)[0] == 401
            assert asked(port, tmp_path, "not-one")[0] == 401
            # Of what is not asked for by its name nothing is told.
            assert asked(port, tmp_path, token, "other.example.org")[0] >= 400

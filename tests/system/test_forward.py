"""Ports of a real guest on the host, services of the host in it; no network device, any restart."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import ByteStream, SocketStream

from daemon import Daemon, running_daemon
from machines import CACHE, LONG_S, guest_image
from microvm_orchestrator.cli.routes import ROUTES

BULK = 50 << 20
# A server that answers every request with the file of its name, and tells its requests.
SERVER = "mkdir -p /srv/web && cd /srv/web && echo hello >index && python3 -m http.server 8000"


async def ask(daemon: Daemon, call: str, /, **arguments: Any) -> dict[str, Any]:
    """Make a call over the daemon's socket."""
    route = ROUTES[call]
    path = route.path.format(**arguments)
    body = {name: value for name, value in arguments.items() if f"{{{name}}}" not in route.path}
    content = json.dumps(body).encode() if route.has_body else b""
    head = (
        f"{route.method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    async with await anyio.connect_unix(daemon.socket) as stream:
        answer = await exchange(stream, head.encode() + content)
    status, _, rest = answer.partition(b"\r\n\r\n")
    assert b" 200 " in status.splitlines()[0], answer
    value: dict[str, Any] = json.loads(rest)
    return value


async def exchange(stream: ByteStream, request: bytes) -> bytes:
    await stream.send(request)
    return b"".join([data async for data in stream])


async def done(daemon: Daemon, call: str, **arguments: Any) -> dict[str, Any]:
    operation = await ask(daemon, call, wait_s=LONG_S, **arguments)
    assert operation["state"] == "succeeded", operation
    result: dict[str, Any] = operation["result"]
    return result


async def said(daemon: Daemon, script: str) -> str:
    ran = await ask(daemon, "machine_exec", machine="box", script=script, wait_s=LONG_S)
    assert ran["exit_code"] == 0, ran
    return str(ran["stdout"])


async def fetched(port: int, path: str) -> bytes:
    """Get a file from the guest's server; it may still be starting."""
    while True:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            try:
                answer = await exchange(stream, f"GET /{path} HTTP/1.0\r\n\r\n".encode())
            except anyio.BrokenResourceError:
                answer = b""
        if answer:
            return answer.partition(b"\r\n\r\n")[2]
        await anyio.sleep(0.1)  # nobody tells when a server in a guest listens


async def until_active(daemon: Daemon) -> list[dict[str, Any]]:
    while True:
        items: list[dict[str, Any]] = (await ask(daemon, "forward_list"))["items"]
        if all(item["state"] == "active" for item in items):
            return items
        await anyio.sleep(0.1)  # an adopted guest answers when it likes


async def serving(
    serve: Callable[[SocketStream], Awaitable[None]], group: anyio.abc.TaskGroup
) -> int:
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")

    async def run() -> None:
        async with listener:
            await listener.serve(serve)

    group.start_soon(run)
    return int(listener.extra(anyio.abc.SocketAttribute.local_port))  # noqa: S610  # no query of Django


async def shout(stream: SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data.upper())


def giving(content: bytes) -> Callable[[SocketStream], Awaitable[None]]:
    async def give(stream: SocketStream) -> None:
        async with stream:
            await stream.send(content)

    return give


CLIENT = """python3 -c '
import socket
s = socket.create_connection(("127.0.0.1", 5000))
s.sendall(b"from the guest")
s.shutdown(socket.SHUT_WR)
print(s.makefile().read())
'"""


@pytest.mark.long
async def test_ports_lead_both_ways_before_and_after_the_daemon_was_killed(tmp_path: Path) -> None:
    await guest_image()
    (tmp_path / "images").symlink_to(CACHE / "images")
    content = os.urandom(BULK)
    with anyio.fail_after(5 * LONG_S):
        async with anyio.create_task_group() as group:
            service = await serving(shout, group)
            with running_daemon(tmp_path) as daemon:
                await ask(daemon, "machine_define", name="box", memory_mib=384)
                before = await ask(
                    daemon,
                    "forward_add",
                    machine="box",
                    guest="5000",
                    host=str(service),
                    direction="to_host",
                )
                assert (before["state"], before["connections"]) == ("waiting", 0)
                await done(daemon, "machine_start", machine="box")
                into = await ask(daemon, "forward_add", machine="box", guest="8000")
                port = int(into["host"].rpartition(":")[2])
                started = await ask(
                    daemon, "machine_exec", machine="box", script=SERVER, wait_s=0, timeout_s=3600
                )
                assert started["state"] == "running"
                assert await said(daemon, "ls /sys/class/net") == "lo\n"
                await check(daemon, port)
                # As much as no buffer on the way holds, in both directions.
                digest = hashlib.sha256(content).hexdigest()
                script = f"head -c {BULK} /dev/urandom >/srv/web/bulk; sha256sum </srv/web/bulk"
                expected = (await said(daemon, script)).split()[0]
                assert hashlib.sha256(await fetched(port, "bulk")).hexdigest() == expected
                sink = await serving(giving(content), group)
                bulk = await ask(
                    daemon,
                    "forward_add",
                    machine="box",
                    guest="5001",
                    host=str(sink),
                    direction="to_host",
                )
                script = "python3 -c 'import hashlib, socket; f = socket.create_connection("
                script += '("127.0.0.1", 5001)).makefile("rb"); '
                script += 'print(hashlib.file_digest(f, "sha256").hexdigest())\''
                assert (await said(daemon, script)).split() == [digest]
                await ask(daemon, "forward_remove", forward_id=bulk["forward_id"])
                daemon.kill()
            with running_daemon(tmp_path) as daemon:
                items = await until_active(daemon)
                assert [item["host"] for item in items] == [f"127.0.0.1:{service}", into["host"]]
                await check(daemon, port)
                # Of a machine that is stopped they wait; with it they go.
                await done(daemon, "machine_stop", machine="box")
                states = [each["state"] for each in (await ask(daemon, "forward_list"))["items"]]
                assert states == ["waiting", "waiting"]
                await done(daemon, "machine_start", machine="box")
                await until_active(daemon)
                assert "FROM THE GUEST" in await said(daemon, CLIENT)
                await ask(daemon, "machine_kill", machine="box")
                await ask(daemon, "machine_delete", machine="box")
                assert (await ask(daemon, "forward_list"))["items"] == []
                async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port):
                    pass  # nobody holds it any more
            group.cancel_scope.cancel()


async def check(daemon: Daemon, port: int) -> None:
    assert await fetched(port, "index") == b"hello\n"
    assert "FROM THE GUEST" in await said(daemon, CLIENT)

from __future__ import annotations

import json
import os
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from anyio.streams.buffered import BufferedByteStream

from serving import Served, served

if TYPE_CHECKING:
    from pathlib import Path


async def say(here: Served, data: bytes) -> BufferedByteStream:
    """Open a connection and begin it with these bytes."""
    stream = BufferedByteStream(await anyio.connect_unix(here.path))
    await stream.send(data)
    return stream


async def line(stream: BufferedByteStream) -> bytes:
    with anyio.fail_after(5):
        return await stream.receive_until(b"\n", 65_536)


async def make_token(here: Served, **given: object) -> dict[str, Any]:
    answer = await here.http.post("/v1/tokens", json={"name": "ann", "role": "worker", **given})
    return answer.json()


def bearer(token: dict[str, Any]) -> dict[str, str]:
    return {"authorization": f"Bearer {token['token']}"}


async def test_the_first_byte_chooses_the_protocol(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        lines = await say(here, b'{"jsonrpc": "2.0"}\n')
        async with lines:
            assert await line(lines) == f"uid:{os.geteuid()} admin ".encode()
            assert await line(lines) == b'{"jsonrpc": "2.0"}'
        request = b"GET /v1/whoami HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        web = await say(here, request)
        async with web:
            assert await line(web) == b"HTTP/1.1 200 OK\r"


async def test_a_request_that_comes_byte_by_byte_is_served(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        lines = await say(here, b"{")
        async with lines:
            for byte in b'"connect": {"profile": "p"}}\n{"id": 1}\n':
                await lines.send(bytes([byte]))
            assert (await line(lines)).endswith(b" p")
            assert await line(lines) == b'{"id": 1}'


async def test_a_preface_names_a_profile_with_its_settings_and_a_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = await make_token(here)
        settings = {"DEFAULT_CPU": "1"}
        wish = {"profile": "vmcluster", "token": token["token"], "settings": settings}
        preface = {"connect": wish}
        lines = await say(here, json.dumps(preface, separators=(",", ":")).encode() + b"\nrest\n")
        async with lines:
            assert await line(lines) == b"ann worker vmcluster DEFAULT_CPU=1"
            assert await line(lines) == b"rest"


@pytest.mark.parametrize(
    ("preface", "code"),
    [
        (b'{"connect":{"token":"no-such-token"}}\n', "unauthenticated"),
        (b'{"connect":{"token":7}}\n', "invalid-input"),
        (b'{"connect":{"colour":"red"}}\n', "invalid-input"),
        (b'{"connect":[]}\n', "invalid-input"),
        (b'{"connect":' + b" " * 20_000, "invalid-input"),
        (b'{"connect":{"profile":"a","profile":"b"}}\n', "invalid-input"),
        (b'{"connect":{"settings":{"a b":"1"}}}\n', "invalid-input"),
    ],
)
async def test_a_bad_preface_is_answered_by_one_line_and_the_end(
    tmp_path: Path, preface: bytes, code: str
) -> None:
    async with served(tmp_path) as here:
        lines = await say(here, preface)
        async with lines:
            told = json.loads(await line(lines))
            assert told["id"] is None
            assert told["error"]["message"].startswith(f"{code}: ")
            with pytest.raises(anyio.EndOfStream):
                await lines.receive()
        assert "no-such-token" not in str(told)


async def test_over_the_network_every_request_needs_a_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = await make_token(here)
        async with httpx2.AsyncClient(base_url=f"http://{here.address}") as network:
            for path in (
                "/v1/whoami",
                "/healthz",
                "/metrics",
                "/openapi.json",
                "/v1/events/stream",
                "/mcp",
                "/",
            ):
                assert (await network.get(path)).status_code == 401
            known = await network.get("/v1/whoami", headers=bearer(token))
            assert known.json()["name"] == "ann"
            assert (await network.get("/healthz", headers=bearer(token))).status_code == 200


async def test_over_the_network_a_stream_needs_a_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = (await make_token(here))["token"]
        host, _, port = here.address.partition(":")
        answers: list[bytes] = []
        for begin in (b'{"id": 1}\n', b'{"connect":{"token":"%s"}}\n' % token.encode()):
            async with await anyio.connect_tcp(host, int(port)) as raw:
                await raw.send(begin)
                answers.append(await line(BufferedByteStream(raw)))
        assert b"unauthenticated" in answers[0]
        assert answers[1] == b"ann worker "


async def test_a_token_weighs_more_than_the_peer(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = await make_token(here)
        peer = (await here.http.get("/v1/whoami")).json()
        assert (peer["name"], peer["role"]) == (f"uid:{os.geteuid()}", "admin")
        holder = (await here.http.get("/v1/whoami", headers=bearer(token))).json()
        assert (holder["name"], holder["role"]) == ("ann", "worker")
        await here.http.delete(f"/v1/tokens/{token['token_id']}")
        assert (await here.http.get("/v1/whoami", headers=bearer(token))).status_code == 401


async def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = await make_token(here)
        preface = json.dumps({"connect": {"token": token["token"]}}, separators=(",", ":"))
        async with await say(here, preface.encode() + b"\n") as lines:
            assert await line(lines) == b"ann worker "
            await here.http.delete(f"/v1/tokens/{token['token_id']}")
            with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
                await lines.receive()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("127.0.0.1:80", 200),
        ("LOCALHOST:7070", 200),
        ("box.example:7070", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:80", 421),
        ("user@127.0.0.1@evil.example", 421),
        ("[::1", 421),
        ("", 421),
    ],
)
async def test_a_name_that_leads_here_by_rebinding_is_refused(
    tmp_path: Path, host: str, status: int
) -> None:
    tcp: dict[str, object] = {"listen": "127.0.0.1:0", "allowed_hosts": ["box.example"]}
    async with served(tmp_path, tcp=tcp) as here:
        headers = bearer(await make_token(here)) | {"host": host}
        async with httpx2.AsyncClient(base_url=f"http://{here.address}") as network:
            assert (await network.get("/v1/whoami", headers=headers)).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("https://127.0.0.1", 403),
        ("http://127.0.0.1", 200),
        ("https://pages.example", 200),
    ],
)
async def test_only_pages_that_may_can_ask(tmp_path: Path, origin: str, status: int) -> None:
    tcp: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "allowed_origins": ["https://pages.example"],
    }
    async with served(tmp_path, tcp=tcp) as here:
        headers = bearer(await make_token(here)) | {"host": "127.0.0.1", "origin": origin}
        async with httpx2.AsyncClient(base_url=f"http://{here.address}") as network:
            assert (await network.get("/v1/whoami", headers=headers)).status_code == status


async def test_a_page_that_may_ask_may_read_the_answer(tmp_path: Path) -> None:
    page = "https://pages.example"
    tcp: dict[str, object] = {"listen": "127.0.0.1:0", "allowed_origins": [page]}
    async with served(tmp_path, tcp=tcp) as here:
        right = bearer(await make_token(here)) | {"origin": page}
        asks = {"origin": page, "access-control-request-method": "POST"}
        asks["access-control-request-headers"] = "authorization,content-type"
        async with httpx2.AsyncClient(base_url=f"http://{here.address}") as network:
            before = await network.options("/v1/tasks", headers=asks)
            assert before.headers["access-control-allow-origin"] == page
            assert "authorization" in before.headers["access-control-allow-headers"]
            after = await network.get("/v1/tasks", headers=right)
            assert after.headers["access-control-allow-origin"] == page
            stranger = await network.options("/v1/tasks", headers=asks | {"origin": "http://x"})
            assert stranger.status_code == 403


async def test_a_full_house_gives_up_the_oldest_silent_connection(tmp_path: Path) -> None:
    async with served(tmp_path, limits={"max_connections": 4}) as here:
        speaking = await say(here, b'{"id": 1}\n')
        await line(speaking)
        silent = [await anyio.connect_unix(here.path) for _ in range(10)]
        assert (await here.http.get("/healthz")).status_code == 200
        with anyio.fail_after(5), pytest.raises(anyio.EndOfStream):
            await silent[0].receive()
        await speaking.send(b"still here\n")
        assert await line(speaking) == b'{"id": 1}'
        assert await line(speaking) == b"still here"
        for each in (*silent, speaking):
            await each.aclose()


async def test_a_house_full_of_speakers_turns_the_next_one_away(tmp_path: Path) -> None:
    async with served(tmp_path, limits={"max_connections": 2}) as here:
        speaking = [await say(here, b'{"id": 1}\n') for _ in range(2)]
        for each in speaking:
            await line(each)
        late = await say(here, b'{"id": 1}\n')
        with anyio.fail_after(5), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await late.receive()
        await late.aclose()
        await speaking.pop().aclose()
        with anyio.fail_after(5):
            while True:
                again = await say(here, b'{"id": 1}\n')
                try:
                    await again.receive()
                    break
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    await again.aclose()
        for each in (again, *speaking):
            await each.aclose()


async def test_garbage_is_answered_and_the_next_client_served(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        for garbage in (
            b"\x00\xff" * 100,
            b"GET\r\n\r\n",
            b"\r\n\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
        ):
            broken = await say(here, garbage)
            async with broken:
                assert await line(broken) == b"HTTP/1.1 400 Bad Request\r"
        assert (await here.http.get("/healthz")).status_code == 200


async def test_a_head_without_end_is_refused(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(here.path))
            head = b"GET / HTTP/1.1\r\nx: " + b"y" * 200_000

            def push() -> bytes:
                with suppress(OSError):  # it need not read all of it
                    client.sendall(head)
                return client.recv(64)

            assert b" 400 " in await anyio.to_thread.run_sync(push)


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /healthz HTTP/1.1\r\n",
        b"POST /v1/tasks HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
        b"POST /mcp HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
        b'{"conn',
        b'{"connect":{"profile":"x"',
    ],
)
async def test_who_does_not_finish_a_request_is_hung_up_on(tmp_path: Path, begun: bytes) -> None:
    async with (
        served(tmp_path, limits={"request_timeout_s": 0.2}) as here,
        await say(here, begun) as slow,
    ):
        with anyio.fail_after(5), suppress(anyio.EndOfStream, anyio.BrokenResourceError):
            while True:
                await slow.receive()


async def test_who_waits_for_an_answer_is_not_hung_up_on(tmp_path: Path) -> None:
    async with served(tmp_path, limits={"request_timeout_s": 0.2}) as here:
        answer = await here.http.get("/v1/events?after=now&timeout_s=0.6")
        assert answer.json()["events"] == []
        lines = await say(here, b'{"id": 1}\n')
        async with lines:
            await line(lines)
            assert await line(lines) == b'{"id": 1}'
            with anyio.move_on_after(0.6):
                await lines.receive()
                pytest.fail("a stream may be silent once it has begun")


async def test_who_does_not_take_the_answer_is_hung_up_on(tmp_path: Path) -> None:
    async with served(tmp_path, limits={"request_timeout_s": 0.2}) as here:
        tasks = [{"key": f"k{index}", "title": "x" * 900} for index in range(500)]
        await here.http.post("/v1/graphs", json={"tasks": tasks})
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(here.path))
            client.sendall(b"GET /v1/tasks?limit=500 HTTP/1.1\r\nhost: x\r\n\r\n")
            poll = select.poll()
            poll.register(client, 0)  # tells of the end without reading
            assert await anyio.to_thread.run_sync(poll.poll, 5000)


async def test_closing_ends_idle_connections_and_serve(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        lines = await say(here, b'{"id": 1}\n')
        await line(lines)
        silent = await anyio.connect_unix(here.path)
        await here.http.get("/healthz")  # let in after the silent one
        here.listener.close()
        with anyio.fail_after(5):
            assert await line(lines) == b'{"id": 1}'
            with pytest.raises(anyio.EndOfStream):
                await lines.receive()
            with pytest.raises(anyio.EndOfStream):
                await silent.receive()
        with pytest.raises(OSError, match="refused"):
            await anyio.connect_unix(here.path)
        await lines.aclose()
        await silent.aclose()

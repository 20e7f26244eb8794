"""Guests that send what no client would: what they are told, and that nothing goes on from them."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio
import pytest

from egressing import ASKED, KEY, PATIENCE_S, listening, outlet
from microvm_orchestrator import errors
from microvm_orchestrator.egress.endpoint import CONNECTIONS_MOST, TOLD_MOST
from microvm_orchestrator.egress.http import HEADERS_MOST, Patience
from model_api import Say, Turn, open_model_api, say

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream

    from microvm_orchestrator.egress.exchange import Exchange

POST = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\n"
BODY = json.dumps(ASKED).encode()
GOOD = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"\r\n\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G\xc3\x8bT / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: +3\r\n\r\nabc", 400),
        (POST + b"Content-Length: 0x3\r\n\r\nabc", 400),
        (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 501),
        (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
        (POST + b"X-A: b\x00c\r\n\r\n", 400),
        (POST + b"X-A: b\rX-Api-Key: c\r\n\r\n", 400),
        (POST + b"X Y: b\r\n\r\n", 400),
        (POST + b": b\r\n\r\n", 400),
        (POST + b"X: " + b"y" * 100_000 + b"\r\n\r\n", 431),
        (POST + b"X: y\r\n" * (HEADERS_MOST + 1) + b"\r\n", 431),
        (b"X" * 100_000, 431),
    ],
)
async def test_what_can_be_misread_is_refused_and_ends_the_connection(
    tmp_path: Path, request_: bytes, status: int
) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        # What stands behind it is never taken for another request.
        said = await out.exchanged(request_ + SMUGGLED)
        exchange = await out.told()
        assert api.requests == []
        assert (await out.message()).status_code == 200
    assert said.startswith(f"HTTP/1.1 {status} ".encode())
    assert said.count(b"content-length:") == 1
    assert b"connection: close\r\n" in said
    assert (exchange.status, exchange.refused is None) == (status, False)


async def test_what_hides_in_a_body_is_no_request(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        hidden = b'{"a": "\r\n\r\n' + SMUGGLED + b'"}'
        sent = POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(hidden) + hidden
        await out.exchanged(sent)
        chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(hidden), hidden)
        await out.exchanged(
            POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunked
        )
        assert [request.path for request in api.requests] == ["/v1/messages"] * 2
        assert [request.raw for request in api.requests] == [hidden] * 2
        # Each is framed in one way only, whatever the guest wrote.
        for request in api.requests:
            assert {"content-length", "transfer-encoding"} & set(request.headers)
            assert not {"content-length", "transfer-encoding"} <= set(request.headers)


async def test_requests_in_a_row_are_answered_in_their_order(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        last = POST + b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
        said = await out.exchanged(SMUGGLED + GOOD + last)
        assert [request.path for request in api.requests] == [
            *("/v1/models", "/v1/messages", "/v1/messages")
        ]
    assert said.count(b"HTTP/1.1 200 OK") == 3


async def test_a_header_cannot_be_put_into_what_goes_out(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        await out.exchanged(
            b"POST /v1/messages?a=%0d%0ax-api-key:%20b HTTP/1.1\r\nHost: evil\r\n"
            b"anthropic-beta: a\xff\r\nx-stainless-x: \t b\r\n"
            b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
        )
        [request] = api.requests
    assert request.headers["x-api-key"] == KEY
    assert request.headers["host"] == api.url.removeprefix("http://")
    assert request.target == "/v1/messages?a=%0d%0ax-api-key:%20b"


async def test_a_guest_that_sends_slowly_is_given_up(tmp_path: Path) -> None:
    patience = Patience(idle=0.05, head=0.05, piece=0.05)
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, patience=patience) as out,
    ):
        assert await out.exchanged(b"") == b""
        assert (await out.exchanged(b"POST /v1/mess")).startswith(b"HTTP/1.1 408 ")
        slow = POST + b"Content-Length: 10\r\n\r\n{"
        assert (await out.exchanged(slow)).startswith(b"HTTP/1.1 408 ")
        told = [await out.told(), await out.told()]
    assert [each.status for each in told] == [408, 408]


async def test_a_guest_that_does_not_take_its_answer_is_given_up(tmp_path: Path) -> None:
    script = [Turn((Say("x" * 4_000_000),))]
    async with (
        open_model_api(script) as api,
        outlet(tmp_path, api=api.url, patience=Patience(send=0.05)) as out,
    ):
        # Not one of the event loop, which reads ahead.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as guest:
            guest.connect(str(out.egress.path))
            guest.sendall(GOOD)
            exchange = await out.told()
    assert 0 < exchange.bytes_out < 4_000_000


async def test_a_body_that_is_too_large_is_not_sent_on_to_its_end(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        head = POST + b"Content-Length: %d\r\n\r\n" % (33 << 20)
        async with out.connected() as stream:
            with anyio.fail_after(PATIENCE_S):
                await stream.send(head)
                await _flood(stream)
        exchange = await out.told()
        assert api.requests == []
    assert exchange.status == 413
    assert exchange.refused == "the body is larger than 33554432 bytes"


async def _flood(stream: ByteStream) -> None:
    """Send until the other side has had enough."""
    with suppress(anyio.BrokenResourceError):
        while True:
            await stream.send(b"x" * (1 << 20))


async def test_chunks_of_a_byte_each_are_refused(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        chunks = b"1\r\nx\r\n" * 5000 + b"0\r\n\r\n"
        said = await out.exchanged(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        exchange = await out.told()
        assert api.requests == []
    assert said.startswith(b"HTTP/1.1 400 ")
    assert exchange.refused == "the body of the request comes in chunks that are too small"


async def test_a_guest_has_so_many_connections_and_no_more(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        async with anyio.create_task_group() as group:
            ready = anyio.Semaphore(0)

            async def hold() -> None:
                async with out.connected() as stream:
                    await stream.send(SMUGGLED)
                    await stream.receive()
                    ready.release()
                    await anyio.sleep_forever()

            for _ in range(CONNECTIONS_MOST):
                group.start_soon(hold)
            with anyio.fail_after(PATIENCE_S):
                for _ in range(CONNECTIONS_MOST):
                    await ready.acquire()
            assert (await out.exchanged(b"")).startswith(b"HTTP/1.1 503 ")
            group.cancel_scope.cancel()
        # They are free again once their guest has left.
        with anyio.fail_after(PATIENCE_S):
            while (await out.exchanged(GOOD.replace(b"Host", b"Connection: close\r\nHost")))[
                9:12
            ] != b"200":
                pass


async def test_of_endless_requests_a_number_is_kept(tmp_path: Path) -> None:
    told: list[Exchange] = []

    async def on_exchange(exchange: Exchange) -> None:
        told.append(exchange)

    extra = 10
    async with outlet(tmp_path, on_exchange=on_exchange) as out:
        async with out.connected() as stream:
            once = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
            with anyio.fail_after(PATIENCE_S):
                for _ in range(TOLD_MOST + extra):
                    await stream.send(once)
                    await stream.receive()
        assert (len(told), out.egress.unlisted) == (TOLD_MOST, extra)


async def test_an_owner_that_cannot_take_a_record_does_not_fail_the_request(
    tmp_path: Path,
) -> None:
    async def on_exchange(_: Exchange) -> None:
        raise errors.StoreFull("the disk under the store is full")

    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, on_exchange=on_exchange) as out,
    ):
        assert (await out.message()).status_code == 200
        assert (await out.message()).status_code == 200
        assert out.egress.unlisted >= 1


async def test_an_api_that_sends_garbage_is_an_error_and_no_more(tmp_path: Path) -> None:
    garbage = [
        b"",
        b"nothing of the kind\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 999 \r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000,
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
    ]

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(garbage[0])

    async with (
        listening(serve) as port,
        outlet(tmp_path, api=f"http://127.0.0.1:{port}") as out,
    ):
        while garbage:
            answer = await out.message()
            assert answer.status_code in {502, 999}
            assert (await out.told()).status == answer.status_code
            garbage.pop(0)


async def test_usage_that_is_no_usage_is_not_believed(tmp_path: Path) -> None:
    told = {"model": ["x"], "usage": {"input_tokens": -5, "output_tokens": 1e99, "a": None}}

    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            body = json.dumps(told).encode() + b" " * 100
            head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
            await stream.send(head + body)

    async with (
        listening(serve) as port,
        outlet(tmp_path, api=f"http://127.0.0.1:{port}") as out,
    ):
        assert (await out.message()).status_code == 200
        exchange = await out.told()
    assert exchange.model is None
    assert exchange.tokens is not None
    assert exchange.tokens.estimated
    assert 0 < exchange.tokens.total < 1000

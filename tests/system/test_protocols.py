"""What is no call at all: broken HTTP, smuggled requests, foreign hosts, lines of no JSON-RPC."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from system import doors

if TYPE_CHECKING:
    from system.world import World

HOST = b"Host: localhost\r\n"
POST = b"POST /v1/tasks HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LAST = b"Connection: close\r\n"
# What somebody would like to have answered as a request of its own.
SMUGGLED = b"GET /v1/whoami HTTP/1.1\r\n" + HOST + LAST + b"\r\n"

# Bytes, and the status line's number and the code of each answer, in order.
EXCHANGES: dict[str, tuple[bytes, list[str]]] = {
    "a length and chunks": (
        POST + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED,
        ["malformed-request"],
    ),
    "chunks and a length": (
        POST + CHUNKED + b"Content-Length: 0\r\n\r\n0\r\n\r\n" + SMUGGLED,
        ["malformed-request"],
    ),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", ["http 400"]),
    "a list of lengths": (POST + b"Content-Length: 2, 3\r\n\r\n{}", ["http 400"]),
    "a negative length": (POST + b"Content-Length: -1\r\n\r\n", ["http 400"]),
    "a signed length": (POST + b"Content-Length: +2\r\n\r\n{}", ["http 400"]),
    "a length in hex": (POST + b"Content-Length: 0x2\r\n\r\n{}", ["http 400"]),
    "a length of 23 digits": (POST + b"Content-Length: " + b"9" * 23 + b"\r\n\r\n", ["http 400"]),
    "a length past the limit": (POST + b"Content-Length: 99999999\r\n\r\n", ["too-large"]),
    "a length past the limit, asked before": (
        POST + b"Content-Length: 99999999\r\nExpect: 100-continue\r\n\r\n",
        ["too-large"],
    ),
    "chunks past the limit": (
        POST + CHUNKED + b"\r\n" + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 5,
        ["too-large"],
    ),
    "chunks with a name of their own": (
        POST + b"Transfer-Encoding: xchunked\r\n\r\n",
        ["http 400"],
    ),
    "chunks of something packed": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        ["http 400"],
    ),
    "a chunk without a number": (POST + CHUNKED + b"\r\nzz\r\n{}\r\n0\r\n\r\n", ["http 400"]),
    "a space before a colon": (POST + b"Content-Length : 2\r\n\r\n{}", ["http 400"]),
    "a zero byte in a header": (POST + b"X-A: \0\r\nContent-Length: 2\r\n\r\n{}", ["http 400"]),
    "no host": (b"GET /v1/whoami HTTP/1.1\r\n\r\n", ["http 400"]),
    "two hosts": (b"GET /v1/whoami HTTP/1.1\r\n" + HOST * 2 + b"\r\n", ["http 400"]),
    "no version": (b"GET /v1/whoami\r\n\r\n", ["http 400"]),
    "version 2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ["not-found", "http 400"]),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", ["http 400"]),
    "20,000 headers": (
        b"GET /v1/whoami HTTP/1.1\r\n" + b"".join(b"X-%d: a\r\n" % n for n in range(20_000)),
        ["http 400"],
    ),
    "a header of 2 MB": (
        b"GET /v1/whoami HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * 2_000_000,
        ["http 400"],
    ),
    "an address of 2 MB": (b"GET /v1/tasks/" + b"a" * 2_000_000, ["http 400"]),
    "slashes that are written out": (
        b"GET /v1/tasks/..%2f..%2fetc%2fpasswd HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        ["not-found"],
    ),
    "dots": (b"GET /v1/tasks/../../etc/passwd HTTP/1.1\r\n" + HOST + LAST + b"\r\n", ["not-found"]),
    "a whole address": (
        b"GET http://evil.example/v1/whoami HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        ["not-found"],
    ),
    "a method nobody knows": (
        b"BREW /v1/tasks HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        ["method-not-allowed"],
    ),
    "CONNECT": (b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST + LAST + b"\r\n", ["not-found"]),
    "TRACE": (b"TRACE /v1/tasks HTTP/1.1\r\n" + HOST + LAST + b"\r\n", ["method-not-allowed"]),
    "DELETE of all": (
        b"DELETE /v1/tasks HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        ["method-not-allowed"],
    ),
}


@pytest.mark.parametrize("name", EXCHANGES)
def test_bytes_that_are_no_clean_request_are_answered_or_hung_up_on(
    world: World, name: str
) -> None:
    said, expected = EXCHANGES[name]
    assert doors.exchange(world.place, said, len(expected)) == expected


GET = b"GET /v1/whoami HTTP/1.1\r\n"
ORIGIN = b"Origin: http://evil.example\r\n"
# What a page can send without asking first.
PLAIN = b"POST /v1/tasks HTTP/1.1\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n"
TASK = b'{"title": "x"}'

# `{host}` is the address of the daemon, `{token}` an admin's.
ON_THE_NETWORK = {
    "a foreign host": (GET + b"Host: evil.example\r\n\r\n", "misdirected-request"),
    "a foreign host with a token": (
        GET + b"Host: evil.example\r\nAuthorization: Bearer {token}\r\n\r\n",
        "misdirected-request",
    ),
    "a host that ends alike": (
        GET + b"Host: 127.0.0.1.evil.example\r\n\r\n",
        "misdirected-request",
    ),
    "a host behind a name": (GET + b"Host: 127.0.0.1@evil.example\r\n\r\n", "misdirected-request"),
    "no host": (b"GET /v1/whoami HTTP/1.0\r\n\r\n", "misdirected-request"),
    "an empty host": (GET + b"Host:\r\n\r\n", "misdirected-request"),
    "a host that is none": (GET + b"Host: [::1\r\n\r\n", "misdirected-request"),
    "no token": (GET + b"Host: {host}\r\n\r\n", "unauthenticated"),
    "no token, for figures": (
        b"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n",
        "unauthenticated",
    ),
    "no token, for MCP": (
        b"POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Length: 2\r\n\r\n{}",
        "unauthenticated",
    ),
    "a password": (GET + b"Host: {host}\r\nAuthorization: Basic eDp4\r\n\r\n", "unauthenticated"),
    "a token of another": (
        GET + b"Host: {host}\r\nAuthorization: Bearer x\r\n\r\n",
        "unauthenticated",
    ),
    "a foreign page": (
        PLAIN + b"Host: {host}\r\n" + ORIGIN + b"Authorization: Bearer {token}\r\n\r\n" + TASK,
        "origin-refused",
    ),
    "a page of nowhere": (
        PLAIN + b"Host: {host}\r\nOrigin: null\r\n\r\n" + TASK,
        "origin-refused",
    ),
    "plain text": (
        PLAIN + b"Host: {host}\r\nAuthorization: Bearer {token}\r\n\r\n" + TASK,
        "unsupported-media-type",
    ),
}


@pytest.mark.parametrize("name", ON_THE_NETWORK)
def test_a_request_over_the_network_needs_our_host_and_a_token(world: World, name: str) -> None:
    said, expected = ON_THE_NETWORK[name]
    said = said.replace(b"{host}", world.place.tcp.encode())
    said = said.replace(b"{token}", str(world.tokens["admin"]).encode())
    assert doors.exchange(world.place, said, 1, network=True) == [expected]
    assert world.belongings() == world.before


def test_a_foreign_page_may_not_write_over_the_unix_socket_either(world: World) -> None:
    for kind in ("text/plain", "application/json"):
        reply = doors.asked(
            world.place, "POST", "/v1/tasks", TASK, content_type=kind, origin="http://evil.example"
        )
        assert reply.code == "origin-refused"
    assert world.belongings() == world.before


CALL = b'"method":"tools/call","params":{"name":"whoami"}'
LINES = {
    "no JSON": (b"{hello}", "rpc -32700"),
    "half of it": (b'{"jsonrpc": "2.0"', "rpc -32700"),
    "bytes that are no UTF-8": (b'{"jsonrpc":"2.0","id":1,"method":"\xff"}', "rpc -32700"),
    "another version": (b'{"jsonrpc":"1.0","id":1,' + CALL + b"}", "rpc -32600"),
    "no version": (b'{"id":1,' + CALL + b"}", "rpc -32600"),
    "an object that asks nothing": (b"{}", "rpc -32600"),
    "an id that is a list": (b'{"jsonrpc":"2.0","id":[1],' + CALL + b"}", "rpc -32600"),
    "an id that is null": (b'{"jsonrpc":"2.0","id":null,' + CALL + b"}", "rpc -32600"),
    "an id that is true": (b'{"jsonrpc":"2.0","id":true,' + CALL + b"}", "rpc -32600"),
    "a method that is a number": (b'{"jsonrpc":"2.0","id":1,"method":5}', "rpc -32600"),
    "a line of 5 MB": (b'{"jsonrpc":"2.0","id":1,"x":"' + b"x" * 5_000_000, "too-large"),
    "JSON 100,000 deep": (b'{"x":' * 100_000, "rpc -32700"),
    "a connection that wants nothing known": (b'{"connect": {"root": true}}', "invalid-input"),
    "a connection with half a wish": (b'{"connect": {"token"', "invalid-input"),
    "a connection with a bad token": (b'{"connect":{"token":"mo_x"}}', "unauthenticated"),
    "a connection with a token that is a number": (b'{"connect":{"token":5}}', "invalid-input"),
    "a connection for a profile of nobody": (
        b'{"connect":{"profile":"../x"}}\n{"jsonrpc":"2.0","id":1,' + CALL + b"}",
        "not-found",
    ),
    "a wish of 10 kB": (b'{"connect":{"profile":"' + b"x" * 10_000 + b'"}}', "invalid-input"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_is_no_message_is_answered_with_an_error(world: World, name: str) -> None:
    said, expected = LINES[name]
    assert doors.said_on_stream(world.place, said + b"\n").code == expected


def test_a_stream_goes_on_after_every_line_that_was_no_message(world: World) -> None:
    lines = [
        said for name, (said, _) in LINES.items() if "connect" not in name and "wish" not in name
    ]
    with world.place.connected() as client, client.makefile("rb") as heard:
        for said in lines:
            client.sendall(said + b"\n")
            assert b'"error"' in heard.readline()
        client.sendall(doors.request("whoami", b"{}") + b"\n")
        assert b'"uid:0' in heard.readline()


def test_a_tool_a_route_and_a_resource_nobody_has_are_not_found(world: World) -> None:
    place = world.place
    assert doors.stream(place, None, "task_destroy", b"{}").code == "rpc -32602"
    assert doors.streamable(place, None, "__init__", b"{}").code == "rpc -32602"
    for path in (
        "/nobody",
        "/v2/tasks",
        "/v1",
        "/v1/",
        "/v1/tasks/",
        "//v1/tasks",
        "/V1/tasks",
        "/v1/tasks;x=1",
        "/mcp/profiles/nobody",
        "/static/../../etc/passwd",
    ):
        assert doors.asked(place, "GET", path).code == "not-found", path
    for path in ("/v1/tasks", "/v1/tasks/x/cancel"):
        assert doors.asked(place, "PUT", path, b"{}").code == "method-not-allowed", path


@pytest.mark.parametrize(
    ("body", "headers", "code"),
    [
        (b"{}", {"content_type": "text/plain"}, "unsupported-media-type"),
        (b"{}", {"content_type": "application/x-www-form-urlencoded"}, "unsupported-media-type"),
        (b"{}", {"content_type": "application/jsonp"}, "unsupported-media-type"),
        (b"{}", {"content_type": ""}, "unsupported-media-type"),
        (b"\x1f\x8b\x08\0", {"content_encoding": "gzip"}, "invalid-input"),
        (b"{}", {"idempotency_key": ""}, "invalid-input"),
        (b"{}", {"idempotency_key": "x" * 201}, "too-large"),
        (b'{"idempotency_key": "a"}', {"idempotency_key": "b"}, "invalid-input"),
        (b"null", {}, "invalid-input"),
        (b"[]", {}, "invalid-input"),
        (b'"x"', {}, "invalid-input"),
        (b" ", {}, "invalid-input"),
        (b"{} {}", {}, "invalid-input"),
    ],
)
def test_a_body_that_is_none_is_refused(
    world: World, body: bytes, headers: dict[str, str], code: str
) -> None:
    assert doors.asked(world.place, "POST", "/v1/tasks", body, **headers).code == code
    assert doors.asked(world.place, "POST", "/v1/tasks?title=x", b"{}").code == "invalid-input"


@pytest.mark.parametrize(
    "query",
    [
        "limit=5&limit=6",
        "limit=1e9",
        "limit=%D9%A5",
        "__proto__=1",
        "labels=1",
        "labels[__proto__]=x",
        "labels[team]=a&labels[team]=b",
        "labels[team][a]=b",
        "state=",
        "cursor=",
        "group=..%2f",
        "limit[a]=1",
    ],
)
def test_a_query_that_means_two_things_or_none_is_refused(world: World, query: str) -> None:
    assert doors.asked(world.place, "GET", f"/v1/tasks?{query}").code == "invalid-input"

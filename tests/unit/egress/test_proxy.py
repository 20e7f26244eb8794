"""The way to hosts by name: who is let through, and to which address."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio
import httpx2
import pytest

from egressing import PATIENCE_S, listening, outlet
from model_api import open_model_api, say
from receiver import answer, receiver

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anyio.abc import ByteStream

    from egressing import Outlet
    from microvm_orchestrator.egress.addresses import Address

LOOPBACK = {"private_networks": ("127.0.0.0/8",)}


@dataclass
class Names:
    """A resolver whose answers are decided here: each look-up gets the next, the last again."""

    known: dict[str, list[Sequence[str]]]
    asked: list[str] = field(default_factory=list[str])

    async def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(f"{host}:{port}")
        if host not in self.known:
            raise OSError(f"no {host}")
        left = self.known[host]
        return [ipaddress.ip_address(each) for each in (left.pop(0) if len(left) > 1 else left[0])]


async def echo(stream: ByteStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send(data.upper())


async def test_a_tunnel_carries_both_ways_to_a_host_that_is_allowed(tmp_path: Path) -> None:
    names = Names({"git.example": [["127.0.0.1"]]})
    async with (
        listening(echo) as port,
        outlet(tmp_path, hosts=[f"*.example:{port}"], settings=LOOPBACK, resolver=names) as out,
        out.connected() as stream,
    ):
        with anyio.fail_after(PATIENCE_S):
            # What is said before the answer is not lost.
            head = f"CONNECT git.example:{port} HTTP/1.1\r\nHost: git.example:{port}\r\n\r\n"
            await stream.send(head.encode() + b"first ")
            said = b""
            while not said.endswith(b"FIRST "):
                said += await stream.receive()
            await stream.send(b"second")
            assert await stream.receive() == b"SECOND"
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        exchange = await out.told()
    assert said == b"HTTP/1.1 200 OK\r\n\r\nFIRST "
    assert (exchange.method, exchange.host) == ("CONNECT", f"git.example:{port}")
    assert (exchange.path, exchange.status) == ("", 200)
    assert (exchange.bytes_in, exchange.bytes_out) == (12, 12)


@pytest.mark.parametrize(
    ("rule", "target", "allowed"),
    [
        ("a.example", "a.example:443", True),
        ("a.example", "A.Example.:443", True),
        ("a.example", "a.example:80", True),
        ("a.example", "a.example:22", False),
        ("a.example", "b.a.example:443", False),
        ("a.example:22", "a.example:22", True),
        ("a.example:22", "a.example:443", False),
        ("*.a.example", "b.a.example:443", True),
        ("*.a.example", "c.b.a.example:443", True),
        ("*.a.example", "a.example:443", False),
        ("*.a.example", "xa.example:443", False),
        ("a.example", "a.example.evil:443", False),
        ("192.0.2.1", "192.0.2.1:443", True),
        ("192.0.2.1", "192.0.2.01:443", False),
        ("192.0.2.1", "3221225985:443", False),
        ("[2001:db8::1]", "[2001:db8::1]:443", True),
    ],
)
async def test_a_host_is_allowed_by_name_and_port(
    tmp_path: Path, rule: str, target: str, *, allowed: bool
) -> None:
    names = Names({})
    async with outlet(tmp_path, hosts=[rule], resolver=names) as out:
        said = await _connect(out, target)
    if allowed:
        assert said.startswith("HTTP/1.1 502 ")
        assert names.asked
    else:
        assert said.startswith("HTTP/1.1 403 ")
        assert names.asked == []
        assert f'add "{target.lower()}" to the egress list' in said
        assert "the setting egress.hosts" in said


async def _connect(out: Outlet, target: str) -> str:
    said = await out.exchanged(
        f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n".encode()
    )
    return said.decode()


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::7f00:1", "2002:7f00:1::"),
    ],
)
async def test_an_address_inside_is_refused_whatever_name_it_has(
    tmp_path: Path, address: str
) -> None:
    names = Names({"a.example": [[address]]})
    async with outlet(tmp_path, hosts=["a.example"], resolver=names) as out:
        said = await _connect(out, "a.example:443")
        exchange = await out.told()
    assert said.startswith("HTTP/1.1 403 ")
    assert f"a.example is at {ipaddress.ip_address(address)}, which is not" in said
    assert "egress.private_networks" in said
    assert (exchange.host, exchange.status) == ("a.example:443", 403)


async def test_one_inner_address_among_several_is_refused(tmp_path: Path) -> None:
    names = Names({"a.example": [["8.8.8.8", "127.0.0.1"]]})
    async with outlet(tmp_path, hosts=["a.example"], resolver=names) as out:
        assert (await _connect(out, "a.example:443")).startswith("HTTP/1.1 403 ")


async def test_a_name_that_moves_inside_between_two_requests_is_refused(tmp_path: Path) -> None:
    names = Names({"a.example": [["127.0.0.1"], ["10.0.0.1"]]})
    async with (
        listening(echo) as port,
        outlet(tmp_path, hosts=[f"a.example:{port}"], settings=LOOPBACK, resolver=names) as out,
    ):
        async with out.connected() as stream:
            await stream.send(f"CONNECT a.example:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            with anyio.fail_after(PATIENCE_S):
                assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")
        second = await _connect(out, f"a.example:{port}")
    assert second.startswith("HTTP/1.1 403 ")
    # Once for each: between the judgement and the connection nobody is asked again.
    assert names.asked == [f"a.example:{port}"] * 2


async def test_a_dead_address_leaves_time_for_the_next(tmp_path: Path) -> None:
    names = Names({"a.example": [["127.0.0.2", "127.0.0.1"]]})
    async with (
        listening(echo) as port,
        outlet(tmp_path, hosts=[f"a.example:{port}"], settings=LOOPBACK, resolver=names) as out,
        out.connected() as stream,
    ):
        await stream.send(f"CONNECT a.example:{port} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        with anyio.fail_after(PATIENCE_S):
            assert (await stream.receive()).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "target",
    [
        *("a.example", "a.example:", "a.example:0", "a.example:65536", "a.example:4a", ":443"),
        *("a.example:443:443", "user@a.example:443", "[::1:443", "[::1]443", "a_b..c:443"),
        *("a.example:443/", "http://a.example:443", "-a.example:443", f"{'a' * 64}.example:443"),
    ],
)
async def test_a_target_that_is_no_host_and_port_is_malformed(tmp_path: Path, target: str) -> None:
    async with outlet(tmp_path, hosts=["*.example", "a.example"], resolver=Names({})) as out:
        assert (await _connect(out, target)).startswith("HTTP/1.1 400 ")


async def test_a_name_that_is_not_known_is_said_so(tmp_path: Path) -> None:
    async with outlet(tmp_path, hosts=["a.example"], resolver=Names({})) as out:
        assert "no address of a.example is known" in await _connect(out, "a.example:443")


async def test_a_name_is_looked_up_by_the_host(tmp_path: Path) -> None:
    """With the resolver of the system itself: localhost is known, and inside."""
    async with outlet(tmp_path, hosts=["localhost"]) as out:
        said = await _connect(out, "localhost:443")
    assert said.startswith("HTTP/1.1 403 ")
    assert "which is not a public address" in said


async def test_a_plain_request_is_fetched_from_the_address_in_the_name_of_the_host(
    tmp_path: Path,
) -> None:
    names = Names({"deb.example": [["127.0.0.1"]]})
    async with receiver() as host:
        host.otherwise = answer(
            200, "Connection: X-Gone", "X-Gone: 1", "Set-Cookie: a=b", "X-Kept: 1", body="thanks"
        )
        hosts = [f"deb.example:{host.port}"]
        async with outlet(tmp_path, hosts=hosts, settings=LOOPBACK, resolver=names) as out:
            proxy = httpx2.AsyncHTTPTransport(uds=str(out.egress.path))
            async with httpx2.AsyncClient(transport=_Absolute(proxy)) as client:
                got = await client.post(
                    f"http://deb.example:{host.port}/pool/x?token=y",
                    content=b"body",
                    headers={
                        "Authorization": "Basic x",
                        "Proxy-Authorization": "Basic y",
                        "Connection": "X-Hop",
                        "X-Hop": "1",
                        "Upgrade": "h2c",
                    },
                )
            received = await host.next()
            exchange = await out.told()
    assert (got.status_code, got.text) == (200, "thanks")
    assert got.headers["x-kept"] == "1"
    assert "x-gone" not in got.headers
    assert received.line == "POST /pool/x?token=y HTTP/1.1"
    assert received.headers["host"] == f"deb.example:{host.port}"
    assert received.headers["authorization"] == "Basic x"
    assert received.body == b"body"
    assert not {"proxy-authorization", "x-hop", "upgrade"} & set(received.headers)
    assert (exchange.host, exchange.path) == (f"deb.example:{host.port}", "/pool/x")
    assert (exchange.bytes_in, exchange.bytes_out, exchange.status) == (4, 6, 200)


class _Absolute(httpx2.AsyncBaseTransport):
    """Asks a proxy as clients do: with the whole address in the first line."""

    def __init__(self, proxy: httpx2.AsyncHTTPTransport) -> None:
        self._proxy = proxy

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        request.extensions = {**request.extensions, "target": str(request.url).encode()}
        return await self._proxy.handle_async_request(request)

    async def aclose(self) -> None:
        await self._proxy.aclose()


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://a.example/", 403),
        ("GET http://127.0.0.1:4001/v1/messages", 403),
        ("GET http://user:key@b.example/", 400),
        ("GET https://b.example/", 400),
        ("GET ftp://b.example/", 400),
        ("GET http:///x", 400),
        ("GET http://b.example/#x", 400),
        ("GET b.example:80", 400),
        ("OPTIONS *", 400),
        ("TRACE http://b.example/", 405),
        ("GET http://b.example:443443/", 400),
        ("GET http://b.example/", 502),
    ],
)
async def test_what_cannot_or_may_not_be_fetched_is_refused(
    tmp_path: Path, line: str, status: int
) -> None:
    async with outlet(tmp_path, hosts=["b.example"], resolver=Names({})) as out:
        said = await out.exchanged(
            f"{line} HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n".encode()
        )
    assert said.startswith(f"HTTP/1.1 {status} ".encode())


async def test_no_key_goes_to_a_host_that_is_not_a_model_api(tmp_path: Path) -> None:
    names = Names({"api.example": [["127.0.0.1"]]})
    async with receiver() as host:
        hosts = [f"api.example:{host.port}"]
        async with outlet(tmp_path, hosts=hosts, settings=LOOPBACK, resolver=names) as out:
            await out.exchanged(
                f"POST http://api.example:{host.port}/v1/messages HTTP/1.1\r\nHost: x\r\n"
                "x-api-key: placeholder\r\nConnection: close\r\n"
                "Content-Length: 0\r\n\r\n".encode()
            )
            received = await host.next()
    assert received.headers["x-api-key"] == "placeholder"


async def test_the_model_api_is_not_reached_through_the_proxy(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        said = await _connect(out, api.url.removeprefix("http://"))
        assert said.startswith("HTTP/1.1 403 ")
        assert api.requests == []

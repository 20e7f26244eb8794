"""The four ways into a daemon, each reduced to one word: what came of saying something there.

`ok`, the code of an error, or how the protocol itself refused: `rpc -32700`, `http 400`, `usage`.
Everything here is written without the product's own clients, so that it can send what they never
would.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlencode

from daemon import COMMAND
from microvm_orchestrator import places
from microvm_orchestrator.service.table import BY_NAME

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from io import BufferedReader
    from pathlib import Path

# A daemon that takes longer for any of this hangs.
PATIENCE_S = 30.0
MODERN = "2026-07-28"
_META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
_PATH_FIELD = re.compile(r"{(\w+)}")
# How our own errors begin where a protocol has only a text for them.
_OURS = re.compile(r"([a-z]+(?:-[a-z]+)*): ")
_SAID = re.compile(r"\(([a-z]+(?:-[a-z]+)*)\)$", re.MULTILINE)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One word for what came of it, and the answer if there is one."""

    code: str
    value: Json


@dataclass(frozen=True, slots=True)
class Place:
    """Where a daemon listens."""

    socket: Path
    tcp: str

    @contextmanager
    def connected(self, *, network: bool = False) -> Generator[socket.socket]:
        kind = socket.AF_INET if network else socket.AF_UNIX
        host, _, port = self.tcp.rpartition(":")
        with socket.socket(kind) as client:
            client.settimeout(PATIENCE_S)
            client.connect((host, int(port)) if network else str(self.socket))
            yield client


# MCP as lines over the socket


def stream(place: Place, token: str | None, call: str, arguments: bytes) -> Reply:
    preface = b"" if token is None else _line({"connect": {"token": token}})
    return said_on_stream(place, preface + request(call, arguments) + b"\n")


def said_on_stream(place: Place, data: bytes, *, network: bool = False) -> Reply:
    """Say `data`, and hear the first response."""
    with place.connected(network=network) as client, client.makefile("rb") as lines:
        client.sendall(data)
        while line := lines.readline():
            heard: Json = json.loads(line)
            if "method" not in heard:
                return _read_rpc(heard)
    return Reply("closed", {})


@dataclass(frozen=True, slots=True)
class Stream:
    """An open stream: calling it makes a request and gives its response."""

    client: socket.socket
    lines: BufferedReader

    def __call__(self, method: str, params: Json) -> Json:
        self.send(method, params)
        while line := self.lines.readline():
            heard: Json = json.loads(line)
            if "method" not in heard:
                return heard
        raise EOFError

    def send(self, method: str, params: Json) -> None:
        message = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": method,
            "params": {**params, "_meta": _META},
        }
        self.client.sendall(_line(message))

    def rest(self) -> list[str]:
        """Hear everything up to the end."""
        return _to_the_end(self.lines).decode().splitlines()


@contextmanager
def mcp_stream(place: Place, token: str | None) -> Generator[Stream]:
    with place.connected() as client, client.makefile("rb") as lines:
        if token is not None:
            client.sendall(_line({"connect": {"token": token}}))
        yield Stream(client, lines)


def _line(message: Json) -> bytes:
    return json.dumps(message).encode() + b"\n"


def request(call: str, arguments: bytes) -> bytes:
    """Write a request around arguments that may be no JSON at all."""
    before = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call"})[:-1].encode()
    params = b'{"_meta":%s,"name":%s,"arguments":%s}' % (
        json.dumps(_META).encode(),
        json.dumps(call).encode(),
        arguments,
    )
    return before + b',"params":' + params + b"}"


def _read_rpc(heard: Json) -> Reply:
    if "error" in heard:
        message = str(heard["error"]["message"])
        ours = _OURS.match(message)
        return Reply(ours[1] if ours else f"rpc {heard['error']['code']}", heard)
    result = cast("Json", heard["result"])
    if not result.get("isError"):
        return Reply("ok", result["structuredContent"])
    text = str(result["content"][0]["text"])
    ours = _OURS.match(text)
    assert ours, f"an error without its code: {text[:300]}"
    return Reply(ours[1], {"text": text})


# MCP over HTTP


def streamable(place: Place, token: str | None, call: str, arguments: bytes) -> Reply:
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": MODERN,
        "mcp-method": "tools/call",
        "mcp-name": call,
    }
    status, kind, data = _exchange(
        place, "POST", "/mcp", request(call, arguments), {**headers, **_bearer(token)}
    )
    if kind == "text/event-stream":
        data = next(line[5:] for line in data.splitlines() if line.startswith(b"data:"))
    try:
        heard: Json = json.loads(data)
    except ValueError:
        return Reply(f"http {status}", {})
    return _read_rpc(heard) if "jsonrpc" in heard else Reply(str(heard.get("code")), heard)


# REST


def rest(place: Place, token: str | None, call: str, arguments: bytes) -> Reply:
    """Write the arguments where the route of the call has them."""
    route = BY_NAME[call]
    target, body = route.path, arguments
    fields = path_fields(call)
    in_query = route.method in {"GET", "DELETE"}
    if fields or in_query:
        given = cast("Json", json.loads(arguments))
        for field in fields:
            value = given.pop(field)
            target = target.replace(f"{{{field}}}", quote(value, safe=""))
        body = json.dumps(given).encode()
        if in_query:
            pairs = [pair for name, value in given.items() for pair in _pairs(name, value)]
            target += f"?{urlencode(pairs)}" if pairs else ""
    return asked(place, route.method, target, None if in_query else body, token=token)


def path_fields(call: str) -> list[str]:
    return _PATH_FIELD.findall(BY_NAME[call].path)


def asked(
    place: Place,
    method: str,
    target: str,
    body: bytes | None = None,
    *,
    token: str | None = None,
    **headers: str,
) -> Reply:
    """Make any request; header names are written with underscores."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, data = _exchange(place, method, target, body, {**told, **_bearer(token)})
    return Reply(*read_http(status, data))


def read_http(status: int, data: bytes) -> tuple[str, Json]:
    try:
        value: object = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        return f"http {status}", {}
    found = cast("Json", value)
    return ("ok" if status == http.client.OK else str(found.get("error", found)["code"])), found


def _exchange(
    place: Place, method: str, target: str, body: bytes | None, headers: dict[str, str]
) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("localhost", timeout=PATIENCE_S)
    with place.connected() as connection.sock:
        kind = {} if body is None else {"content-type": "application/json"}
        with suppress(BrokenPipeError):  # refused before all of it was sent, which it will say
            connection.request(method, target, body, {**kind, **headers})
        with connection.getresponse() as response:
            return response.status, response.headers.get_content_type(), response.read()


def exchange(place: Place, data: bytes, answers: int, *, network: bool = False) -> list[str]:
    """Send bytes as they are, and hear so many answers; after one that closes there is no more."""
    codes: list[str] = []
    ended = False
    with place.connected(network=network) as client, client.makefile("rb") as lines:
        with suppress(BrokenPipeError, ConnectionResetError):
            client.sendall(data)
        for _ in range(answers):
            status, ended, body = _heard(lines)
            codes.append(read_http(status, body)[0])
        if ended:
            assert _to_the_end(lines) == b""
    return codes


def _heard(lines: BufferedReader) -> tuple[int, bool, bytes]:
    _, status, _ = lines.readline().split(b" ", 2)
    headers = http.client.parse_headers(lines)
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(lines.readline(), 16):
            body += lines.read(size)
            lines.readline()
        lines.readline()
    elif "content-length" in headers:
        body = lines.read(int(headers["content-length"]))
    else:
        body = _to_the_end(lines)
    return int(status), headers.get("connection", "").lower() == "close", body


def _to_the_end(lines: BufferedReader) -> bytes:
    data = b""
    with suppress(ConnectionResetError):  # it was hung up on with more still to read
        while more := lines.read1():
            data += more
    return data


def _bearer(token: str | None) -> dict[str, str]:
    return {} if token is None else {"authorization": f"Bearer {token}"}


def _pairs(name: str, value: object) -> list[tuple[str, str]]:
    match value:
        case list():
            return [(name, str(item)) for item in cast("list[object]", value)]
        case dict():
            members = cast("dict[str, object]", value).items()
            return [(f"{name}[{key}]", str(inner)) for key, inner in members]
        case bool():
            return [(name, str(value).lower())]
        case None:
            raise AssertionError(f"{name} is null, which a query cannot say")
        case _:
            return [(name, str(value))]


# The command line


def command(place: Place, token: str | None, words: Sequence[str], stdin: bytes = b"") -> Reply:
    # What follows two dashes is no option any more.
    end = words.index("--") if "--" in words else len(words)
    done = _run(place, token, [*words[:end], "--json", *words[end:]], stdin)
    if done.returncode == 0:
        return Reply("ok", json.loads(done.stdout))
    told = done.stderr.decode()
    assert "Traceback" not in told, told
    if said := _SAID.search(told):
        return Reply(said[1], {"stderr": told, "status": done.returncode})
    assert told.startswith("Usage: "), told
    return Reply("usage", {"stderr": told, "status": done.returncode})


def shown(place: Place, words: Sequence[str]) -> str:
    """What a command prints for people."""
    done = _run(place, None, words)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def _run(
    place: Place, token: str | None, words: Sequence[str], stdin: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(places.PREFIX)}
    env[places.SOCKET_VARIABLE] = str(place.socket)
    if token is not None:
        env[places.TOKEN_VARIABLE] = token
    return subprocess.run(
        [COMMAND, *words],
        input=stdin,
        env=env,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )

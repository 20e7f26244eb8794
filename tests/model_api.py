"""A scripted model API: a real HTTP server that answers as Anthropic's does, and OpenAI's.

    async with open_model_api([use("Bash", command="ls"), say("Done.")]) as api:
        ...  # run a client with ANTHROPIC_BASE_URL=api.url
    assert api.requests[0].body["model"] == "claude-sonnet-4-5"

A script is a list of turns, and a request gets the turn that its conversation has reached: the
turns the model took since the last prompt are counted in what the client sends, so nothing is kept
here and any number of conversations may go on at once. The last turn is repeated. A mapping has a
script for each prompt, by words that occur in it (`""`: any other); a function makes the turn.
Requests without tools are asides (titles, probes) and get a word. Paths with `/responses` and
`/chat/completions` are answered in OpenAI's form, which codex speaks, others in Anthropic's.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio
import h11
from anyio.abc import SocketAttribute

import model_forms
from model_script import Fail, Part, Say, Turn, Turns, Usage, Use, fail, say, turn, use, write

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from anyio.abc import ByteStream
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

__all__ = [
    "Fail",
    "ModelApi",
    "Part",
    "Received",
    "Say",
    "Turn",
    "Turns",
    "Usage",
    "Use",
    "fail",
    "open_model_api",
    "say",
    "turn",
    "use",
    "write",
]

PATIENCE_S = 60
_CHUNK = 1 << 16
# Claude Code sends its whole prompt as one line of JSON, and no header near this.
_MAX_HEAD = 1 << 18
# How each status is called in an error of Anthropic.
_KINDS = {
    400: ("invalid_request_error", "scripted"),
    401: ("authentication_error", "invalid x-api-key"),
    403: ("permission_error", "scripted"),
    404: ("not_found_error", "scripted"),
    413: ("request_too_large", "scripted"),
    429: ("rate_limit_error", "This request would exceed your rate limit"),
    500: ("api_error", "Internal server error"),
    529: ("overloaded_error", "Overloaded"),
}


@dataclass
class Received:
    """One request, as it came."""

    method: str
    target: str
    # Names in lower case; of a header that came twice, the last.
    headers: dict[str, str]
    raw: bytes
    body: dict[str, Any]
    # What it was answered; None until then.
    status: int | None = None
    # The client left before the answer was complete.
    hung_up: anyio.Event = field(default_factory=anyio.Event)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def key(self) -> str | None:
        """The credential it came with."""
        bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
        return self.headers.get("x-api-key") or bearer or None

    @property
    def streams(self) -> bool:
        return self.body.get("stream") is True

    @property
    def has_tools(self) -> bool:
        # Codex says them to newer models in the conversation.
        told = any(entry.get("type") == "additional_tools" for entry in self.entries)
        return told or bool(self.body.get("tools"))

    @property
    def openai(self) -> bool:
        return self.path.endswith(("/responses", "/chat/completions"))

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The conversation, in the words of whoever sent it."""
        said = self.body.get("input", self.body.get("messages", []))
        return [{"role": "user", "content": said}] if isinstance(said, str) else said

    @property
    def prompt(self) -> str:
        """The last prompt of the user, without what the client added by itself."""
        at = self._prompt_at()
        return "" if at is None else "\n".join(_texts(self.entries[at]))

    @property
    def turns_taken(self) -> int:
        """How often the model has answered since."""
        at = self._prompt_at()
        since = self.entries[(-1 if at is None else at) + 1 :]
        if not self.path.endswith("/responses"):
            return sum(entry.get("role") == "assistant" for entry in since)
        # A turn is several entries there; our names of calls tell which turn they were of.
        calls = [str(entry.get("call_id", "")).split("_") for entry in since]
        return max((int(name[1]) + 1 for name in calls if len(name) == 3), default=0)

    def _prompt_at(self) -> int | None:
        found = [at for at, entry in enumerate(self.entries) if _texts(entry)]
        return found[-1] if found else None


def _texts(entry: dict[str, Any]) -> list[str]:
    """Give the texts of a prompt; of any other entry, none."""
    content = entry.get("content", [])
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
    if entry.get("role") != "user":
        return []
    # A prompt that follows on a turn that was broken off stands behind what its tools said.
    results = [at for at, each in enumerate(blocks) if each.get("type") == "tool_result"]
    after = blocks[results[-1] + 1 :] if results else blocks
    texts = [str(each["text"]) for each in after if each.get("type") in {"text", "input_text"}]
    # What clients add stands in tags or brackets: <system-reminder>, [Request interrupted by user].
    return [text for text in texts if text and not text.lstrip().startswith(("<", "[Request"))]


Script: TypeAlias = "Turns | Mapping[str, Turns] | Callable[[Received], Part]"


@dataclass
class ModelApi:
    """The server, while it is open."""

    url: str
    _script: Script
    _keys: frozenset[str] | None
    _heard: MemoryObjectReceiveStream[Received]
    _hear: MemoryObjectSendStream[Received]
    requests: list[Received] = field(default_factory=list[Received])
    _failed: dict[int, int] = field(default_factory=dict[int, int])
    _numbers: count[int] = field(default_factory=count)

    async def next(self) -> Received:
        """Wait for the next request that nobody waited for yet; not for ever."""
        with anyio.fail_after(PATIENCE_S):
            return await self.heard()

    async def heard(self) -> Received:
        return await self._heard.receive()

    @property
    def conversation(self) -> list[Received]:
        """The requests that a model would have thought about, without asides."""
        return [each for each in self.requests if each.method == "POST" and each.has_tools]

    async def serve(self, stream: ByteStream) -> None:
        async with stream:
            connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD)
            # A client may break off at any moment, and say anything.
            with suppress(anyio.BrokenResourceError, anyio.EndOfStream, h11.RemoteProtocolError):
                while (request := await _read(stream, connection)) is not None:
                    self.requests.append(request)
                    self._hear.send_nowait(request)
                    await self._attend(stream, connection, request)
                    if connection.our_state is not h11.DONE:
                        return
                    connection.start_next_cycle()

    async def _attend(
        self, stream: ByteStream, connection: h11.Connection, request: Received
    ) -> None:
        """Answer, and stop when the client has gone."""

        async def watch() -> None:
            try:
                while True:
                    connection.receive_data(await stream.receive())
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                request.hung_up.set()
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(watch)
            try:
                await self._answer(_Sender(stream, connection, request), request)
            except anyio.BrokenResourceError:
                request.hung_up.set()
            group.cancel_scope.cancel()

    async def _answer(self, out: _Sender, request: Received) -> None:
        if self._keys is not None and request.key not in self._keys:
            await _refuse(out, request, Fail(401))
        elif request.method != "POST":
            found = request.path.endswith(("/models", "/hello")) or request.path == "/"
            await out.json(200 if found else 404, {"data": []} if found else _error(Fail(404)))
        elif request.path.endswith("/count_tokens"):
            await out.json(200, {"input_tokens": 100})
        elif request.openai or request.path.endswith("/messages"):
            part = self._choose(request)
            if isinstance(part, Fail):
                await _refuse(out, request, part)
            else:
                await self._take(out, request, part)
        else:
            await out.json(200, {})

    def _choose(self, request: Received) -> Turn | Fail:
        if callable(self._script):
            return _as_turn(self._script(request))
        if not request.has_tools:
            return Turn((Say("ok"),))
        script = self._script
        if isinstance(script, Mapping):
            script = next((turns for words, turns in script.items() if words in request.prompt), ())
        left = request.turns_taken
        chosen: Turn | Fail = Turn((Say("The script has no turn for this."),))
        for part in script:
            if isinstance(part, Fail) and part.times is not None:
                # It stands before the turn that is reached when it has failed often enough.
                if left == 0 and self._failed.get(id(part), 0) < part.times:
                    self._failed[id(part)] = self._failed.get(id(part), 0) + 1
                    return part
                continue
            chosen = _as_turn(part)
            if left == 0:
                break
            left -= 1
        return chosen

    async def _take(self, out: _Sender, request: Received, part: Turn) -> None:
        number = next(self._numbers)
        if request.path.endswith("/responses"):
            whole, events = model_forms.response(part, request, number)
        elif request.openai:
            whole, events = model_forms.completion(part, request, number)
        else:
            whole, events = model_forms.message(part, request, number)
        if request.streams:
            await out.stream(part, events)
        else:
            if part.pause is not None:
                await part.pause(0)
            await out.json(200, whole)


def _as_turn(part: Part) -> Turn | Fail:
    return Turn((part,)) if isinstance(part, Say | Use) else part


async def _read(stream: ByteStream, connection: h11.Connection) -> Received | None:
    """Read one request; None when the client is done."""
    head: h11.Request | None = None
    raw = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            if connection.they_are_waiting_for_100_continue:
                go_on = h11.InformationalResponse(status_code=100, headers=[])
                await stream.send(connection.send(go_on) or b"")
            try:
                connection.receive_data(await stream.receive(_CHUNK))
            except anyio.EndOfStream:
                connection.receive_data(b"")
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            raw += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            break
        else:
            return None
    body: dict[str, Any] = {}
    with suppress(ValueError):
        found: Any = json.loads(raw)
        body = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    headers = {name.decode().lower(): value.decode("latin-1") for name, value in head.headers}
    return Received(head.method.decode(), head.target.decode(), headers, bytes(raw), body)


@dataclass
class _Sender:
    """Where one answer goes."""

    stream_: ByteStream
    connection: h11.Connection
    request: Received

    async def json(
        self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> None:
        said = json.dumps(body).encode()
        fields = {
            "content-type": "application/json",
            "content-length": str(len(said)),
            "request-id": "req_scripted",
            **(headers or {}),
        }
        await self._head(status, fields)
        if self.request.method != "HEAD":
            await self._send(h11.Data(data=said))
        await self._send(h11.EndOfMessage())

    async def stream(self, part: Turn, events: list[bytes]) -> None:
        await self._head(200, {"content-type": "text/event-stream", "request-id": "req_scripted"})
        async for piece in _pieces(part, events):
            await self._send(h11.Data(data=piece))
        if part.cut_after is None:
            await self._send(h11.EndOfMessage())
        else:
            self.connection.send_failed()

    async def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.request.status = status
        await self._send(h11.Response(status_code=status, headers=list(headers.items())))

    async def _send(self, event: h11.Event) -> None:
        await self.stream_.send(self.connection.send(event) or b"")


async def _pieces(part: Turn, events: list[bytes]) -> AsyncIterator[bytes]:
    for number, event in enumerate(events[: part.cut_after]):
        if part.pause is not None:
            await part.pause(number)
        size = part.piece or len(event)
        for start in range(0, len(event), size):
            yield event[start : start + size]


def _error(part: Fail) -> dict[str, Any]:
    kind, message = _KINDS.get(part.status, ("api_error", "scripted"))
    error = {"type": part.kind or kind, "message": part.message or message}
    return {"type": "error", "error": error, "request_id": "req_scripted"}


async def _refuse(out: _Sender, request: Received, part: Fail) -> None:
    body = _error(part)
    if request.openai:
        error: dict[str, Any] = body["error"]
        body = {"error": {**error, "code": error["type"], "param": None}}
    await out.json(part.status, body, part.headers)


@asynccontextmanager
async def open_model_api(
    script: Script,
    *,
    keys: Sequence[str] | None = None,
    socket: Path | None = None,
    port: int = 0,
) -> AsyncGenerator[ModelApi]:
    """Answer by `script` until the block ends; whoever has none of `keys`, if given, is refused.

    It listens on a port of the loopback address, any one if it is 0, or on `socket`, where `url` is
    only a name.
    """
    if socket is not None:
        listener = await anyio.create_unix_listener(socket)
        url = "http://model.invalid"
    else:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
        port = listener.listeners[0].extra(SocketAttribute.local_port)  # noqa: S610 - not Django's
        url = f"http://127.0.0.1:{port}"
    send, receive = anyio.create_memory_object_stream[Received](math.inf)
    allowed = None if keys is None else frozenset(keys)
    api = ModelApi(url, script, allowed, receive, send)
    async with send, receive, listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, api.serve)
        yield api
        group.cancel_scope.cancel()

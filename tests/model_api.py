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
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio
import h11
from anyio.abc import SocketAttribute

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from anyio.abc import ByteStream
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

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


@dataclass(frozen=True)
class Usage:
    """What a turn says it took, in tokens."""

    input: int = 1000
    output: int = 50
    cache_write: int = 0
    cache_read: int = 200


@dataclass(frozen=True)
class Say:
    """The model writes text."""

    text: str


@dataclass(frozen=True)
class Use:
    """The model calls a tool."""

    name: str
    input: Mapping[str, Any]


@dataclass(frozen=True)
class Turn:
    """What the model does between two answers of its client."""

    blocks: tuple[Say | Use, ...]
    usage: Usage = Usage()
    # Awaited with the number of each event of a stream before it is sent.
    pause: Callable[[int], Awaitable[None]] | None = None
    # The connection breaks after so many events.
    cut_after: int | None = None
    # A stream is sent in pieces of so many bytes, whatever events they cut through.
    piece: int | None = None


@dataclass(frozen=True)
class Fail:
    """An error in place of an answer: `times` times, and then the next turn; else always."""

    status: int
    times: int | None = None
    kind: str | None = None
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


Part: TypeAlias = Turn | Fail | Say | Use
Turns: TypeAlias = Sequence[Part]


def say(text: str) -> Say:
    return Say(text)


def use(tool: str, /, **given: Any) -> Use:
    return Use(tool, given)


def turn(*blocks: Say | Use, usage: Usage | None = None) -> Turn:
    """Several blocks in one turn."""
    return Turn(blocks, usage or Usage())


def fail(
    status: int, *, times: int | None = None, kind: str | None = None, message: str | None = None
) -> Fail:
    return Fail(status, times, kind, message)


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
    if entry.get("role") != "user" or any(each.get("type") == "tool_result" for each in blocks):
        return []
    texts = [str(each["text"]) for each in blocks if each.get("type") in {"text", "input_text"}]
    # What clients add stands in tags: <system-reminder>, <environment_context>.
    return [text for text in texts if text and not text.lstrip().startswith("<")]


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
        return [each for each in self.requests if each.method == "POST" and each.body.get("tools")]

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
        if not request.body.get("tools"):
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
            whole, events = _response(part, request, number)
        elif request.openai:
            whole, events = _completion(part, request, number)
        else:
            whole, events = _message(part, request, number)
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


def _sse(kind: str, /, **given: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **given})}\n\n".encode()


def _message(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/messages`, whole and as events."""
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": each.text}
        if isinstance(each, Say)
        else {
            "type": "tool_use",
            "id": f"toolu_{number:04}x{at}",
            "name": each.name,
            "input": dict(each.input),
        }
        for at, each in enumerate(part.blocks)
    ]
    usage = {
        "input_tokens": part.usage.input,
        "cache_creation_input_tokens": part.usage.cache_write,
        "cache_read_input_tokens": part.usage.cache_read,
        "output_tokens": part.usage.output,
    }
    uses = any(isinstance(each, Use) for each in part.blocks)
    whole = {
        "id": f"msg_{number:06}",
        "type": "message",
        "role": "assistant",
        "model": request.body.get("model"),
        "content": blocks,
        "stop_reason": "tool_use" if uses else "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }
    begun = {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events = [_sse("message_start", message=begun), _sse("ping")]
    for at, block in enumerate(blocks):
        shell: dict[str, Any]
        if block["type"] == "text":
            shell, name, text = {**block, "text": ""}, "text", block["text"]
        else:
            shell = {**block, "input": dict[str, Any]()}
            name, text = "partial_json", json.dumps(block["input"])
        kind = "text_delta" if name == "text" else "input_json_delta"
        events.append(_sse("content_block_start", index=at, content_block=shell))
        half = len(text) // 2
        events += [
            _sse("content_block_delta", index=at, delta={"type": kind, name: piece})
            for piece in (text[:half], text[half:])
        ]
        events.append(_sse("content_block_stop", index=at))
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    events.append(_sse("message_delta", delta=ended, usage={"output_tokens": part.usage.output}))
    return whole, [*events, _sse("message_stop")]


def _response(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/responses`, whole and as events."""
    items: list[dict[str, Any]] = [
        {
            "type": "message",
            "id": f"item_{number}_{at}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": each.text, "annotations": []}],
        }
        if isinstance(each, Say)
        else {
            "type": "function_call",
            "id": f"item_{number}_{at}",
            "call_id": f"call_{request.turns_taken}_{at}",
            "name": each.name,
            "arguments": json.dumps(dict(each.input)),
            "status": "completed",
        }
        for at, each in enumerate(part.blocks)
    ]
    taken = part.usage.input + part.usage.cache_read
    begun: dict[str, Any] = {
        "id": f"resp_{number}",
        "object": "response",
        "created_at": 0,
        "model": request.body.get("model"),
        "status": "in_progress",
        "output": [],
        "usage": None,
    }
    whole = {
        **begun,
        "status": "completed",
        "output": items,
        "usage": {
            "input_tokens": taken,
            "input_tokens_details": {"cached_tokens": part.usage.cache_read},
            "output_tokens": part.usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": taken + part.usage.output,
        },
    }
    events = [_sse("response.created", response=begun)]
    for at, item in enumerate(items):
        events.append(_sse("response.output_item.added", output_index=at, item=item))
        if item["type"] == "message":
            text = item["content"][0]["text"]
            where = {"item_id": item["id"], "output_index": at, "content_index": 0}
            events.append(_sse("response.output_text.delta", **where, delta=text))
        events.append(_sse("response.output_item.done", output_index=at, item=item))
    return whole, [*events, _sse("response.completed", response=whole)]


def _completion(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/chat/completions`, whole and as events."""
    calls = [
        {
            "index": at,
            "id": f"call_{number}_{at}",
            "type": "function",
            "function": {"name": each.name, "arguments": json.dumps(dict(each.input))},
        }
        for at, each in enumerate(part.blocks)
        if isinstance(each, Use)
    ]
    text = "".join(each.text for each in part.blocks if isinstance(each, Say))
    said: dict[str, Any] = {"role": "assistant", "content": text or None}
    if calls:
        said["tool_calls"] = calls
    taken = part.usage.input + part.usage.cache_read
    usage = {
        "prompt_tokens": taken,
        "completion_tokens": part.usage.output,
        "total_tokens": taken + part.usage.output,
        "prompt_tokens_details": {"cached_tokens": part.usage.cache_read},
    }
    base = {"id": f"chatcmpl-{number}", "created": 0, "model": request.body.get("model")}
    ended = "tool_calls" if calls else "stop"
    choice = {"index": 0, "message": said, "finish_reason": ended}
    whole = {**base, "object": "chat.completion", "choices": [choice], "usage": usage}
    chunk = {**base, "object": "chat.completion.chunk"}
    parts: list[dict[str, Any]] = [
        {**chunk, "choices": [{"index": 0, "delta": said, "finish_reason": None}]},
        {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": ended}]},
    ]
    if request.body.get("stream_options", {}).get("include_usage"):
        parts.append({**chunk, "choices": [], "usage": usage})
    events = [f"data: {json.dumps(each)}\n\n".encode() for each in parts]
    return whole, [*events, b"data: [DONE]\n\n"]


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

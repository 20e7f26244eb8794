"""What a model's answer says it took, read as the answer passes.

Anthropic tells it in `message_start` and `message_delta`, OpenAI in `response.completed` or in the
last piece of a completion; an answer that is no stream has it in its JSON. An answer that broke off
before it was told, or tells nothing, is estimated: a guest must not get for nothing what it hangs
up on. One that OpenAI goes on with in the background, whoever hangs up, counts as the longest that
there is. Nothing is kept of an answer but a line or, where it is no stream, its beginning. Above
stands the forwarding of requests.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

# `response.completed` repeats the whole answer in one line; no answer of a model is longer.
_LINE_MOST = 8 << 20
_JSON_MOST = 8 << 20
# Numbers beyond this are no numbers of tokens.
_TOKENS_MOST = 10**9
_BYTES_A_TOKEN = 4
# What no model writes more of in one answer. `max_output_tokens` may be less, but says nothing of
# what the API reads again for each of its own tools, or has kept of earlier answers.
_OUTPUT_MOST = 128_000
_MODEL_MOST = 200
# Events that end an answer of OpenAI, each with the usage in its response.
_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
# How a response stands that the API does not go on with.
_OVER = frozenset({"completed", "incomplete", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a request took. `input` does not hold what was read from or written to a cache."""

    input: int = 0
    output: int = 0
    cache_write: int = 0
    cache_read: int = 0
    # Counted by length, because the answer did not say.
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.input + self.output + self.cache_write + self.cache_read

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(
            self.input + other.input,
            self.output + other.output,
            self.cache_write + other.cache_write,
            self.cache_read + other.cache_read,
            self.estimated or other.estimated,
        )


class AnswerReader:
    """Reads one answer of a model API, in the pieces that it comes in."""

    def __init__(self, *, stream: bool) -> None:
        self.model: str | None = None
        self._stream = stream
        self._tokens = Tokens()
        # Whether input and output are told for good.
        self._told_input = False
        self._told_output = False
        # The API gave up before it began, which it takes nothing for.
        self._failed = False
        # The API goes on with it whoever hangs up.
        self._in_background = False
        self._line = bytearray()
        self._skipping = False
        # Length of what the model has written, as far as it passed.
        self._written = 0

    def feed(self, data: bytes) -> None:
        if not self._stream:
            self._written += len(data)
            if len(self._line) + len(data) <= _JSON_MOST:
                self._line += data
            else:
                self._skipping = True
            return
        *whole, rest = data.split(b"\n")
        for line in whole:
            self._hold(line)
            if not self._skipping:
                self._read_line(bytes(self._line))
            self._line.clear()
            self._skipping = False
        self._hold(rest)

    def _hold(self, part: bytes) -> None:
        if len(self._line) + len(part) > _LINE_MOST:
            self._written += len(self._line) + len(part)
            self._line.clear()
            self._skipping = True
        elif self._skipping:
            self._written += len(part)
        else:
            self._line += part

    def finish(self, sent: int) -> Tokens:
        """Give the sum, once nothing more comes; `sent` is the length of what was asked."""
        if not self._stream and not self._skipping:
            self._read(_parsed(bytes(self._line)))
        tokens = self._tokens
        if self._failed and not self._told_input:
            return tokens
        if not self._told_input:
            tokens = replace(tokens, input=-(-sent // _BYTES_A_TOKEN), estimated=True)
        if not self._told_output:
            least = -(-self._written // _BYTES_A_TOKEN)
            if self._in_background:
                least = max(least, _OUTPUT_MOST)
            tokens = replace(tokens, output=max(tokens.output, least), estimated=True)
        return tokens

    def _read_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if field != b"data":
            return
        # Most lines are pieces of text, which only count by their length.
        if (
            b'"usage"' in value
            or b'"message_' in value
            or b'"response.' in value
            or b'"error"' in value
        ):
            self._read(_parsed(value))
        else:
            self._note_piece(value)

    def _read(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                message = _inside(event, "message")
                self._note_model(message)
                self._note(_inside(message, "usage"), ends=False)
            case "message_delta":
                self._note(_inside(event, "usage"), ends=True)
            case "error":
                self._failed = True
            case str() as kind if kind.startswith("response."):
                response = _inside(event, "response")
                self._note_model(response)
                self._note_background(response)
                if kind in _ENDS:
                    self._note(_inside(response, "usage"), ends=True)
                else:
                    self._note_written(event)
            case _:
                self._note_model(event)
                self._note_background(event)
                self._note(_inside(event, "usage"), ends=True)
                self._note_written(event)

    def _note_piece(self, value: bytes) -> None:
        """Count a piece of text by the text in it."""
        if b'delta"' in value:
            self._note_written(_parsed(value))

    def _note_written(self, event: Mapping[str, Any]) -> None:
        if not self._stream:
            return
        delta = event.get("delta")
        choices = event.get("choices")
        if isinstance(choices, list):
            for choice in cast("list[object]", choices):
                self._written += _length(_inside(_mapping(choice), "delta"))
        elif isinstance(delta, str):
            self._written += len(delta)
        else:
            self._written += _length(_mapping(delta))

    def _note_model(self, told: Mapping[str, Any]) -> None:
        model = told.get("model")
        if isinstance(model, str) and 0 < len(model) <= _MODEL_MOST and model.isprintable():
            self.model = model

    def _note_background(self, response: Mapping[str, Any]) -> None:
        # One that is not in the background is never queued, and whole where it is no stream.
        status = response.get("status")
        if status in _OVER:
            self._in_background = False
        elif (
            response.get("background") is True
            or status == "queued"
            or (status == "in_progress" and not self._stream)
        ):
            self._in_background = True

    def _note(self, usage: Mapping[str, Any], *, ends: bool) -> None:
        """Take over the numbers that are there; the last that is said of each holds."""
        had = self._tokens
        given = _number(usage, "input_tokens", "prompt_tokens")
        written = _number(usage, "output_tokens", "completion_tokens")
        # Of OpenAI, what was in a cache is part of the input; of Anthropic it is not.
        details = _inside(usage, "input_tokens_details") or _inside(usage, "prompt_tokens_details")
        cached = _number(details, "cached_tokens")
        read = _number(usage, "cache_read_input_tokens") if cached is None else cached
        if given is not None and cached is not None:
            given = max(0, given - cached)
        write = _number(usage, "cache_creation_input_tokens")
        self._tokens = Tokens(
            had.input if given is None else given,
            had.output if written is None else written,
            had.cache_write if write is None else write,
            had.cache_read if read is None else read,
        )
        self._told_input |= given is not None
        self._told_output |= ends and written is not None


def _parsed(text: bytes) -> Mapping[str, Any]:
    try:
        return _mapping(json.loads(text))
    except (ValueError, RecursionError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _inside(value: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return _mapping(value.get(name))


def _number(usage: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = usage.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TOKENS_MOST:
            return value
    return None


def _length(delta: Mapping[str, Any]) -> int:
    """Give the length of the texts in a piece: what was said, thought, or put into a tool."""
    length = 0
    layer: list[object] = [value for name, value in delta.items() if name != "type"]
    for _ in range(4):
        inner: list[object] = []
        for each in layer:
            if isinstance(each, str):
                length += len(each)
            elif isinstance(each, list):
                inner += cast("list[object]", each)
            else:
                inner += _mapping(each).values()
        layer = inner
    return length

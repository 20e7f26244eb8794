"""A turn of a scripted model as each API writes it: whole, and as the events of a stream."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from model_script import Say, Use

if TYPE_CHECKING:
    from model_api import Received
    from model_script import Turn


def _sse(kind: str, /, **given: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **given})}\n\n".encode()


def _fields(used: Use) -> dict[str, Any]:
    return {"text": used.input} if isinstance(used.input, str) else dict(used.input)


def message(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/messages`, whole and as events."""
    blocks: list[dict[str, Any]] = [
        {"type": "text", "text": each.text}
        if isinstance(each, Say)
        else {
            "type": "tool_use",
            "id": f"toolu_{number:04}x{at}",
            "name": each.name,
            "input": _fields(each),
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


def _item(block: Say | Use, request: Received, name: str, at: int) -> dict[str, Any]:
    if isinstance(block, Say):
        return {
            "type": "message",
            "id": f"item_{name}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": block.text, "annotations": []}],
        }
    called = {
        "id": f"item_{name}",
        "call_id": f"call_{request.turns_taken}_{at}",
        "name": block.name,
        "status": "completed",
    }
    if isinstance(block.input, str):
        # Where codex keeps the tools that take text.
        return {
            **called,
            "type": "custom_tool_call",
            "namespace": "functions",
            "input": block.input,
        }
    return {**called, "type": "function_call", "arguments": json.dumps(_fields(block))}


def response(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/responses`, whole and as events."""
    items = [_item(each, request, f"{number}_{at}", at) for at, each in enumerate(part.blocks)]
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


def completion(part: Turn, request: Received, number: int) -> tuple[dict[str, Any], list[bytes]]:
    """Answer `POST /v1/chat/completions`, whole and as events."""
    calls = [
        {
            "index": at,
            "id": f"call_{number}_{at}",
            "type": "function",
            "function": {"name": each.name, "arguments": json.dumps(_fields(each))},
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

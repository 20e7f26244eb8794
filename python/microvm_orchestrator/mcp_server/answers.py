"""What a service call's answer or refusal looks like as a tool result.

An answer goes out twice by the protocol's wish, as data and as text for older clients: both come
from one compact dump. A refusal is text only, because clients that show the text of an error drop
its data: the stable code, the sentence, and the next step on a line of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mcp.types import CallToolResult, TextContent
from pydantic_core import from_json

from microvm_orchestrator import log

if TYPE_CHECKING:
    from pydantic import BaseModel

    from microvm_orchestrator.errors import OrchestratorError

_log = log.get(__name__)


def answer_result(answer: BaseModel) -> CallToolResult:
    text = answer.model_dump_json()
    return CallToolResult(
        content=[TextContent(type="text", text=text)], structured_content=from_json(text)
    )


def error_text(error: OrchestratorError) -> str:
    hint = f"\n\nhint: {error.hint}" if error.hint else ""
    return f"{error.code}: {error.message}{hint}"


def error_result(error: OrchestratorError) -> CallToolResult:
    return _refusal(error_text(error))


def crash_result(name: str, error: Exception) -> CallToolResult:
    """Answer for a bug of ours: the log gets the story, the client a sentence without it."""
    _log.error("call_crashed", call=name, exc_info=error)
    return _refusal(f"internal-error: {name} failed in the daemon\n\nhint: see the daemon's log")


def _refusal(text: str) -> CallToolResult:
    return CallToolResult(content=[TextContent(type="text", text=text)], is_error=True)

"""What a guest says of its own run: `POST /report` with a small JSON object.

    {"kind": "progress", "message": "half of it", "fraction": 0.5}

`kind` is `started`, `progress`, `heartbeat`, `result` or `reply`; `message` is text, `fraction` a
number from 0 to 1, `data` any JSON. Only `kind` must be there, and nothing else may. The answer is
204, or 400 with what is wrong; 429 when there are too many. Who says it is known by the endpoint it
is said to; that it is true is not.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import anyio
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from microvm_orchestrator import errors, log
from microvm_orchestrator.egress.http import Connection, Head, Refusal
from microvm_orchestrator.model.values import Json

PATH = "/report"
REPORT_MOST = 65_536
# A second's worth, and how much may be saved up: far more than any run has to say.
_RATE = 20.0
_BURST = 100.0
_log = log.get(__name__)


class Report(BaseModel):
    """One thing a guest says. It is bytes from an attacker, within bounds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["started", "progress", "heartbeat", "result", "reply"]
    message: Annotated[str, Field(max_length=16_384)] = ""
    fraction: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    data: Json = None


OnReport = Callable[[Report], Awaitable[None]]


class Reports:
    """The reports of one run."""

    def __init__(self, on_report: OnReport | None) -> None:
        self._on_report = on_report
        self._left = _BURST
        self._at = anyio.current_time()

    async def serve(self, connection: Connection, head: Head) -> None:
        """Take one. Raises: Refusal."""
        if self._on_report is None or head.method != "POST":
            raise Refusal(404 if self._on_report is None else 405, "reports are sent by POST")
        text = bytearray()
        async for piece in connection.body(REPORT_MOST):
            text += piece
        if not self._may():
            raise Refusal(429, f"more than {_RATE:g} reports a second")
        try:
            await self._on_report(_read(bytes(text)))
        except errors.OrchestratorError as error:
            _log.warning("report_not_taken", code=error.code, reason=error.message)
            raise Refusal(503, "the report could not be kept now") from None
        await connection.begin(204, [])
        await connection.end()

    def _may(self) -> bool:
        now = anyio.current_time()
        self._left = min(_BURST, self._left + (now - self._at) * _RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


def _read(text: bytes) -> Report:
    try:
        told: JsonValue = json.loads(text)
        # A half of a surrogate pair in any text, also in the message.
        json.dumps(told, ensure_ascii=False).encode()
        return Report.model_validate(told)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        wrong = "; ".join(
            f"{'.'.join(str(step)[:40] for step in each['loc']) or 'report'}: {each['msg']}"
            for each in problems[:4]
        )
        raise Refusal(400, f"the report is not as it should be: {wrong[:500]}") from None
    except (ValueError, RecursionError):
        raise Refusal(400, "the report is no JSON object") from None

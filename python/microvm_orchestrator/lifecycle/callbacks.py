"""What a program says of itself while it runs: HTTP on a port of its guest, with a token.

    POST /callback/<job>/status     {"job_id", "progress", "output"?}
    POST /callback/<job>/complete   {"job_id", "status", "exit_code", "output", ...}
    POST /callback/<job>/heartbeat
    GET  /health

The port is in the guest alone and leads here through its channel, so who connects is that run and
no other; the token tells its program from whatever else runs there. None of it is believed beyond
being kept as the program's own word: how it ended, its process tells. Above are the steps of a run;
below, HTTP that is read with suspicion.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from microvm_orchestrator import errors, log
from microvm_orchestrator.egress.http import Connection, Head, Patience, Refusal
from microvm_orchestrator.lifecycle.port import held_open
from microvm_orchestrator.model.run import Callbacks, Reported
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.splice import GONE
from microvm_orchestrator.together import beside

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream

    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.lifecycle.silence import Silence
    from microvm_orchestrator.machine.base import Machine as RunningMachine

# In a run's folder: the token must be the same after a restart of the daemon.
TOKEN = "callback-token"  # noqa: S105 - the name of a file
BODY_MOST = 1 << 20
# Of what it says, as much as is kept.
OUTPUT_MOST = 1 << 16
_PROGRESS_MOST = 1000
_CONNECTIONS_MOST = 16
# A second's worth of callbacks, and how many may be saved up.
_RATE = 20.0
_BURST = 100.0
# What comes faster than this is written down as one.
_WRITE_EVERY_S = 0.5
_PROBLEMS_TOLD = 8
_log = log.get(__name__)

Words = Annotated[str, Field(max_length=BODY_MOST)]


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Status(_Told):
    """How far a program is."""

    job_id: Words
    progress: Words
    output: Words | None = None


class Complete(_Told):
    """How a program says that it ended."""

    job_id: Words
    status: Literal["success", "failed"]
    exit_code: Annotated[int, Field(ge=-(1 << 31), lt=1 << 32)]
    output: Words
    artifacts: Annotated[list[JsonValue], Field(max_length=1000)] | None = None
    duration_seconds: Annotated[float, Field(allow_inf_nan=False)]
    error: Words | None = None


class Desk:
    """Takes the callbacks of one run, and writes down the last of each kind."""

    def __init__(self, run: Run, spec: Callbacks, token: str, silence: Silence | None) -> None:
        self._run = run
        self._spec = spec
        self._token = token
        self._silence = silence
        self._connections = anyio.CapacityLimiter(_CONNECTIONS_MOST)
        self._left = _BURST
        self._at = anyio.current_time()
        self._news: Reported | None = None
        self._rung = anyio.Event()

    async def serve(self, stream: ByteStream) -> None:
        """Serve one connection of the guest until either side ends it."""
        async with stream, self._connections:
            try:
                await self._serve(Connection(stream, Patience(idle=30.0)))
            except GONE:
                pass  # the guest has left
            except errors.OrchestratorError as error:
                _log.warning("callback_not_taken", code=error.code, reason=error.message)

    async def _serve(self, connection: Connection) -> None:
        while True:
            try:
                head = await connection.request()
            except Refusal as refusal:
                await _say(connection, refusal.status, {"error": refusal.why}, last=True)
                return
            if head is None:
                return
            try:
                status, told = await self._answer(connection, head)
            except Refusal as refusal:
                status, told = refusal.status, {"error": refusal.why}
            await _say(connection, status, told)
            if not connection.next_cycle():
                return

    async def _answer(self, connection: Connection, head: Head) -> tuple[int, dict[str, JsonValue]]:
        """Raises: Refusal."""
        if head.path == "/health" and head.method == "GET":
            return 200, {"status": "ok"}
        match head.path.split("/"):
            case ["", "callback", job, ("complete" | "status" | "heartbeat") as what]:
                pass
            case _:
                raise Refusal(404, "Not found")
        if head.method != "POST":
            raise Refusal(405, "callbacks are sent by POST")
        # Before anything else: who has no token learns nothing, not even which job is here.
        if not self._knows(head):
            raise Refusal(401, "Unauthorized")
        if job != self._spec.job_id:
            raise Refusal(404, "Job not found")
        text = b"".join([piece async for piece in connection.body(BODY_MOST)])
        if not self._may():
            raise Refusal(429, f"more than {_RATE:g} callbacks a second")
        if self._silence is not None:
            self._silence.broken()
        if what != "heartbeat":
            try:
                await self._take(what, text)
            except ValidationError as error:
                return 400, {"error": "Invalid payload", "details": _problems(error)}
        return 200, {"received": True}

    def _knows(self, head: Head) -> bool:
        given = head.get("authorization") or ""
        scheme, _, token = given.partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            token.strip().encode(), self._token.encode()
        )

    def _may(self) -> bool:
        now = anyio.current_time()
        self._left = min(_BURST, self._left + (now - self._at) * _RATE)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True

    async def _take(self, what: str, text: bytes) -> None:
        """Raises: ValidationError; Refusal for a body that is of another job."""
        model = Status if what == "status" else Complete
        said = model.model_validate_json(text)
        if said.job_id != self._spec.job_id:
            raise Refusal(400, "Invalid payload: it names another job")
        known = self._news or self._run.record.reported
        if known is not None and known.status is not None:
            return  # it said that it ended, and says no more
        at = moment(await self._run.store.now())
        before = known or Reported(at=at)
        output = before.output if said.output is None else said.output[-OUTPUT_MOST:]
        update: dict[str, object] = {"at": at, "output": _whole(output)}
        if isinstance(said, Status):
            update["progress"] = _whole(" ".join(said.progress.split())[:_PROGRESS_MOST])
            self._run.said = f"{update['progress']}"
        else:
            error = None if said.error is None else _whole(said.error[-OUTPUT_MOST:])
            update |= {"status": said.status, "exit_code": said.exit_code, "error": error}
        self._news = before.model_copy(update=update)
        self._rung.set()

    async def write_down(self) -> None:
        """Write down what is new as it comes, until cancelled."""
        while True:
            await self._rung.wait()
            self._rung = anyio.Event()
            await self.flush()
            await anyio.sleep(_WRITE_EVERY_S)

    async def flush(self) -> None:
        news = self._news
        if news is None or news == self._run.record.reported:
            return
        # Whoever gives up meanwhile shall not leave it unknown whether that was written. It is not
        # worth a run: where another daemon has taken that over, its next step finds out.
        with anyio.CancelScope(shield=True), suppress(errors.OrchestratorError):
            await self._run.learn("reported", reported=news)


@asynccontextmanager
async def taking_callbacks(
    run: Run, machine: RunningMachine, folder: Path, silence: Silence | None
) -> AsyncGenerator[Mapping[str, str]]:
    """Take what the program says until the block ends; gives what it is told of where to say it."""
    spec = run.spec.callbacks
    if spec is None:
        yield {}
        return
    token = await anyio.to_thread.run_sync(_token, folder / TOKEN)
    desk = Desk(run, spec, token, silence)
    async with beside(desk.write_down), held_open(machine, spec.port, desk.serve):
        yield {
            "JOB_ID": spec.job_id,
            "CALLBACK_URL": f"http://127.0.0.1:{spec.port}",
            "JOB_TOKEN": token,
        }
    await desk.flush()


async def _say(
    connection: Connection, status: int, told: Mapping[str, JsonValue], *, last: bool = False
) -> None:
    text = json.dumps(told, separators=(",", ":")).encode()
    await connection.answer(status, text, "application/json", last=last)


def _token(path: Path) -> str:
    """Read the token of a run, or make it."""
    with suppress(FileNotFoundError):
        return path.read_text()
    token = secrets.token_urlsafe(32)
    beside_it = path.with_suffix(".new")
    beside_it.unlink(missing_ok=True)
    with open(os.open(beside_it, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 - a handle
        file.write(token)
    beside_it.rename(path)
    return token


def _whole(text: str | None) -> str | None:
    """Leave nothing in a text that cannot be stored or sent."""
    return None if text is None else text.encode(errors="replace").decode()


def _problems(error: ValidationError) -> list[JsonValue]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [
        f"{'.'.join(str(step)[:40] for step in each['loc']) or 'payload'}: {each['msg']}"
        for each in found[:_PROBLEMS_TOLD]
    ]

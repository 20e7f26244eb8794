"""Callbacks from a guest: read with suspicion, bounded, and kept as the program's own word."""

from __future__ import annotations

import json
import socket
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from anyio.abc import SocketStream

from calling import PATIENCE_S, House, house
from microvm_orchestrator.lifecycle.callbacks import BODY_MOST, OUTPUT_MOST, Desk
from microvm_orchestrator.lifecycle.run import Run
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.run import RUN, Callbacks, RunRecord, RunSpec
from microvm_orchestrator.model.values import moment
from microvm_orchestrator.store.base import Address, Ref
from microvm_orchestrator.store.questions import OneTask, RecordById

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

JOB = "the-job"
TOKEN = "the-token-of-the-job"
SPEC = Callbacks(job_id=JOB)
END = {
    "job_id": JOB,
    "status": "success",
    "exit_code": 0,
    "output": "out",
    "duration_seconds": 1.5,
}


@dataclass
class Guest:
    """A program in a guest, and the run that it speaks of."""

    run: Run
    kept: House
    desk: Desk

    async def post(
        self, what: str, told: object = None, *, token: str = TOKEN, job: str = JOB
    ) -> httpx2.Response:
        content = told if isinstance(told, bytes) else json.dumps(told).encode()
        return await self.send("POST", f"/callback/{job}/{what}", content, token)

    async def send(
        self, method: str, path: str, content: bytes = b"", token: str = TOKEN
    ) -> httpx2.Response:
        """Make one request over a connection of its own, as it comes through the channel."""
        ours, theirs = socket.socketpair()
        answer = bytearray()
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
            f"content-length: {len(content)}\r\nconnection: close\r\n\r\n"
        )
        with anyio.fail_after(PATIENCE_S):
            async with (
                await SocketStream.from_socket(ours) as stream,
                anyio.create_task_group() as group,
            ):
                group.start_soon(self.desk.serve, await SocketStream.from_socket(theirs))

                async def hear() -> None:
                    async for data in stream:
                        answer.extend(data)

                group.start_soon(hear)
                # It may have heard enough before the end.
                with suppress(anyio.BrokenResourceError):
                    await stream.send(head.encode() + content)
        status, _, body = bytes(answer).partition(b"\r\n\r\n")
        return httpx2.Response(int(status.split()[1]), content=body)

    async def reported(self) -> dict[str, Any] | None:
        """Give what is written down."""
        await self.desk.flush()
        stored = await self.kept.store.query(RecordById(RUN, self.run.record.run_id), SYSTEM)
        assert stored is not None
        told: Any = stored.body["reported"]
        return told


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncGenerator[Guest]:
    async with _guest(tmp_path) as guest:
        yield guest


@asynccontextmanager
async def _guest(path: Path) -> AsyncGenerator[Guest]:
    async with house(path) as kept:
        task_id = (await kept.ask("task_submit", title="a task"))["task_id"]
        task = await kept.store.query(OneTask(task_id), SYSTEM)
        record = RunRecord(
            run_id=f"{task_id}.1",
            task_id=task_id,
            owner="somebody",
            started_at=moment(await kept.store.now()),
        )
        spec = RunSpec(kind="command", argv=["true"], callbacks=SPEC)
        run = Run(task, spec, Ref(Address(task_id), 1, "host"), record, 0, kept.store)
        await run.learn("begun")
        yield Guest(run, kept, Desk(run, SPEC, TOKEN, None))


async def test_what_a_program_says_is_kept_until_it_says_that_it_ended(guest: Guest) -> None:
    assert (await guest.send("GET", "/health", token="")).json() == {"status": "ok"}
    assert (await guest.post("heartbeat")).json() == {"received": True}
    assert await guest.reported() is None
    half = {"job_id": JOB, "progress": "half\n of it", "output": "so far"}
    assert (await guest.post("status", half)).json() == {"received": True}
    told = await guest.reported()
    assert told is not None
    assert (told["progress"], told["output"], told["status"]) == ("half of it", "so far", None)
    assert (await guest.post("complete", {**END, "artifacts": [1], "more": 2})).status_code == 200
    assert (await guest.post("status", {**half, "progress": "late"})).status_code == 200
    assert (await guest.post("complete", {**END, "status": "failed"})).status_code == 200
    told = await guest.reported()
    assert told is not None
    assert (told["progress"], told["output"]) == ("half of it", "out")
    assert (told["status"], told["exit_code"]) == ("success", 0)


async def test_who_has_no_token_is_told_nothing_and_changes_nothing(guest: Guest) -> None:
    for job in (JOB, "another"):
        for what in ("status", "complete", "heartbeat"):
            for token in ("", "x", TOKEN + "x", TOKEN[:-1]):
                answer = await guest.post(what, END, token=token, job=job)
                assert (answer.status_code, answer.json()) == (401, {"error": "Unauthorized"})
    assert await guest.reported() is None
    assert (await guest.post("status", {}, job="another")).json() == {"error": "Job not found"}


WRONG: list[tuple[str, object]] = [
    ("status", b"no JSON"),
    ("status", b"\xff\xfe"),
    ("status", b"[" * 100_000),
    ("status", {"job_id": JOB}),
    ("status", {"job_id": "another", "progress": "x"}),
    ("status", {"job_id": JOB, "progress": 7}),
    ("complete", {**END, "status": "done"}),
    ("complete", {**END, "exit_code": "0"}),
    ("complete", {**END, "duration_seconds": "long"}),
    ("complete", {**END, "exit_code": 1 << 40}),
]


async def test_what_is_no_callback_is_refused_and_not_kept(guest: Guest) -> None:
    for what, told in WRONG:
        answer = await guest.post(what, told)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith("Invalid payload")
    assert await guest.reported() is None


async def test_what_is_kept_of_a_callback_is_bounded(guest: Guest) -> None:
    long = {"job_id": JOB, "progress": "p" * 5000, "output": "a" * OUTPUT_MOST + "the end"}
    assert (await guest.post("status", long)).status_code == 200
    told = await guest.reported()
    assert told is not None
    assert len(told["progress"]) == 1000
    assert len(told["output"]) == OUTPUT_MOST
    assert told["output"].endswith("the end")
    assert (await guest.post("status", b"x" * (BODY_MOST + 1))).status_code == 413
    assert (await guest.send("GET", f"/callback/{JOB}/status")).status_code == 405
    assert (await guest.send("POST", "/callback")).status_code == 404


async def test_who_says_too_much_is_told_to_wait(guest: Guest) -> None:
    codes = {(await guest.post("heartbeat")).status_code for _ in range(100)}
    while 429 not in codes:
        codes.add((await guest.post("heartbeat")).status_code)
    assert codes == {200, 429}

from __future__ import annotations

import json
import re
import select
import socket
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path

PATH = "/v1/events/stream"


class Messages:
    """The messages of a stream, as (id, data)."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines

    async def next(self) -> tuple[str, list[str]]:
        fields: dict[str, str] = {}
        with anyio.fail_after(5):
            async for line in self._lines:
                if not line:
                    break
                name, _, value = line.partition(": ")
                fields[name] = value
        told: dict[str, Any] = json.loads(fields.get("data", '{"events": []}'))
        return fields["id"], [event["kind"] for event in told["events"]]

    async def until(self, kind: str) -> tuple[str, list[str]]:
        kinds: list[str] = []
        while True:
            cursor, more = await self.next()
            kinds += more
            if kind in kinds:
                return cursor, kinds


@asynccontextmanager
async def listening(
    here: Served, query: str = "", headers: dict[str, str] | None = None
) -> AsyncGenerator[Messages]:
    async with here.http.stream("GET", PATH + query, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        yield Messages(answer.aiter_lines())


async def submit(here: Served, title: str) -> str:
    return (await here.http.post("/v1/tasks", json={"title": title})).json()["task_id"]


async def test_events_come_as_they_happen(tmp_path: Path) -> None:
    async with served(tmp_path) as here, listening(here, "?after=now") as messages:
        assert (await messages.next())[1] == []
        task_id = await submit(here, "a")
        await messages.until("task.submitted")
        await here.http.post(f"/v1/tasks/{task_id}/cancel", json={})
        await messages.until("task.cancelled")


async def test_a_listener_that_comes_back_misses_nothing_and_sees_nothing_twice(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as here:
        await submit(here, "a")
        async with listening(here) as messages:
            cursor, first = await messages.until("task.submitted")
        await submit(here, "b")
        async with listening(here, headers={"last-event-id": cursor}) as messages:
            _, second = await messages.until("task.submitted")
        async with listening(here) as messages:
            _, both = await messages.next()
    assert both == first + second


async def test_a_filter_passes_only_what_it_names(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        task_id = await submit(here, "a")
        await here.http.post(f"/v1/tasks/{task_id}/cancel", json={})
        async with listening(here, "?kinds=task.cancelled&kinds=task.done") as messages:
            assert (await messages.next())[1] == ["task.cancelled"]


@pytest.mark.parametrize(
    ("query", "status"),
    [("?after=nonsense", 422), ("?colour=red", 422), ("?timeout_s=5", 422), ("?limit=0", 422)],
)
async def test_a_bad_request_is_refused_before_the_stream_begins(
    tmp_path: Path, query: str, status: int
) -> None:
    async with served(tmp_path) as here:
        answer = await here.http.get(PATH + query)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"


async def test_the_streams_end_when_the_daemon_stops(tmp_path: Path) -> None:
    async with served(tmp_path) as here, listening(here, "?after=now") as messages:
        await messages.next()
        here.service.journal.stop()
        with pytest.raises(KeyError):  # no further message
            await messages.next()


async def test_a_stream_ends_with_its_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        token = await here.http.post("/v1/tokens", json={"name": "ann", "role": "viewer"})
        right = {"authorization": f"Bearer {token.json()['token']}"}
        async with listening(here, "?after=now", right) as messages:
            await messages.next()
            await here.http.delete(f"/v1/tokens/{token.json()['token_id']}")
            with pytest.raises(KeyError):  # not even the event of the revocation
                await messages.next()


def hung_up_on(client: socket.socket) -> bool:
    """Wait until the other side is gone, without reading what it sent."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(15_000))


def drain(client: socket.socket) -> bytes:
    data = b""
    while True:
        try:
            chunk = client.recv(65_536)
        except ConnectionResetError:
            return data
        if not chunk:
            return data
        data += chunk


async def test_a_client_that_does_not_read_is_hung_up_on_and_resumes(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        for number in range(4):
            tasks = [{"key": f"{number}-{index}", "title": "x" * 900} for index in range(500)]
            answer = await here.http.post("/v1/graphs", json={"tasks": tasks})
            assert answer.status_code == 200, answer.text
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(here.path))
            client.sendall(f"GET {PATH}?limit=50 HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            assert await anyio.to_thread.run_sync(hung_up_on, client)
            got = drain(client).decode()
        whole = got[: got.rindex("\n\n")]
        cursors = re.findall(r"^id: (\S+)$", whole, re.MULTILINE)
        seqs = [int(seq) for seq in re.findall(r'"seq":(\d+)', whole)]
        every = await here.http.get("/v1/events?limit=1000")
        assert len(seqs) < len(every.json()["events"])
        rest = await here.http.get(f"/v1/events?limit=1000&after={cursors[-1]}")
        assert rest.json()["events"][0]["seq"] == seqs[-1] + 1
        assert seqs == list(range(1, len(seqs) + 1))

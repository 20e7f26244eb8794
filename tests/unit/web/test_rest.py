from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from structlog.testing import capture_logs

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.service.calls import Answer, Caller, Request, declare
from microvm_orchestrator.service.service import Service
from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

PROBLEM = "application/problem+json"
JSON = {"content-type": "application/json"}


class Nothing(Request):
    pass


class Never(Answer):
    pass


@declare("bug_hit", "POST /v1/bugs", role=Role.VIEWER)
async def bug_hit(service: Service, caller: Caller, request: Nothing) -> Never:  # noqa: ARG001  # every call takes them
    """Fall over."""
    raise ZeroDivisionError("the secret recipe")


def refused(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """Check that an answer is a problem of this kind, and return it."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM), answer.text
    told = answer.json()
    assert (told["status"], told["code"]) == (status, code)
    assert told["title"]
    assert told["detail"]
    return told


async def tasks_of(here: Served) -> list[str]:
    answer = await here.http.get("/v1/tasks")
    return [task["title"] for task in answer.json()["items"]]


async def test_a_call_is_made_by_its_route(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        made = await here.http.post("/v1/tasks", json={"title": "build", "labels": {"team": "a"}})
        assert made.status_code == 200
        assert made.headers["content-type"] == "application/json"
        task_id = made.json()["task_id"]
        assert (await here.http.get(f"/v1/tasks/{task_id}")).json()["title"] == "build"
        found = await here.http.get("/v1/tasks?state=ready&state=running&labels[team]=a&limit=5")
        assert [task["task_id"] for task in found.json()["items"]] == [task_id]
        gone = await here.http.delete(f"/v1/tasks/{task_id}?cascade=true")
        assert gone.json() == {"task_ids": [task_id]}


async def test_each_kind_of_error_has_its_status(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        http = here.http
        refused(await http.get("/v1/tasks/none"), 404, "not-found")
        refused(await http.get("/v1/tasks?limit=many"), 422, "invalid-input")
        refused(await http.get("/v1/tasks?colour=red"), 422, "invalid-input")
        refused(await http.get("/v1/nothing"), 404, "not-found")
        refused(await http.get("/v1/tasks/"), 404, "not-found")
        wrong = await http.put("/v1/tasks", json={})
        refused(wrong, 405, "method-not-allowed")
        assert wrong.headers["allow"] == "GET, POST"
        nobody = await http.get("/v1/whoami", headers={"authorization": "Bearer no"})
        refused(nobody, 401, "unauthenticated")
        assert nobody.headers["www-authenticate"].startswith("Bearer")
        basic = await http.get("/v1/whoami", headers={"authorization": "Basic eDp5"})
        refused(basic, 401, "unauthenticated")
        await http.post("/v1/tasks", json={"title": "x", "key": "k"})
        refused(
            await http.post("/v1/tasks", json={"title": "x", "key": "k"}), 409, "already-exists"
        )


async def test_a_bug_shows_nothing_of_the_inside_and_is_logged(tmp_path: Path) -> None:
    async with served(tmp_path, more=[bug_hit]) as here:
        with capture_logs() as lines:
            answer = await here.http.post("/v1/bugs")
        told = refused(answer, 500, "internal-error")
        assert "recipe" not in answer.text
        assert (await here.http.get("/healthz")).status_code == 200
    assert [line["incident"] for line in lines] == [told["detail"].split()[-1]]
    assert isinstance(lines[0]["exc_info"], ZeroDivisionError)


async def test_a_body_that_is_not_declared_as_json_changes_nothing(tmp_path: Path) -> None:
    data = b'{"title": "forged"}'
    async with served(tmp_path) as here:
        for media_type in ("text/plain", "application/x-www-form-urlencoded", "text/json", ""):
            headers = {"content-type": media_type, "origin": "http://evil.example"}
            crossing = await here.http.post("/v1/tasks", content=data, headers=headers)
            refused(crossing, 403, "origin-refused")
            del headers["origin"]
            plain = await here.http.post("/v1/tasks", content=data, headers=headers)
            refused(plain, 415, "unsupported-media-type")
        assert await tasks_of(here) == []
        json_with_charset = {"content-type": "Application/JSON; charset=utf-8"}
        taken = await here.http.post("/v1/tasks", content=data, headers=json_with_charset)
        assert taken.status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b'{"title": "a", "title": "b"}',
        b'{"priority": NaN}',
        b'{"title": "\\ud800"}',
        b'{"title": "\xff"}',
        b'{"input": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"input": ' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}",
        b"[]",
        b"null",
        b'"title"',
        b"{",
        b'{"__proto__": {}}',
    ],
)
async def test_a_hostile_body_is_refused_as_invalid(tmp_path: Path, body: bytes) -> None:
    async with served(tmp_path) as here:
        refused(await here.http.post("/v1/tasks", content=body, headers=JSON), 422, "invalid-input")
        assert await tasks_of(here) == []


async def test_a_body_over_the_limit_is_refused_declared_or_not(tmp_path: Path) -> None:
    async def trickle() -> AsyncIterator[bytes]:
        for _ in range(300):
            yield b" " * 100

    async with served(tmp_path, limits={"max_request_bytes": 1000}) as here:
        big = json.dumps({"title": "x" * 1000})
        declared = await here.http.post("/v1/tasks", content=big, headers=JSON)
        refused(declared, 413, "too-large")
        undeclared = await here.http.post("/v1/tasks", content=trickle(), headers=JSON)
        refused(undeclared, 413, "too-large")
        assert (await here.http.get("/healthz")).status_code == 200


async def test_arguments_stand_in_one_place(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        both = await here.http.post("/v1/tasks/a/cancel", json={"task_id": "b"})
        assert "in the path" in refused(both, 422, "invalid-input")["detail"]
        query = await here.http.post("/v1/tasks?title=a", json={})
        assert "query" in refused(query, 422, "invalid-input")["detail"]
        either = await here.http.get("/v1/tasks/a?task_id=b")
        refused(either, 422, "invalid-input")


async def test_the_idempotency_header_is_the_field(tmp_path: Path) -> None:
    key = {"idempotency-key": "once"}
    async with served(tmp_path) as here:
        first = await here.http.post("/v1/tasks", json={"title": "a"}, headers=key)
        again = await here.http.post("/v1/tasks", json={"title": "a"}, headers=key)
        field = await here.http.post("/v1/tasks", json={"title": "a", "idempotency_key": "once"})
        assert first.json()["task_id"] == again.json()["task_id"] == field.json()["task_id"]
        other = await here.http.post("/v1/tasks", json={"title": "b"}, headers=key)
        refused(other, 409, "key-reused")
        differing = {"title": "a", "idempotency_key": "twice"}
        refused(
            await here.http.post("/v1/tasks", json=differing, headers=key), 422, "invalid-input"
        )
        assert (await here.http.get("/v1/whoami", headers=key)).status_code == 200
        task_id = first.json()["task_id"]
        useless = await here.http.post(f"/v1/tasks/{task_id}/retry", headers=key)
        refused(useless, 422, "invalid-input")
        assert await tasks_of(here) == ["a"]


async def test_a_wait_ends_when_its_client_leaves(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        task_id = (await here.http.post("/v1/tasks", json={"title": "a"})).json()["task_id"]
        async with await anyio.connect_unix(here.path) as client:
            await client.send(f"GET /v1/tasks/{task_id}/wait?timeout_s=60 HTTP/1.1\r\n".encode())
            await client.send(b"host: x\r\n\r\n")
        with anyio.fail_after(5):
            while await here.outcomes.receive() != ("task_wait", "cancelled"):
                pass


async def test_requests_are_counted_by_call_and_outcome(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        await here.http.get("/v1/whoami")
        await here.http.get("/v1/tasks/none")
        await here.http.post("/v1/tasks", json={"title": "a"})
        text = (await here.http.get("/metrics")).text
    assert 'requests_total{call="whoami",outcome="ok",via="rest"} 1.0' in text
    assert 'requests_total{call="task_get",outcome="not-found",via="rest"} 1.0' in text
    assert "microvm_orchestrator_build_info{" in text
    assert 'microvm_orchestrator_tasks{state="ready"} 1.0' in text
    assert 'microvm_orchestrator_agents{state="idle"} 0.0' in text
    assert "microvm_orchestrator_agent_tokens 0.0" in text

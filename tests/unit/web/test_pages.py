from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest

from microvm_orchestrator.web.sessions import COOKIE
from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

PAGES = ("/", "/tasks", "/machines", "/operations", "/events", "/static/pages.css")
POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'"


async def token_of(here: Served, role: str = "viewer", **given: Any) -> str:
    asked = {"name": "ann", "role": role, **given}
    return (await here.http.post("/v1/tokens", json=asked)).json()["token"]


async def submit(here: Served, **given: Any) -> str:
    return (await here.http.post("/v1/tasks", json=given)).json()["task_id"]


@asynccontextmanager
async def browser(here: Served, token: str | None = None) -> AsyncGenerator[httpx2.AsyncClient]:
    """Give somebody who comes over the network, and has shown a token."""
    async with httpx2.AsyncClient(base_url=f"http://{here.address}") as client:
        if token is not None:
            answer = await log_in(client, here, token)
            assert answer.status_code == 303, answer.text
        yield client


async def log_in(
    client: httpx2.AsyncClient, here: Served, token: str, path: str = "/", **headers: str
) -> httpx2.Response:
    origin = {"origin": f"http://{here.address}", **headers}
    return await client.post("/login", data={"token": token, "path": path}, headers=origin)


async def test_over_the_socket_the_pages_are_there_at_once(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        task_id = await submit(here, title="<b>Paint</b> it", key="paint")
        for path in PAGES:
            answer = await here.http.get(path, follow_redirects=True)
            assert answer.status_code == 200, path
            assert answer.headers["content-security-policy"].startswith(POLICY)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "no-store"
        page = (await here.http.get(f"/tasks/{task_id}")).text
        assert "<h1>&lt;b&gt;Paint&lt;/b&gt; it</h1>" in page
        assert "task.submitted" in page
        assert "/logout" not in page
        assert (await here.http.head("/")).status_code == 200


async def test_a_page_says_where_it_is_and_what_it_is(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        page = (await here.http.get("/tasks")).text
        for said in (
            '<html lang="en">',
            "<title>Tasks · microvm-orchestrator</title>",
            '<a class="skip" href="#main">',
            '<a href="/tasks" aria-current="page">',
            "<caption>Tasks, newest first</caption>",
            '<th scope="col">',
        ):
            assert said in page


async def test_tasks_are_chosen_by_state_and_come_page_by_page(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        ids = [await submit(here, title=f"t{number}") for number in range(5)]
        await here.http.post(f"/v1/tasks/{ids[0]}/cancel", json={})
        cancelled = (await here.http.get("/tasks?state=cancelled")).text
        assert [task in cancelled for task in ids] == [True, False, False, False, False]
        found: list[bool] = []
        path = "/tasks?limit=2"
        for _ in range(2):
            page = (await here.http.get(path)).text
            found += [task in page for task in ids]
            path = page.partition('id="more"')[2].partition('href="')[2].partition('"')[0]
            path = path.replace("&amp;", "&")
            assert path.startswith("/tasks?limit=2&cursor=")
        assert found == [False, False, False, True, True, False, True, True, False, False]


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/tasks?state=asleep", 422, "invalid-input"),
        ("/tasks?colour=red", 422, "invalid-input"),
        ("/tasks?cursor=x", 422, "cursor"),
        ("/tasks/nobody", 404, "no task nobody"),
        ("/tasks/%3Cscript%3E", 404, "no task &lt;script&gt;"),
        ("/tasks/nobody/output", 404, "not-found"),
        ("/events?after=x", 422, "cursor"),
    ],
)
async def test_what_is_wrong_is_a_page_that_says_so(
    tmp_path: Path, path: str, status: int, says: str
) -> None:
    async with served(tmp_path) as here:
        answer = await here.http.get(path)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("text/html")
        assert says in answer.text


async def test_pages_only_show(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        for path in PAGES:
            assert (await here.http.post(path, json={})).status_code == 405
        assert (await here.http.get("/login")).status_code == 405


@pytest.mark.parametrize("path", ["*", "", "//tasks", "/taskss", "/v1/tasks", "/Tasks"])
async def test_what_only_looks_like_a_page_is_none(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as here, await anyio.connect_unix(here.path) as raw:
        await raw.send(f"GET {path or 'x'} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        with anyio.fail_after(5):
            head = (await raw.receive()).partition(b"\r\n\r\n")[0]
        assert b"text/html" not in head
        assert b" 500 " not in head


async def test_without_the_setting_there_are_none(tmp_path: Path) -> None:
    async with served(tmp_path, pages={"enabled": False}) as here:
        for path in (*PAGES, "/live", "/login"):
            assert (await here.http.get(path)).status_code == 404


async def test_over_the_network_a_token_is_asked_for_once(tmp_path: Path) -> None:
    async with served(tmp_path) as here, browser(here) as client:
        await submit(here, title="Paint it")
        first = await client.get("/tasks?state=ready")
        assert first.status_code == 401
        assert "Paint it" not in first.text
        assert '<input type="hidden" name="path" value="/tasks?state=ready">' in first.text
        token = await token_of(here)
        entered = await log_in(client, here, token, "/tasks?state=ready")
        assert (entered.status_code, entered.headers["location"]) == (303, "/tasks?state=ready")
        said = entered.headers["set-cookie"].lower()
        assert {"httponly", "samesite=strict", "path=/"} <= set(said.split("; "))
        assert "secure" not in said
        assert token not in str(entered.headers)
        page = (await client.get("/tasks?state=ready")).text
        assert "Paint it" in page
        assert "ann (viewer)" in page


async def test_the_cookie_is_good_for_pages_and_nothing_else(tmp_path: Path) -> None:
    async with served(tmp_path) as here, browser(here, await token_of(here, "operator")) as client:
        assert (await client.get("/")).status_code == 200
        for path in ("/v1/tasks", "/v1/events/stream", "/v1/whoami", "/metrics", "/openapi.json"):
            assert (await client.get(path)).status_code == 401, path
        assert (await client.post("/v1/tasks", json={"title": "a"})).status_code == 401
        assert (await client.post("/mcp", json={})).status_code == 401
        cookie = {"authorization": f"Bearer {client.cookies[COOKIE]}"}
        assert (await client.get("/v1/tasks", headers=cookie)).status_code == 401


async def test_logging_out_ends_the_session_for_whoever_has_the_cookie(tmp_path: Path) -> None:
    async with served(tmp_path) as here, browser(here, await token_of(here)) as client:
        cookie = {"cookie": f"{COOKIE}={client.cookies[COOKIE]}"}
        left = await client.post("/logout", headers={"origin": f"http://{here.address}"})
        assert left.status_code == 303
        async with browser(here) as thief:
            assert (await thief.get("/", headers=cookie)).status_code == 401


async def test_pages_and_their_stream_end_with_the_token(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        made = await here.http.post("/v1/tokens", json={"name": "ann", "role": "viewer"})
        async with browser(here, made.json()["token"]) as client:
            async with client.stream("GET", "/live?after=now") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
                await here.http.delete(f"/v1/tokens/{made.json()['token_id']}")
                with anyio.fail_after(5):
                    async for _ in answer.aiter_lines():
                        pass
            refused = await client.get("/")
            assert refused.status_code == 401
            assert "not valid any more" in refused.text


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1"]
)
async def test_no_page_of_others_can_log_anybody_in_or_out(tmp_path: Path, origin: str) -> None:
    async with served(tmp_path) as here:
        token = await token_of(here)
        async with browser(here, token) as client:
            answer = await log_in(client, here, token, origin=origin)
            assert answer.status_code == 403
            assert "set-cookie" not in answer.headers
            assert (await client.post("/logout", headers={"origin": origin})).status_code == 403
            assert (await client.get("/")).status_code == 200


async def test_a_page_on_another_port_of_the_host_reads_nothing_with_the_cookie(
    tmp_path: Path,
) -> None:
    async with served(tmp_path) as here, browser(here, await token_of(here)) as client:
        asked = {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}
        assert (await client.get("/tasks", headers=asked)).status_code == 401
        followed = {"sec-fetch-site": "same-site", "sec-fetch-mode": "navigate"}
        assert (await client.get("/tasks", headers=followed)).status_code == 200


async def test_behind_tls_the_cookie_goes_no_other_way(tmp_path: Path) -> None:
    tcp: dict[str, object] = {"listen": "127.0.0.1:0", "allowed_hosts": ["vms.example.org"]}
    async with served(tmp_path, tcp=tcp) as here, browser(here) as client:
        names = {"host": "vms.example.org", "origin": "https://vms.example.org"}
        answer = await log_in(client, here, await token_of(here), **names)
        assert answer.status_code == 303
        assert "secure" in answer.headers["set-cookie"].lower().split("; ")


@pytest.mark.parametrize(
    "path", ["//evil.example", "https://evil.example", "/\\evil.example", "", "/a\r\nb: c", "evil"]
)
async def test_the_form_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    async with served(tmp_path) as here, browser(here) as client:
        answer = await log_in(client, here, await token_of(here), path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("token", ["", "mo_nobody_nothing", "x" * 9000, "\u00e9"])
async def test_what_is_no_token_opens_nothing(tmp_path: Path, token: str) -> None:
    async with served(tmp_path) as here, browser(here) as client:
        answer = await log_in(client, here, token)
        assert answer.status_code in {401, 413}
        assert "set-cookie" not in answer.headers


async def test_who_sees_only_some_tasks_sees_no_others_on_any_page(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        red = await submit(here, title="Red one", labels={"team": "red"})
        blue = await submit(here, title="Blue one", labels={"team": "blue"})
        scope = {"labels": {"team": ["red"]}}
        token = await token_of(here, scope=scope)
        async with browser(here, token) as client:
            for path in ("/", "/tasks", "/events?after=begin"):
                page = (await client.get(path)).text
                assert red in page
                assert blue not in page
                assert "Blue one" not in page
            assert (await client.get(f"/tasks/{blue}")).status_code == 404


async def test_a_page_names_the_stream_that_tells_what_comes_after_it(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        task_id = await submit(here, title="a")
        page = (await here.http.get(f"/tasks/{task_id}")).text
        live = page.partition('data-live="')[2].partition('"')[0].replace("&amp;", "&")
        assert live.endswith(f"subjects={task_id}")
        # What happens before anybody listens is told all the same.
        await here.http.post(f"/v1/tasks/{task_id}/cancel", json={})
        async with here.http.stream("GET", live) as answer:
            with anyio.fail_after(5):
                async for line in answer.aiter_lines():
                    if "task.cancelled" in line:
                        break


async def test_events_go_on_from_where_a_page_ended(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        first = await submit(here, title="a")
        now = await here.http.get("/events")
        assert now.status_code == 303
        second = await submit(here, title="b")
        page = (await here.http.get(now.headers["location"])).text
        assert (first in page, second in page) == (False, True)
        begun = (await here.http.get("/events?after=begin&limit=1")).text
        assert (first in begun, second in begun) == (True, False)

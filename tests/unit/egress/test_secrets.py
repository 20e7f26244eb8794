"""Secrets that a run uses by name: added on the host, for the address that is set for each."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from egressing import KEY, Outlet, keys_in, outlet
from microvm_orchestrator import errors
from microvm_orchestrator.egress.credentials import Kind
from receiver import Receiver, answer, receiver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from pathlib import Path

SECRET = "ghp_the-secret-of-somebody-0123456789"
BEARER = f"Bearer {SECRET}"


@asynccontextmanager
async def using(
    tmp_path: Path, *, named: Sequence[str] = ("hub",), **use: str
) -> AsyncGenerator[tuple[Outlet, Receiver]]:
    """Open the endpoint of a run beside a host that wants the secret `hub`."""
    kept = await keys_in(tmp_path, hub=(Kind.SECRET, SECRET), other=(Kind.SECRET, SECRET + "x"))
    async with receiver() as host:
        at = f"http://127.0.0.1:{host.port}/api"
        secrets = {"hub": {"url": at, **use}, "other": {"url": at}}
        async with outlet(
            tmp_path, credentials=kept, named=named, settings={"secrets": secrets}
        ) as out:
            yield out, host


async def test_a_request_has_the_secret_added_and_goes_below_the_address(tmp_path: Path) -> None:
    async with using(tmp_path) as (out, host):
        asked = await out.http.post(
            "/with/hub/repos/x?page=2",
            content=b"body",
            headers={"Authorization": "Bearer of-the-guest", "X-Mine": "passes"},
        )
        got = await host.next()
        exchange = await out.told()
    assert (asked.status_code, asked.text) == (200, "thanks")
    assert (got.line, got.body) == ("POST /api/repos/x?page=2 HTTP/1.1", b"body")
    assert got.headers["authorization"] == BEARER
    assert got.headers["x-mine"] == "passes"
    assert got.headers["host"] == f"127.0.0.1:{host.port}"
    assert (exchange.method, exchange.path, exchange.status) == ("POST", "/repos/x", 200)
    assert SECRET not in repr(exchange)


@pytest.mark.parametrize(
    ("use", "header", "value"),
    [
        ({"user": "x-access-token"}, "authorization", "Basic "),
        ({"header": "PRIVATE-TOKEN", "prefix": ""}, "private-token", SECRET),
        ({"prefix": "token "}, "authorization", f"token {SECRET}"),
    ],
    ids=["basic", "own-header", "own-word"],
)
async def test_it_is_written_as_the_host_wants_it(
    tmp_path: Path, use: dict[str, str], header: str, value: str
) -> None:
    async with using(tmp_path, **use) as (out, host):
        await out.http.post("/with/hub/", content=b"x")
        told = (await host.next()).headers[header]
    if "user" in use:
        assert base64.b64decode(told.removeprefix(value)).decode() == f"x-access-token:{SECRET}"
    else:
        assert told == value


async def test_an_answer_that_repeats_the_secret_does_not_give_it_away(tmp_path: Path) -> None:
    async with using(tmp_path, user="me") as (out, host):
        basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
        host.otherwise = answer(200, f"X-Echo: {SECRET}", body=f"it is {SECRET}, or so: {basic}")
        # Not in two pieces either, of which neither has all of it.
        told = await out.http.post("/with/hub/echo", content=b"x", headers={"Range": "bytes=0-9"})
        assert "range" not in (await host.next()).headers
    assert SECRET not in told.text
    assert basic not in told.text
    assert SECRET not in str(told.headers)
    assert told.text.startswith("it is xxx")


async def test_a_redirect_within_the_address_comes_back_to_the_run_s_own_way(
    tmp_path: Path,
) -> None:
    async with using(tmp_path) as (out, host):
        here, beyond = f"http://127.0.0.1:{host.port}/api/new", "http://elsewhere.example/api/new"
        seen: list[str] = []
        others = (here.replace("/api/", "/api-too/"), beyond, "http://[")
        for to in (here, "/api/new", "new", *others):
            host.otherwise = answer(302, f"Location: {to}")
            seen.append((await out.http.post("/with/hub/old", content=b"x")).headers["location"])
    own = "http://127.0.0.1:4001/with/hub/new"
    assert seen == [own, own, own, *others]


@pytest.mark.parametrize(
    "path",
    [
        *("../admin", "a/../../admin", "a/..", "%2e%2e/admin", "a/%2E./b", "..%2fadmin"),
        *("a\\..\\b", "%252e%252e/admin", "./a", "%25252e%25252e/admin"),
        *("..;/admin", "..;a/admin", "..%3b/admin", "..%00/admin", "a/..%09/admin"),
    ],
)
async def test_no_path_leads_out_of_the_address(tmp_path: Path, path: str) -> None:
    async with using(tmp_path) as (out, host):
        head = [f"POST /with/hub/{path} HTTP/1.1", "Host: h", "Content-Length: 1"]
        request = "\r\n".join([*head, "Connection: close", "", "x"])
        said = await out.exchanged(request.encode())
        assert host.silent
    assert said.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("name", ["other", "missing", "", "HUB"])
async def test_a_secret_that_the_task_does_not_name_is_not_used(tmp_path: Path, name: str) -> None:
    async with using(tmp_path) as (out, host):
        told = await out.http.post(f"/with/{name}/x", content=b"x")
        assert host.silent
    assert told.status_code == 403
    assert "its task names those" in told.text


async def test_a_key_of_a_model_is_no_secret_for_an_address(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, key=(Kind.ANTHROPIC_API_KEY, KEY))
    for secrets in ({}, {"key": {"url": "http://127.0.0.1:1"}}):
        given = {"secrets": secrets}
        async with outlet(tmp_path, credentials=kept, named=["key"], settings=given) as out:
            assert (await out.http.post("/with/key/x", content=b"x")).status_code == 403


async def test_a_secret_that_no_header_can_hold_is_refused(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, odd=(Kind.SECRET, "geheimnis-äöü-0123"))
    settings = {"secrets": {"odd": {"url": "http://127.0.0.1:1"}}}
    with pytest.raises(errors.InvalidInput, match="no header can hold"):
        async with outlet(tmp_path, credentials=kept, named=["odd"], settings=settings):
            pass


async def test_a_secret_that_has_no_address_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    kept = await keys_in(tmp_path, lone=(Kind.SECRET, SECRET))
    with pytest.raises(errors.InvalidInput, match="lone has no address"):
        async with outlet(tmp_path, credentials=kept, named=["lone"]):
            pass


async def test_a_secret_that_is_removed_meanwhile_is_used_no_more(tmp_path: Path) -> None:
    async with using(tmp_path) as (out, host):
        await out.credentials.remove("hub")
        told = await out.http.post("/with/hub/x", content=b"x")
        assert host.silent
    assert (told.status_code, "was removed" in told.text) == (403, True)

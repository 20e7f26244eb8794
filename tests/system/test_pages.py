"""The pages of a daemon as a process, over its socket, over TCP, and by `web`."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import subprocess
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlencode, urlsplit

import pytest

from daemon import COMMAND, STOP_S, running_daemon
from microvm_orchestrator.cli.client import Client
from system.world import TCP

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from daemon import Daemon

PATIENCE_S = 30.0
PATHS = ("/", "/tasks", "/machines", "/operations", "/events?after=begin", "/static/pages.js")


@dataclass(frozen=True, slots=True)
class Heard:
    status: int
    headers: http.client.HTTPMessage
    body: str


def ask(
    address: str, path: str, method: str = "GET", body: str | None = None, **headers: str
) -> Heard:
    with closing(http.client.HTTPConnection(address, timeout=PATIENCE_S)) as connection:
        told = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, told)
        answer = connection.getresponse()
        return Heard(answer.status, answer.headers, answer.read().decode())


def cookie_of(heard: Heard) -> str:
    return heard.headers["set-cookie"].partition(";")[0]


@dataclass(frozen=True, slots=True)
class Shown:
    """A command that shows the pages; the address that it said, in two parts."""

    process: subprocess.Popen[str]
    address: str
    enter: str


@contextmanager
def shown(daemon: Daemon, *more: str, **env: str) -> Generator[Shown]:
    words = [str(COMMAND), "web", *(more or ("--socket", str(daemon.socket)))]
    told = {**os.environ, **env}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=told) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
            url = urlsplit(str(process.stdout.readline()).strip())
            yield Shown(process, url.netloc, url.path)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_S)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("pages"), tcp=TCP) as daemon:
        Client(daemon.socket).call("task_submit", {"title": "<i>Paint</i> it", "key": "paint"})
        yield daemon


def test_over_tcp_a_token_that_is_shown_once_opens_every_page(daemon: Daemon) -> None:
    assert daemon.tcp is not None
    given = {"name": "ann", "role": "viewer"}
    token = Client(daemon.socket).call("token_create", given).value["token"]
    for path in PATHS[:-1]:
        assert ask(daemon.tcp, path).status == 401
    form = urlencode({"token": token, "path": "/tasks"})
    entered = ask(daemon.tcp, "/login", "POST", form, origin=f"http://{daemon.tcp}")
    assert (entered.status, entered.headers["location"]) == (303, "/tasks")
    for path in PATHS:
        assert ask(daemon.tcp, path, cookie=cookie_of(entered)).status == 200, path
    page = ask(daemon.tcp, "/tasks", cookie=cookie_of(entered)).body
    assert "&lt;i&gt;Paint&lt;/i&gt; it" in page
    assert ask(daemon.tcp, "/v1/tasks", cookie=cookie_of(entered)).status == 401


def test_a_page_on_a_socket_is_for_whoever_the_kernel_says_it_is(daemon: Daemon) -> None:
    connection = Client(daemon.socket).open(PATIENCE_S)
    with closing(connection):
        connection.request("GET", "/")
        assert f"uid:{os.geteuid()} (admin)" in connection.getresponse().read().decode()


def test_by_web_one_browser_is_let_in_once(daemon: Daemon) -> None:
    with shown(daemon) as here:
        assert here.address.startswith("127.0.0.1:")
        # Somebody else on the host knows the port, and no more.
        for path in (*PATHS, "/enter/", "/enter/x", "/enter/%ff"):
            assert ask(here.address, path).status == 403
        entered = ask(here.address, here.enter)
        assert entered.status == 200
        attributes = set(entered.headers["set-cookie"].split("; ")[1:])
        assert attributes == {"Path=/", "HttpOnly", "SameSite=Strict"}
        cookie = cookie_of(entered)
        for path in PATHS:
            heard = ask(here.address, path, cookie=cookie)
            assert heard.status == 200, path
            assert "default-src 'none'" in heard.headers["content-security-policy"]
        assert "&lt;i&gt;Paint&lt;/i&gt; it" in ask(here.address, "/tasks", cookie=cookie).body
        # Whoever read the address over somebody's shoulder comes too late.
        assert ask(here.address, here.enter).status == 403
        name = cookie.partition("=")[0]
        assert ask(here.address, "/", cookie=f"{name}=x").status == 403


def test_web_passes_on_looks_at_pages_and_nothing_else(daemon: Daemon) -> None:
    with shown(daemon) as here:
        cookie = cookie_of(ask(here.address, here.enter))
        for path in ("/v1/tasks", "/v1/whoami", "/mcp", "/metrics", "/openapi.json", "/login"):
            assert ask(here.address, path, cookie=cookie).status == 404, path
        body = json.dumps({"title": "a"})
        kind = {"content_type": "application/json"}
        for method in ("POST", "PUT", "DELETE", "HEAD", "OPTIONS"):
            refused = ask(here.address, "/v1/tasks", method, body, cookie=cookie, **kind)
            assert refused.status == 501
        # A name server of somebody else can lead here.
        assert ask(here.address, "/", cookie=cookie, host="evil.example").status == 421
        assert ask(here.address, "//evil.example", cookie=cookie).status == 404


def test_web_carries_what_happens_as_it_happens(daemon: Daemon) -> None:
    client = Client(daemon.socket)
    with shown(daemon) as here:
        cookie = cookie_of(ask(here.address, here.enter))
        with closing(http.client.HTTPConnection(here.address, timeout=PATIENCE_S)) as connection:
            connection.request("GET", "/live?after=now", headers={"cookie": cookie})
            answer = connection.getresponse()
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.readline() == b": still here\n"
            task_id = client.call("task_submit", {"title": "now"}).value["task_id"]
            while task_id.encode() not in answer.readline():
                pass


def test_web_shows_a_daemon_on_a_network_too_by_a_token(daemon: Daemon) -> None:
    given = {"name": "eve", "role": "viewer"}
    token = Client(daemon.socket).call("token_create", given).value["token"]
    where = ("--address", f"http://{daemon.tcp}")
    with shown(daemon, *where, MICROVM_ORCHESTRATOR_TOKEN=token) as here:
        cookie = cookie_of(ask(here.address, here.enter))
        page = ask(here.address, "/", cookie=cookie)
        assert "eve (viewer)" in page.body
        assert token not in page.body + str(page.headers)


def test_web_opens_a_browser_without_telling_everybody_where(
    daemon: Daemon, tmp_path: Path
) -> None:
    heard = tmp_path / "heard"
    os.mkfifo(heard)
    browser = tmp_path / "browser"
    browser.write_text(
        "#!/bin/sh\npage=${1#file://}\n"
        f'{{ echo "$*"; stat -c %a "$page"; cat "$page"; }} > {heard}\n'
    )
    browser.chmod(0o755)
    socket = ("--socket", str(daemon.socket))
    with shown(daemon, "--open", *socket, BROWSER=f"{browser} %s", TMPDIR=str(tmp_path)) as here:
        words, mode, page = heard.read_text().split("\n", 2)
        assert here.enter not in words
        assert mode == "600"
        assert f"url=http://{here.address}{here.enter}" in page
    assert list(tmp_path.glob("*.html")) == []


def test_web_says_when_the_daemon_is_away_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    with running_daemon(tmp_path / "state") as first, shown(first) as here:
        cookie = cookie_of(ask(here.address, here.enter))
        first.kill()
        away = ask(here.address, "/", cookie=cookie)
        assert away.status == 503
        with running_daemon(tmp_path / "state"):
            assert ask(here.address, "/", cookie=cookie).status == 200

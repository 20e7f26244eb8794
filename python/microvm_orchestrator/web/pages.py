"""The web pages: what there is and what happens, for people with a browser. They change nothing.

A page is made of what calls answer, asked by whoever looks, so roles and sight are those of REST.
Over the unix socket the kernel says who that is; over the network a token, which a form takes once
and a cookie stands for since, on these pages and nowhere else. Above sits app.py; below are the
service, the views and the sessions.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router

from microvm_orchestrator import errors
from microvm_orchestrator.model.machine import ENDED, MachineState
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.web import stream, views
from microvm_orchestrator.web.api import Served, caller_of, unknown_address, while_connected
from microvm_orchestrator.web.arguments import Layout
from microvm_orchestrator.web.html import tag
from microvm_orchestrator.web.identity import PEER, PRINCIPAL
from microvm_orchestrator.web.problems import Problem, problem
from microvm_orchestrator.web.sessions import COOKIE, LASTS_S, Sessions
from microvm_orchestrator.web.views import Look, Visitor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from starlette.types import Receive, Scope, Send

    from microvm_orchestrator.model.event import Event
    from microvm_orchestrator.model.machine import Machine
    from microvm_orchestrator.model.operation import Operation
    from microvm_orchestrator.model.report import Measures
    from microvm_orchestrator.model.task import Run, Task, TaskBrief
    from microvm_orchestrator.service.journal import EventAnswer
    from microvm_orchestrator.service.page import PageOf
    from microvm_orchestrator.service.runs import RunInfo, RunOutput
    from microvm_orchestrator.service.service import Service
    from microvm_orchestrator.web.html import Html
    from microvm_orchestrator.web.identity import Identity

    Handler = Callable[[Request], Awaitable[Response]]
    Draw = Callable[["Asking"], Awaitable[Look]]

VIA = "pages"
_STATIC = Path(__file__).parent / "static"
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# A token has some sixty characters, and a path that leads back not many more.
_FORM_MOST = 8192
_NEWEST = 10
_PAGE = 50
_EVENTS = 100
_LOOK = ("GET", "HEAD")
_STANDING = [state for state in MachineState if state not in {*ENDED, MachineState.DEFINED}]
# The first words of the addresses that are served here.
_OURS = frozenset(
    {"tasks", "machines", "operations", "events", "live", "login", "logout", "static"}
)
# What a refusal says beside its body.
_KEPT = ("allow", "retry-after", "www-authenticate")

_HEADERS = {
    # Nothing of others, nothing that stands in the page itself: what a guest said never runs.
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-content-type-options": "nosniff",
    # Not `no-referrer`: a form would then come without its origin.
    "referrer-policy": "same-origin",
    "cache-control": "no-store",
}


class Asking:
    """One look at a page, and the calls that it makes."""

    def __init__(self, service: Service, request: Request) -> None:
        self.service = service
        self.request = request
        self.path = request.url.path
        known = caller_of(request)
        self._caller = Caller(known.principal, VIA, known.progress)

    async def ask(self, call: str, **arguments: object) -> Any:
        """Make a call; the answer is what the table says. Raises: what it is refused with."""
        work = self.service.invoke(self._caller, call, arguments)
        waits = self.service.calls[call].waits
        return await (while_connected(self.request, work) if waits else work)

    async def live(self, *subjects: str) -> str:
        """Give the stream of what happens from now on; to be asked for before what is shown."""
        now: EventAnswer = await self.ask("event_wait", after="now", subjects=list(subjects))
        about = [("subjects", subject) for subject in subjects]
        return views.address("/live", [("after", now.cursor), *about])

    def given(self, call: str, **own: object) -> dict[str, object]:
        """Read the arguments of a call off the query. An empty field of a form says nothing."""
        pairs = [pair for pair in self.request.query_params.multi_items() if pair[1]]
        return own | Layout(self.service.calls[call]).from_query(pairs)

    def following(self, name: str, cursor: str | None) -> str | None:
        """Give the address of this list from a cursor on."""
        if cursor is None:
            return None
        query = self.request.query_params.multi_items()
        kept = [pair for pair in query if pair[0] != name]
        return views.address(self.path, [*kept, (name, cursor)])


class _Elsewhere(Exception):
    """The page that was asked for is at another address."""


class Pages:
    """All pages as one ASGI application, which finds out by itself who looks."""

    def __init__(self, service: Service, identity: Identity) -> None:
        self._service = service
        self._identity = identity
        self._sessions = Sessions()
        drawn: dict[str, Draw] = {
            "/": _overview,
            "/tasks": _tasks,
            "/tasks/{task_id}": _task,
            "/tasks/{task_id}/output": _output,
            "/machines": _machines,
            "/operations": _operations,
            "/events": _events,
        }
        routes = [Route(path, _served(partial(self._page, draw))) for path, draw in drawn.items()]
        self._router = Router(
            [
                *routes,
                Route("/live", _served(self._live, "GET")),
                Route("/login", _served(self._login, "POST")),
                Route("/logout", _served(self._logout, "POST")),
                *(
                    Route(f"/static/{file.name}", _served(partial(_static, file)))
                    for file in sorted(_STATIC.iterdir())
                    if file.suffix in _KINDS
                ),
            ],
            redirect_slashes=False,
            default=unknown_address,
        )

    def serves(self, path: str) -> bool:
        """Tell whether an address is a page, or of one."""
        # A request may be about no path at all, as in `OPTIONS *`.
        begin, _, rest = path.partition("/")
        return path == "/" or (not begin and rest.partition("/")[0] in _OURS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router(scope, receive, send)

    async def who(self, request: Request) -> Visitor:
        """Say who looks, and let the request carry it.

        Raises: Unauthenticated.
        """
        peer = getattr(request.state, PEER, None)
        cookie = request.cookies.get(COOKIE)
        token = None
        if peer is None and "authorization" not in request.headers and cookie is not None:
            token = self._sessions.token_of(cookie)
        if token is None:
            principal = await self._identity.of(request)
        else:
            _refuse_foreign(request)
            principal = await self._identity.named(token, None)
        request.scope["state"][PRINCIPAL] = principal
        return Visitor(principal.name, principal.role, session=token is not None)

    async def _page(self, draw: Draw, request: Request) -> Response:
        visitor = await self.who(request)
        try:
            look = await draw(Asking(self._service, request))
        except _Elsewhere as found:
            return Response(status_code=303, headers={**_HEADERS, "location": str(found)})
        return shown(look, request, visitor)

    async def _live(self, request: Request) -> Response:
        await self.who(request)
        return await stream.serve(self._service, request)

    async def _login(self, request: Request) -> Response:
        form = await _form(request)
        path = form.get("path", "/")
        if not _leads_back(path):
            path = "/"
        token = form.get("token", "").strip()
        if not token:
            return shown(views.login(path, "There is no token."), request, status=401)
        try:
            await self._identity.named(token, None)
        except errors.Unauthenticated as error:
            return shown(views.login(path, error.message), request, status=401)
        response = Response(status_code=303, headers={**_HEADERS, "location": path})
        response.set_cookie(
            COOKIE,
            self._sessions.begin(token),
            max_age=LASTS_S,
            httponly=True,
            samesite="strict",
            # TLS may be ended before us; the browser says by which way it came.
            secure=request.headers.get("origin", "").startswith("https://"),
        )
        return response

    async def _logout(self, request: Request) -> Response:
        if cookie := request.cookies.get(COOKIE):
            self._sessions.end(cookie)
        response = Response(status_code=303, headers={**_HEADERS, "location": "/"})
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response


def _served(handler: Handler, *methods: str) -> Served:
    return Served(dict.fromkeys(methods or _LOOK, handler), _wrong)


def _wrong(error: Exception, request: Request) -> Response:
    told = problem(error, request)
    if isinstance(error, errors.Unauthenticated):
        target = views.address(request.url.path, request.query_params.multi_items())
        why = "The token is not valid any more." if COOKIE in request.cookies else None
        look = views.login(target if _leads_back(target) else "/", why)
    else:
        look = views.trouble(Problem.model_validate_json(bytes(told.body)))
    headers = {name: told.headers[name] for name in _KEPT if name in told.headers}
    return shown(look, request, status=told.status_code, headers=headers)


def shown(
    look: Look,
    request: Request,
    visitor: Visitor | None = None,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Answer with a page."""
    data = views.document(look, request.url.path, visitor)
    return Response(data, status, {**(headers or {}), **_HEADERS}, "text/html")


def _refuse_foreign(request: Request) -> None:
    """Refuse what a page of another port of this host makes a browser ask.

    To a browser both are one site, so that it sends the cookie; going there by a link is fine.
    Raises: Unauthenticated.
    """
    at = request.headers.get("sec-fetch-site", "none")
    if at not in {"none", "same-origin"} and request.headers.get("sec-fetch-mode") != "navigate":
        raise errors.Unauthenticated("a page of another address asks for this")


def _leads_back(path: str) -> bool:
    """Tell whether an address is one of these pages: a form could name any."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()


async def _form(request: Request) -> dict[str, str]:
    """Read a form. Raises: TooLarge, InvalidInput."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _FORM_MOST:
            raise errors.TooLarge(f"the form has more than {_FORM_MOST} bytes")
    try:
        found = parse_qs(data.decode(), max_num_fields=8, errors="strict")
    except ValueError as error:
        raise errors.InvalidInput("the form cannot be read") from error
    return {name: values[0] for name, values in found.items()}


async def _static(file: Path, _request: Request) -> Response:
    # Three small files of our own, which may be replaced by an upgrade at any time.
    data = await anyio.Path(file).read_bytes()
    return Response(data, headers={**_HEADERS, "content-type": _KINDS[file.suffix]})


# What each page asks for


async def _overview(asking: Asking) -> Look:
    live = await asking.live()
    now: Measures = await asking.ask("metrics_get")
    running: PageOf[Machine] = await asking.ask("machine_list", state=_STANDING, limit=_PAGE)
    newest: PageOf[TaskBrief] = await asking.ask("task_list", newest_first=True, limit=_NEWEST)
    return views.overview(now, running.items, newest.items, live)


async def _tasks(asking: Asking) -> Look:
    live = await asking.live()
    found: PageOf[TaskBrief] = await asking.ask(
        "task_list", **asking.given("task_list", newest_first=True, limit=_PAGE)
    )
    chosen = asking.request.query_params.getlist("state")
    following = asking.following("cursor", found.next_cursor)
    return views.task_list(found.items, chosen, following, live)


async def _task(asking: Asking) -> Look:
    task_id = asking.request.path_params["task_id"]
    task: Task = await asking.ask("task_get", task_id=task_id)
    live = await asking.live(task.task_id)
    task = await asking.ask("task_get", task_id=task.task_id)
    info: RunInfo | None = None
    output: Html | None = None
    if task.run is not None:
        info = await asking.ask("run_get", task_id=task.task_id)
        said: RunOutput = await asking.ask("run_output", task_id=task.task_id)
        output = views.output(said, f"{views.task_address(task.task_id)}/output")
    attempts: PageOf[Run] = await asking.ask("task_runs", task_id=task.task_id, limit=_PAGE)
    events: PageOf[Event] = await asking.ask("task_history", task_id=task.task_id, limit=_EVENTS)
    return views.task_page(task, info, output, attempts.items, events.items, live)


async def _output(asking: Asking) -> Look:
    task_id = asking.request.path_params["task_id"]
    said: RunOutput = await asking.ask("run_output", **asking.given("run_output", task_id=task_id))
    back = tag("p", tag("a", "The task", href=views.task_address(task_id)))
    return Look("Output", [back, views.output(said, asking.path)])


async def _machines(asking: Asking) -> Look:
    live = await asking.live()
    found: PageOf[Machine] = await asking.ask(
        "machine_list", **asking.given("machine_list", limit=_PAGE)
    )
    return views.machine_list(found.items, asking.following("cursor", found.next_cursor), live)


async def _operations(asking: Asking) -> Look:
    live = await asking.live()
    found: PageOf[Operation] = await asking.ask(
        "operation_list", **asking.given("operation_list", limit=_PAGE)
    )
    return views.operation_list(found.items, asking.following("cursor", found.next_cursor), live)


async def _events(asking: Asking) -> Look:
    given = asking.given("event_wait")
    if given.setdefault("after", "now") == "now":
        # Drawn anew, the page shall go on from the same place.
        now: EventAnswer = await asking.ask("event_wait", **given)
        raise _Elsewhere(str(asking.following("after", now.cursor)))
    live = await asking.live()
    found: EventAnswer = await asking.ask("event_wait", **given)
    return views.event_list(found.events, str(asking.following("after", found.cursor)), live)

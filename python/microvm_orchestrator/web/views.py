"""How the pages look: each function makes the content of one page out of what calls answered.

Nothing is asked for here, and nothing is trusted: titles, results and output are what guests and
clients made them. Above sit the pages; below, the elements.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from microvm_orchestrator import __version__
from microvm_orchestrator.model.task import TaskState
from microvm_orchestrator.web.html import Child, Html, cut, tag

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    from microvm_orchestrator.model.event import Event
    from microvm_orchestrator.model.machine import Machine
    from microvm_orchestrator.model.operation import Operation
    from microvm_orchestrator.model.report import Measures
    from microvm_orchestrator.model.run import RunRecord
    from microvm_orchestrator.model.task import Run, Task, TaskBrief
    from microvm_orchestrator.model.values import Json
    from microvm_orchestrator.service.runs import RunInfo, RunOutput
    from microvm_orchestrator.web.problems import Problem

# Of one text on a page; the API gives the whole.
_TEXT_MOST = 20_000
_CELL_MOST = 300
_FILES_MOST = 100

_NAVIGATION = {
    "/": "Overview",
    "/tasks": "Tasks",
    "/machines": "Machines",
    "/operations": "Operations",
    "/events": "Events",
}


@dataclass(frozen=True, slots=True)
class Look:
    """A page: its title, its content, and the stream that tells when it is to be drawn anew."""

    title: str
    content: Child
    live: str | None = None


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks; whether there is a session that they can end."""

    name: str
    role: str
    session: bool


def document(look: Look, path: str, visitor: Visitor | None) -> bytes:
    """Write a whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{look.title} · microvm-orchestrator"),
        tag("link", rel="icon", href="/static/icon.svg"),
        tag("link", rel="stylesheet", href="/static/pages.css"),
        tag("script", src="/static/pages.js", defer=True),
    )
    main = tag(
        "main",
        tag("h1", look.title),
        look.live and tag("p", class_="quiet", id="sign", role="status"),
        look.content,
        id="main",
        tabindex="-1",
        data_live=look.live,
    )
    skip = tag("a", "Skip to the content", class_="skip", href="#main")
    body = tag("body", skip, tag("header", _navigation(path, visitor)), main)
    return f"<!doctype html>{tag('html', head, body, lang='en').text}".encode()


def _navigation(path: str, visitor: Visitor | None) -> Child:
    if visitor is None:
        return tag("p", "microvm-orchestrator")
    links = [
        tag("li", tag("a", name, href=at, aria_current="page" if at == path else None))
        for at, name in _NAVIGATION.items()
    ]
    leave = tag("form", tag("button", "Log out"), method="post", action="/logout")
    who = [f"{visitor.name} ({visitor.role}) ", (visitor.session and leave) or None]
    return [tag("nav", tag("ul", links), aria_label="Pages"), tag("div", who, class_="visitor")]


def login(path: str, why: str | None) -> Look:
    """Ask for a token; whoever shows a good one comes to `path`."""
    hint = tag(
        "p",
        "A token is made by ",
        tag("code", "microvm-orchestrator token create NAME viewer"),
        ".",
    )
    field = tag(
        "input", type="password", name="token", id="token", required=True, autocomplete="off"
    )
    form = tag(
        "form",
        tag("input", type="hidden", name="path", value=path),
        tag("p", tag("label", "Token", for_="token"), field),
        tag("p", tag("button", "Log in")),
        method="post",
        action="/login",
    )
    return Look("Log in", [why and tag("p", why, role="alert"), form, hint])


def trouble(problem: Problem) -> Look:
    """Say what went wrong."""
    hint = problem.hint and tag("p", problem.hint, class_="quiet")
    return Look(problem.title, [tag("p", f"{problem.detail} ({problem.code})"), hint])


# Pages


def overview(
    now: Measures, machines: Sequence[Machine], tasks: Sequence[TaskBrief], live: str
) -> Look:
    counted = tag(
        "dl",
        [
            (tag("dt", _link(f"/tasks?state={state}", state)), tag("dd", count))
            for state, count in now.tasks.model_dump().items()
        ],
        id="counts",
        data_part=True,
    )
    well = tag("p", f"Version {__version__}. The store answers.")
    return Look(
        "Overview",
        [
            well,
            tag("h2", "Tasks by state"),
            counted,
            _machines(machines, "Machines that run"),
            _tasks(tasks, "Newest tasks"),
        ],
        live,
    )


def task_list(
    tasks: Sequence[TaskBrief], chosen: Sequence[str], following: str | None, live: str
) -> Look:
    links = [_filter("/tasks", "all", chosen=not chosen)]
    links += [
        _filter(f"/tasks?state={state}", state, chosen=list(chosen) == [state])
        for state in TaskState
    ]
    return Look(
        "Tasks",
        [_filters(links, "Tasks by state"), _tasks(tasks, "Tasks, newest first"), _more(following)],
        live,
    )


def machine_list(machines: Sequence[Machine], following: str | None, live: str) -> Look:
    return Look("Machines", [_machines(machines, "Machines"), _more(following)], live)


def operation_list(operations: Sequence[Operation], following: str | None, live: str) -> Look:
    rows = [
        (
            each.operation_id,
            each.kind,
            _state(each.state),
            each.target,
            each.owner,
            _time(each.created_at),
            _time(each.finished_at),
            _said(each),
        )
        for each in operations
    ]
    columns = ("Operation", "Kind", "State", "Target", "Owner", "Began", "Ended", "What it says")
    return Look("Operations", [_table("Operations", columns, rows), _more(following)], live)


def event_list(events: Sequence[Event], following: str, live: str) -> Look:
    begin = _link("/events?after=begin", "From the beginning")
    onward = _link(following, "Go on from here")
    now = _link("/events", "From now on")
    links = tag("p", begin, " · ", onward, " · ", now, id="more", data_part=True)
    return Look("Events", [links, _events(events, "Events, oldest first")], live)


def task_page(
    task: Task,
    info: RunInfo | None,
    output: Html | None,
    attempts: Sequence[Run],
    events: Sequence[Event],
    live: str,
) -> Look:
    told = {
        "Task": task.task_id,
        "State": [_state(task.state), task.reason and f" {task.reason}"],
        "Key": task.key,
        "Group": task.group,
        "Kind": task.kind,
        "Owner": task.owner,
        "Worker": task.worker,
        "Attempt": task.attempt,
        "Progress": _progress(task),
        "Waits for": _joined(_link(task_address(each), each) for each in task.waiting_for),
        "Labels": ", ".join(f"{name}={value}" for name, value in task.labels.items()),
        "Created": _time(task.created_at),
        "Started": _time(task.started_at),
        "Ended": _time(task.finished_at),
        "Description": cut(task.description, _TEXT_MOST),
        "Input": _json(task.input),
        "Result": _json(task.result),
        "Error": task.error and f"{task.error.code}: {cut(task.error.message, _TEXT_MOST)}",
    }
    return Look(
        task.title or task.key or task.task_id,
        [
            _facts("task", "Task", told),
            info and _facts("run", "Run", _run(info)),
            output and tag("section", tag("h2", "Output"), output),
            _attempts(attempts),
            _events(events, "Events of this task, oldest first"),
        ],
        live,
    )


def output(said: RunOutput, at: str) -> Html:
    """Show what a run's program said. `at` is where there is more of it."""
    pieces = [
        tag("span", piece.text, class_="stderr" if piece.channel == "stderr" else None)
        for piece in said.pieces
    ]
    shown = tag(
        "pre",
        pieces,
        id="said",
        tabindex="0",
        aria_label="What the program said",
        data_from=at,
        data_run=said.run_id,
        data_next=said.next,
        data_ended=said.ended,
    )
    onward = _link(f"{at}?offset={said.next}", "What it said after that")
    return tag("div", shown, None if said.ended else tag("noscript", tag("p", onward)))


def _run(info: RunInfo) -> dict[str, Child]:
    run = info.run
    if run is None:
        return {"Step": "this host has not begun"}
    return {
        "Run": run.run_id,
        "Step": _state(run.step),
        "Paused": run.paused and f"{run.paused.measure} reached {run.paused.limit:g}",
        "Machine": run.machine_id,
        "Says": cut(info.saying, _CELL_MOST),
        "Used": _used(run),
        **(_result(run)),
        "Merge": _merge(run),
        "Artifacts": _joined(cut(each.name, _CELL_MOST) for each in run.artifacts[:_FILES_MOST]),
    }


def _used(run: RunRecord) -> str:
    used = run.usage
    cost = "" if used.cost_usd is None else f", {used.cost_usd:.4f} US dollars"
    tokens = f"{used.tokens_in} tokens in, {used.tokens_out} out"
    return f"{used.wall_s:.1f} s, {tokens}{cost}"


def _result(run: RunRecord) -> dict[str, Child]:
    result = run.result
    if result is None:
        return {}
    commits = [f"{each.commit[:12]} {cut(each.subject, _CELL_MOST)}" for each in result.commits]
    files = [f"{each.status} {cut(each.path, _CELL_MOST)}" for each in result.files_changed]
    return {
        "Success": "yes" if result.success else "no",
        "Exit code": result.exit_code,
        "Summary": cut(result.summary, _TEXT_MOST),
        "Failure": result.error,
        "Commits": _joined(commits[:_FILES_MOST]),
        "Files": _joined(files[:_FILES_MOST]),
    }


def _merge(run: RunRecord) -> Child:
    merge = run.merge
    into = f" into {cut(merge.into, _CELL_MOST)}" if merge.into else ""
    why = f": {cut(merge.reason, _CELL_MOST)}" if merge.reason else ""
    conflicts = _joined(cut(each.path, _CELL_MOST) for each in merge.conflicts[:_FILES_MOST])
    return [_state(merge.state), f"{into}{why} ", conflicts]


# Parts


def _tasks(tasks: Sequence[TaskBrief], caption: str) -> Html:
    rows = [
        (
            _link(
                task_address(each.task_id), cut(each.title or each.key or each.task_id, _CELL_MOST)
            ),
            _state(each.state),
            each.group,
            each.kind,
            each.owner,
            each.worker,
            _time(each.created_at),
            _time(each.finished_at),
        )
        for each in tasks
    ]
    columns = ("Task", "State", "Group", "Kind", "Owner", "Worker", "Created", "Ended")
    return _table(caption, columns, rows)


def _machines(machines: Sequence[Machine], caption: str) -> Html:
    rows = [
        (
            each.name or each.machine_id,
            [_state(each.state), each.reason and f" {cut(each.reason, _CELL_MOST)}"],
            each.owner,
            f"{each.memory_mib} MiB",
            each.vcpus,
            each.accel,
            _time(each.created_at),
            _time(each.started_at),
        )
        for each in machines
    ]
    columns = ("Machine", "State", "Owner", "Memory", "CPUs", "By", "Created", "Started")
    return _table(caption, columns, rows)


def _attempts(attempts: Sequence[Run]) -> Html:
    rows = [
        (
            each.attempt,
            _state(each.state),
            each.worker,
            _time(each.started_at),
            _time(each.finished_at),
            each.error and cut(f"{each.error.code}: {each.error.message}", _CELL_MOST),
        )
        for each in attempts
    ]
    return _table("Attempts", ("Attempt", "State", "Worker", "Began", "Ended", "Error"), rows)


def _events(events: Sequence[Event], caption: str) -> Html:
    rows = [
        (
            each.seq,
            _time(each.at),
            each.kind,
            _link(task_address(each.subject), each.subject)
            if each.kind.startswith("task.")
            else each.subject,
            each.actor,
            cut(_json(each.body), _CELL_MOST),
        )
        for each in events
    ]
    return _table(caption, ("Number", "At", "Kind", "About", "By", "What"), rows)


def _table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    head = tag("thead", tag("tr", [tag("th", each, scope="col") for each in columns]))
    body = tag("tbody", [tag("tr", [tag("td", cell) for cell in row]) for row in rows])
    name = f"table-{caption.partition(',')[0].replace(' ', '-').lower()}"
    nothing = None if rows else tag("p", "None.", class_="quiet")
    table = tag("table", tag("caption", caption), head, body)
    return tag("div", table, nothing, class_="scroll", id=name, data_part=True)


def _facts(name: str, title: str, facts: Mapping[str, Child]) -> Html:
    told = [
        (tag("dt", term), tag("dd", fact))
        for term, fact in facts.items()
        if fact is not None and fact not in ("", [])
    ]
    return tag("section", tag("h2", title), tag("dl", told), id=name, data_part=True)


def _filters(links: Iterable[Html], label: str) -> Html:
    return tag("nav", tag("ul", [tag("li", link) for link in links]), aria_label=label)


def _filter(at: str, name: str, *, chosen: bool) -> Html:
    return tag("a", name, href=at, aria_current="true" if chosen else None)


def _more(following: str | None) -> Html:
    link = following and _link(following, "More")
    return tag("p", link, id="more", data_part=True)


def address(path: str, query: Iterable[tuple[str, str]]) -> str:
    """Write an address of a page."""
    told = urlencode(list(query))
    return f"{path}?{told}" if told else path


def task_address(task_id: str) -> str:
    return f"/tasks/{quote(task_id, safe='', errors='replace')}"


def _link(at: str, text: str) -> Html:
    return tag("a", text, href=at)


def _state(state: str) -> Html:
    return tag("span", state, class_=f"state {state}")


def _time(at: datetime | None) -> Html | None:
    if at is None:
        return None
    return tag("time", f"{at:%Y-%m-%d %H:%M:%S}", datetime=at.isoformat(), title="UTC")


def _progress(task: Task) -> str | None:
    if task.progress is None:
        return None
    share = "" if task.progress.fraction is None else f"{task.progress.fraction:.0%} "
    return f"{share}{task.progress.message}"


def _said(operation: Operation) -> str | None:
    if operation.error is not None:
        return cut(f"{operation.error.code}: {operation.error.message}", _CELL_MOST)
    return operation.progress and operation.progress.message


def _json(value: Json) -> str:
    return "" if value is None else cut(json.dumps(value, ensure_ascii=False), _TEXT_MOST)


def _joined(parts: Iterable[Child]) -> list[Child]:
    told: list[Child] = []
    for part in parts:
        told += [part] if not told else ["\n", part]
    return told

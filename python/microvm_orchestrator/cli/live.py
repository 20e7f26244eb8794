"""The picture that `task watch` keeps up to date on a terminal, drawn by rich.

Loaded only for a terminal. It draws what watch.py knows, some times a second so that clocks run;
it asks the daemon nothing.
"""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from microvm_orchestrator.cli.failure import harmless
from microvm_orchestrator.cli.journal import event_line
from microvm_orchestrator.cli.output import STYLES, console
from microvm_orchestrator.cli.watch import FINISHED

if TYPE_CHECKING:
    from microvm_orchestrator.cli.watch import Watched

Json = dict[str, Any]

EVENTS_SHOWN = 5
# Head, bar, head of the table, empty lines and events.
_FRAME_LINES = 8 + EVENTS_SHOWN
_MARKS = {"blocked": "·", "ready": "○", "done": "●", "failed": "✗", "cancelled": "⊘"}


def draw(watched: Watched) -> None:
    """Draw until all have finished."""
    events: deque[Json] = deque(maxlen=EVENTS_SHOWN)
    screen = console()
    spinner = Spinner("dots", style=STYLES["running"])

    def picture() -> RenderableType:
        tasks = list(watched.tasks.values())
        room = max(3, screen.height - _FRAME_LINES)
        return Group(
            _head(watched.group, tasks),
            _table(tasks, room, spinner),
            *(Text(harmless(event_line(event)), style="dim", no_wrap=True) for event in events),
        )

    with Live(get_renderable=picture, console=screen, refresh_per_second=8):
        for news in watched.changes():
            events.extend(news)


def _head(group: str, tasks: list[Json]) -> RenderableType:
    counts = Counter(task["state"] for task in tasks)
    words = Text.assemble(("group ", "dim"), (harmless(group), "bold"), "  ")
    for state, count in counts.items():
        words.append(f"{count} {state}  ", style=STYLES[state])
    line = Table.grid(padding=(0, 2))
    line.add_row(ProgressBar(total=len(tasks), completed=counts["done"], width=30), words)
    return line


def _table(tasks: list[Json], room: int, spinner: Spinner) -> RenderableType:
    shown = tasks
    if len(tasks) > room:
        # What still moves says more than what has ended.
        shown = sorted(tasks, key=lambda task: task["state"] in FINISHED)[:room]
    names: dict[str, str] = {task["task_id"]: task["key"] or task["task_id"] for task in tasks}
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for title in ("", "state", "task", "title", "worker", "time", "progress"):
        table.add_column(title, no_wrap=True, overflow="ellipsis")
    for task in shown:
        state = task["state"]
        mark = spinner if state == "running" else Text(_MARKS.get(state, " "), STYLES[state])
        words = (
            state,
            task["key"] or task["task_id"],
            task["title"],
            task["worker"] or "",
            _time(task),
            _more(task, names),
        )
        style = STYLES[state] if state in FINISHED | {"running"} else ""
        cells = [
            Text(harmless(word), style=style if at == 0 else "") for at, word in enumerate(words)
        ]
        table.add_row(mark, *cells)
    if len(shown) < len(tasks):
        table.caption = f"and {len(tasks) - len(shown)} more"
    return table


def _time(task: Json) -> str:
    if task["started_at"] is None:
        return ""
    end = datetime.fromisoformat(task["finished_at"]) if task["finished_at"] else datetime.now(UTC)
    seconds = max(0.0, (end - datetime.fromisoformat(task["started_at"])).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def _more(task: Json, names: dict[str, str]) -> str:
    if task["state"] == "blocked":
        waiting: list[str] = [names.get(each) or each for each in task["waiting_for"]]
        return f"after {', '.join(waiting)}" if waiting else str(task["reason"] or "")
    if task["state"] == "running" and task["progress"]:
        share, message = task["progress"]["fraction"], task["progress"]["message"]
        return f"{'' if share is None else f'{share:.0%}'} {message}".strip()
    if task["error"]:
        return f"{task['error']['code']}: {task['error']['message']}"
    return str(task["reason"] or "")

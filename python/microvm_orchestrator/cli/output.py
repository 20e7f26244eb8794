"""What commands write: the daemon's JSON as it came, or something for people to read.

On a terminal that is drawn by rich, which is loaded only then; elsewhere it is plain aligned text,
so that grep, awk and a log file see whole values. Above sit the commands.
"""

from __future__ import annotations

import json
import os
import re
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from microvm_orchestrator.cli.failure import UNPRINTABLE, harmless, say
from microvm_orchestrator.cli.values import shorthand

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

Json = dict[str, Any]

STYLES = {
    "blocked": "yellow",
    "ready": "cyan",
    "running": "bold blue",
    "waiting": "cyan",
    "queued": "cyan",
    "starting": "blue",
    "done": "green",
    "succeeded": "green",
    "ok": "green",
    "active": "green",
    "delivered": "green",
    "pending": "yellow",
    "draining": "yellow",
    "warning": "yellow",
    "failed": "bold red",
    "deadlocked": "bold red",
    "timed_out": "red",
    "lost": "red",
    "dead": "red",
    "cancelled": "magenta",
}
_NOTHING = "-"
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}m")
# Numbers of tasks by state, most of which are zero.
_COUNTS = {"counts", "tasks"}


def on_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def console() -> Console:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=False)


def emit(raw: bytes) -> None:
    """Write one JSON document on a line of its own: as it came, or the same for a terminal."""
    if sys.stdout.isatty():
        raw = UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", raw.decode()).encode()
    sys.stdout.buffer.write(raw.rstrip(b"\n") + b"\n")
    sys.stdout.buffer.flush()


def emit_value(value: object) -> None:
    """Write one line of JSON that is a part of an answer, or our own."""
    emit(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())


def said(text: str) -> str:
    """Return what a program said as a terminal shows it: in lines, without colours."""
    return harmless(_COLOUR.sub("", text.replace("\r\n", "\n").replace("\r", "\n")))


def line(text: str) -> None:
    """Write a line of data, at once."""
    sys.stdout.write(f"{harmless(text)}\n")
    sys.stdout.flush()


def show(value: Json) -> None:
    """Show any answer: its plain fields together, each list of objects as a table."""
    tables = {name: item for name, item in value.items() if _is_table(item)}
    record({name: item for name, item in value.items() if name not in tables})
    for name, rows in tables.items():
        line(f"\n{name}")
        table(list(rows[0]), rows)


def page(value: Json, columns: Sequence[str], nothing: str) -> None:
    """Show a page of a list; how to go on is said aside."""
    if not value["items"]:
        say(nothing)
    else:
        table(columns, value["items"])
    if cursor := value.get("next_cursor"):
        say(f"there is more: --cursor {cursor}")


def record(fields: Json, title: str | None = None) -> None:
    """Show the fields of one thing; those without a value are left out."""
    found = {
        name: cell(name, item) for name, item in fields.items() if item not in (None, "", [], {})
    }
    if not found:
        return
    width = max(map(len, found))
    if not on_terminal():
        for name, text in found.items():
            line(f"{name:<{width}}  {text}".replace("\n", "\n" + " " * (width + 2)))
        return
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, text in found.items():
        grid.add_row(name, Text(harmless(text), style=STYLES.get(text, "")))
    console().print(Panel.fit(grid, title=None if title is None else Text(harmless(title))))


def table(columns: Sequence[str], rows: Sequence[Json]) -> None:
    """Show things of one kind, one a row."""
    cells = [
        [harmless(cell(name, row.get(name)).replace("\n", " ")) for name in columns] for row in rows
    ]
    if not on_terminal():
        head = [name.upper() for name in columns]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        for row in (head, *cells):
            padded = (text.ljust(width) for text, width in zip(row, widths, strict=True))
            line("  ".join(padded).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        # An id is there to be copied, so it stays in one piece.
        drawn.add_column(name, overflow="fold", no_wrap=name.endswith("_id"))
    for row in cells:
        drawn.add_row(*(Text(text, style=STYLES.get(text, "")) for text in row))
    console().print(drawn)


def cell(name: str, value: object) -> str:
    """Write one value as people read it."""
    match value:
        case None | "" | []:
            return _NOTHING
        case dict() if not value:
            return _NOTHING
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.3f}".rstrip("0").rstrip(".")
        case str():
            return _local(value) if name == "at" or name.endswith("_at") else value
        case list() if name == "depends_on":
            return " ".join(shorthand(item) for item in cast("list[object]", value))
        case list() if all(isinstance(item, str) for item in cast("list[object]", value)):
            return ", ".join(cast("list[str]", value))
        case dict() if name in _COUNTS:
            counts = cast("Json", value).items()
            return " ".join(f"{key}={item}" for key, item in counts if item) or _NOTHING
        case dict() if name == "progress":
            return _progress(cast("Json", value))
        case dict() if _is_flat(cast("Json", value)):
            members = cast("Json", value).items()
            return " ".join(f"{key}={cell(key, item)}" for key, item in members)
        case list() | dict():
            return json.dumps(value, ensure_ascii=False)
        case _:
            return str(value)


def _is_flat(value: Json) -> bool:
    return not any(isinstance(item, dict | list) for item in value.values())


def _progress(value: Json) -> str:
    share = value.get("fraction")
    percent = "" if share is None else f"{share:.0%}"
    return f"{percent} {value.get('message') or ''}".strip() or _NOTHING


def _local(moment: str) -> str:
    """Write a moment in the reader's own time, where the reader is a person."""
    if not on_terminal():
        return moment
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M:%S}"


def _is_table(value: object) -> bool:
    if not isinstance(value, list) or not value:
        return False
    items = cast("list[object]", value)
    return all(isinstance(item, dict) for item in items)

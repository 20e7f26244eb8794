"""One row of the table of hostile inputs, and how rows are written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

# A door that cannot say such a thing at all.
UNSAYABLE = "unsayable"

_ABOUT = {"_by", "_mcp", "_http", "_rest", "_words", "_stdin", "_cli"}
BAD_JSON = "rpc -32700"


@dataclass(frozen=True, slots=True)
class Row:
    """One thing to say, and what must come of it."""

    name: str
    call: str
    given: bytes
    code: str
    by: str = "admin"
    # Where a door answers otherwise.
    mcp: str | None = None
    http: str | None = None
    rest: str | None = None
    # The command line: its words (without them it is not asked), input and code.
    words: tuple[str, ...] | None = None
    stdin: bytes = b""
    cli: str | None = None

    def __str__(self) -> str:
        return self.name


def row(name: str, code: str, call: str, /, **arguments: Any) -> Row:
    """Make a row of a call and its arguments; the names of `_ABOUT` are about the row."""
    about = {key[1:]: arguments.pop(key) for key in _ABOUT & arguments.keys()}
    return written(name, code, call, json.dumps(arguments).encode(), **about)


def written(name: str, code: str, call: str, given: bytes, **about: Any) -> Row:
    """Make a row of arguments as they are written; tasks are said on the command line as graphs."""
    if call == "task_submit" and "words" not in about:
        about |= {"words": ("graph", "submit", "-"), "stdin": b'{"tasks": [%s]}' % given}
    return Row(name, call, given, code, **about)


def submit(name: str, code: str = "invalid-input", /, **spec: Any) -> Row:
    return row(name, code, "task_submit", **spec)

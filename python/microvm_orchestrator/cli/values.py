"""What the words of a shell mean: pairs, JSON, documents, and the shorthand of dependencies.

Above sit the commands; below, the standard library. What cannot be read is `invalid-input`; what
can be read goes to the daemon, which says whether it makes sense.
"""

from __future__ import annotations

import base64
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Iterable

Value = Any

STDIN = "-"
_LEVELS = {"low", "normal", "high", "urgent"}
_ENDS = {"success", "failure", "finish"}
_GATE = re.compile(r"(any|all|[1-9][0-9]*|(?:100|[1-9]?[0-9])%):(.+)", re.DOTALL)
_TEST = re.compile(
    r"(?P<task>[^?]+)\?(?P<field>[^=!<>]+?)\s*(?:(?P<op>==|!=|>=|<=|>|<)\s*(?P<value>.+))?"
)
_OPERATORS = {"==": "eq", "!=": "ne", ">": "gt", ">=": "ge", "<": "lt", "<=": "le"}


def pairs(words: Iterable[str] | None, option: str) -> dict[str, str] | None:
    """Read `k=v` words. Raises: InvalidInput."""
    if words is None:
        return None
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise errors.InvalidInput(f"{option} {word} is not written key=value")
        if key in found:
            raise errors.InvalidInput(f"{option} {key} is given twice")
        found[key] = value
    return found


def octets_at(text: str, encoded: str | None) -> bytes:
    """Give the bytes that an answer holds as text, or in base64 where they are none."""
    return text.encode() if encoded is None else base64.b64decode(encoded)


def text(word: str | None) -> str | None:
    """Read a word as it stands, the file behind `@file`, or standard input for `-`."""
    if word is None or not (word == STDIN or word.startswith("@")):
        return word
    return content(word.removeprefix("@"))


def json_value(word: str | None, option: str) -> Value:
    """Read JSON: the word itself, the file behind `@file`, or standard input for `-`.

    Raises: InvalidInput.
    """
    written = text(word)
    return None if written is None else parse(written, option)


def mcp_servers(word: str | None) -> Value:
    """Read MCP servers by their names; a whole `.mcp.json` has them one level further down.

    Raises: InvalidInput.
    """
    servers = json_value(word, "--mcp-servers")
    match servers:
        case {"mcpServers": within, **others} if not others:
            return within
        case _:
            return servers


def parse(written: str, place: str) -> Value:
    """Raises: InvalidInput when it is not JSON."""
    try:
        return json.loads(written, parse_constant=_no_constant)
    except RecursionError as error:
        raise errors.InvalidInput(f"{place} is nested too deeply") from error
    except ValueError as error:
        raise errors.InvalidInput(
            f"{place} is not JSON: {error}", hint="text is written in quotes too: '\"like this\"'"
        ) from error


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def document(file: str) -> Value:
    """Read a document: TOML by the ending of its name, else JSON; `-` is JSON on standard input.

    Raises: InvalidInput.
    """
    written = content(file)
    if not file.endswith(".toml"):
        return parse(written, "standard input" if file == STDIN else file)
    try:
        # TOML has moments of its own; the daemon takes them as text.
        return json.loads(json.dumps(tomllib.loads(written), default=_moment))
    except tomllib.TOMLDecodeError as error:
        raise errors.InvalidInput(f"{file} is not TOML: {error}") from error


def _moment(value: Any) -> str:
    return value.isoformat()


def fields(file: str) -> dict[str, Value]:
    """Read a document that is an object. Raises: InvalidInput."""
    found = document(file)
    if not isinstance(found, dict):
        raise errors.InvalidInput(f"{file} is no object at its top")
    return cast("dict[str, Value]", found)


def merged(chosen: Value, more: dict[str, Value]) -> Value:
    """Add fields to a document; one that is no object stays, for the daemon to refuse."""
    if not isinstance(chosen, dict):
        return chosen
    return {**cast("dict[str, Value]", chosen), **more}


def content(file: str) -> str:
    """Read the text of a file, - being standard input. Raises: InvalidInput."""
    try:
        if file == STDIN:
            return sys.stdin.buffer.read().decode()
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise errors.InvalidInput(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"{file} is not UTF-8 at byte {error.start}") from error


def secret(file: str | None) -> str | None:
    """Read one line that shall not stand in the list of processes. Raises: InvalidInput."""
    if file is None:
        return None
    line = content(file).strip()
    if not line or "\n" in line:
        raise errors.InvalidInput(f"{file} does not hold one line")
    return line


def priority(word: str | None) -> str | int | None:
    """Raises: InvalidInput when it is neither a level nor a number."""
    if word is None or word in _LEVELS:
        return word
    try:
        return int(word)
    except ValueError as error:
        raise errors.InvalidInput(
            f"priority {word} is unknown", hint="low, normal, high, urgent, or -1000 to 1000"
        ) from error


def retry(word: str | None) -> Value:
    """Read a number of attempts, or the whole policy as JSON."""
    if word is None:
        return None
    return {"max_attempts": int(word)} if word.isdecimal() else json_value(word, "--retry")


def dependency(word: str) -> Value:
    """Read one dependency: a task, a task with an end or a test, some of several, or JSON.

    build   build:failure   build?coverage>=80   any:a,b,c   2:a,b,c   60%:a,b,c   {"task": ...}
    """
    if word.startswith("{"):
        return parse(word, "--depends-on")
    if gate := _GATE.fullmatch(word):
        need, several = gate.groups()
        return {
            "of": [_edge(each.strip()) for each in several.split(",")],
            "need": int(need) if need.isdecimal() else need,
        }
    return _edge(word)


def _edge(word: str) -> Value:
    if test := _TEST.fullmatch(word):
        found: dict[str, Value] = {"field": test["field"].strip(), "op": "exists"}
        if test["op"]:
            found |= {"op": _OPERATORS[test["op"]], "value": _loose(test["value"])}
        return {"task": test["task"], "where": found}
    task, colon, end = word.rpartition(":")
    return {"task": task, "on": end} if colon and end in _ENDS else word


def _loose(word: str) -> Value:
    """Read JSON where it is some, else plain text."""
    try:
        return json.loads(word, parse_constant=_no_constant)
    except ValueError:
        return word


def shorthand(dependency: Value) -> str:
    """Write a dependency as people would, so that it can be read in a table."""
    match dependency:
        case {"of": [edge], "need": _}:
            return shorthand(edge)
        case {"of": [*edges], "need": need}:
            return f"{need}:{','.join(shorthand(edge) for edge in edges)}"
        case {"task": task, "where": {"field": field, "op": op, "value": value}}:
            signs = {name: sign for sign, name in _OPERATORS.items()}
            test = "" if op == "exists" else f"{signs.get(op, op)}{json.dumps(value)}"
            return f"{task}?{field}{test}"
        case {"task": task, "on": end} if end != "success":
            return f"{task}:{end}"
        case {"task": task}:
            return str(task)
        case _:
            return str(dependency)


def parameters(
    words: Iterable[str] | None, declared: dict[str, dict[str, Value]]
) -> dict[str, Value]:
    """Read `name=value` words as the types that a template declares for its parameters.

    Raises: InvalidInput when a word cannot be of its type; whether it fits, the daemon says.
    """
    found: dict[str, Value] = {}
    for word in words or ():
        name, equals, value = word.partition("=")
        if not equals:
            raise errors.InvalidInput(f"--param {word} is not written name=value")
        kind = declared.get(name, {}).get("type", "string")
        if kind == "strings" and not value.startswith("["):
            found.setdefault(name, []).append(value)
        elif name in found:
            raise errors.InvalidInput(f"--param {name} is given twice")
        elif kind in {"string", "choice"}:
            found[name] = value
        else:
            found[name] = parse(value, f"--param {name}, which is of type {kind},")
    return found

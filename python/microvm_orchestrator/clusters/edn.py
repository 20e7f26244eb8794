"""Histories as Jepsen writes and reads them: EDN, one map a line; and the part of EDN they need.

Maps, vectors, lists, sets, strings, numbers, keywords and nil; a tag before a value is passed over.
Keywords become plain strings when they are read. Where a history has keys, a value stands beside
its key in a vector, as `jepsen.independent` has it. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.history import MAX_EVENTS, HistoryEvent, event_of

_MAX_DEPTH = 64
_TOKEN = re.compile(
    r"[\s,]+|;[^\n]*"
    r'|(?P<string>"(?:[^"\\]|\\.)*")'
    r"|(?P<open>#\{|[\[({])|(?P<close>[\])}])"
    r"|(?P<tag>#[A-Za-z][\w.*+!?%&=<>/-]*)"
    r"|(?P<atom>[^\s,;\"\[\](){}]+)",
    re.DOTALL,
)
_INT = re.compile(r"[+-]?[0-9]+N?$", re.ASCII)
_FLOAT = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?M?$", re.ASCII)
_CLOSES = {"{": "}", "[": "]", "(": ")", "#{": "}"}
_CONSTANTS: dict[str, JsonValue] = {"nil": None, "true": True, "false": False}


def history_to_edn(events: Iterable[HistoryEvent]) -> str:
    """Write a history, one event a line."""
    return "".join(f"{_event(index, event)}\n" for index, event in enumerate(events))


def to_edn(value: JsonValue) -> str:
    """Write a value."""
    match value:
        case None:
            return "nil"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return json.dumps(value)
        case str():
            return _string(value)
        case list():
            return "[" + " ".join(map(to_edn, value)) + "]"
        case dict():
            pairs = (f"{_string(name)} {to_edn(each)}" for name, each in value.items())
            return "{" + ", ".join(pairs) + "}"


def history_from_edn(text: str, *, keyed: bool = False) -> list[HistoryEvent]:
    """Read a history: maps one after the other, or in one vector.

    With `keyed`, each value that is a pair is a key and a value, as in an independent test. What an
    event has beside what we know of it is passed over; where it has no time, its place in the order
    stands for it. Raises: InvalidInput, TooLarge.
    """
    values = read_edn(text)
    if len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if len(values) > MAX_EVENTS:
        raise errors.TooLarge(f"the history has more than {MAX_EVENTS} events")
    return [_read_event(value, index, keyed=keyed) for index, value in enumerate(values)]


def read_edn(text: str) -> list[JsonValue]:
    """Read all the values of a text. Raises: InvalidInput."""
    top: list[JsonValue] = []
    # What is open: what closes it, and what it holds.
    open_: list[tuple[str, list[JsonValue]]] = [("", top)]
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise errors.InvalidInput(f"what stands at character {at} is no EDN")
        at = match.end()
        if match["open"]:
            if len(open_) > _MAX_DEPTH:
                raise errors.InvalidInput(f"it is nested deeper than {_MAX_DEPTH} levels")
            mark = match["open"]
            open_.append(("{" if mark == "{" else _CLOSES[mark], []))
        elif match["close"]:
            closes, items = open_.pop()
            if not open_ or match["close"] != _CLOSES.get(closes, closes):
                raise errors.InvalidInput(f"nothing that ends at character {at - 1} was begun")
            open_[-1][1].append(_map(items, at) if closes == "{" else items)
        elif match["string"]:
            open_[-1][1].append(_unquoted(match["string"]))
        elif match["atom"]:
            open_[-1][1].append(_atom(match["atom"]))
    if len(open_) > 1:
        raise errors.InvalidInput("it ends in the middle of a value")
    return top


def _event(index: int, event: HistoryEvent) -> str:
    process = event.process if isinstance(event.process, int) else f":{event.process}"
    value = event.value if event.key is None else [event.key, event.value]
    parts = [
        f":index {index}",
        f":process {process}",
        f":type :{event.type}",
        f":f :{event.f}",
        f":value {to_edn(value)}",
        f":time {event.time}",
    ]
    if event.error is not None:
        parts.append(f":error {_string(event.error)}")
    return "{" + ", ".join(parts) + "}"


def _read_event(value: JsonValue, index: int, *, keyed: bool) -> HistoryEvent:
    where = f"event {index}"
    if not isinstance(value, dict):
        raise errors.InvalidInput(f"{where} is no map")
    fields = {name: value.get(name) for name in ("process", "type", "f", "value")}
    fields["time"] = value.get("time", index)
    if isinstance(error := value.get("error"), str):
        fields["error"] = error
    pair = fields["value"]
    if keyed and isinstance(pair, list) and len(pair) == 2:
        fields["key"], fields["value"] = pair
    return event_of(json.dumps(fields), where)


def _string(text: str) -> str:
    # What JSON writes by its number EDN knows too; it has no such form beyond sixteen bits.
    return json.dumps(text)


def _unquoted(quoted: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(quoted, strict=False)
    except ValueError:
        raise errors.InvalidInput(f"{quoted[:40]} is no string") from None
    return value


def _atom(text: str) -> JsonValue:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT.match(text) and len(text) < 40:
        return int(text.rstrip("N"))
    if _FLOAT.match(text):
        return float(text.rstrip("M"))
    return text.removeprefix(":")


def _map(items: list[JsonValue], at: int) -> dict[str, JsonValue]:
    if len(items) % 2:
        raise errors.InvalidInput(f"the map that ends at character {at - 1} lacks a value")
    names = (name if isinstance(name, str) else json.dumps(name) for name in items[::2])
    return dict(zip(names, items[1::2], strict=True))

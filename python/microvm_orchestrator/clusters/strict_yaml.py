"""YAML as people write it by hand: plain values, lists and mappings, and nothing clever.

What makes a small text large or deep is refused: anchors and aliases, tags, several documents,
more than so much of anything. So is a key that is there twice, of which one would be lost. All that
is wrong is told at once, each with its path. Below are only PyYAML's parser and the errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import yaml
from pydantic import JsonValue

from microvm_orchestrator import errors

# The largest topology that people write is a tenth of it; to read so much takes a second.
MAX_CHARS = 65_536
MAX_DEPTH = 16
MAX_NODES = 10_000
# Words beyond this help nobody.
_SHOWN = 40

_PREFIX = "tag:yaml.org,2002:"
_TRUE = frozenset({"yes", "true", "on"})
# Of what YAML 1.1 takes for a number, what people take for one: neither 1:30 nor 0x1F nor 1_000.
_HALF = re.compile(r"[\ud800-\udfff]")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?[0-9]{1,17}\.[0-9]{0,17}([eE][-+]?[0-9]{1,3})?")


# Their parameters have no types.
_parse = cast("Callable[..., Iterator[yaml.Event]]", getattr(yaml, "parse"))  # noqa: B009  # the checker would report the plain form
_compose = cast("Callable[..., yaml.Node | None]", getattr(yaml, "compose"))  # noqa: B009  # likewise


@dataclass(slots=True)
class Read:
    """What a text says, and what is wrong with it: the path of each place, and a sentence."""

    value: JsonValue = None
    problems: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])


def read(text: str) -> Read:
    """Read a text. Raises: InvalidInput when it is no YAML that can be read at all."""
    if len(text) > MAX_CHARS:
        raise errors.InvalidInput(f"it has {len(text)} characters; {MAX_CHARS} are allowed")
    try:
        _check_events(_parse(text, Loader=yaml.SafeLoader))
        root = _compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise errors.InvalidInput(f"{where}{error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise errors.InvalidInput("it holds a character that YAML does not allow") from error
    except (ValueError, OverflowError) as error:
        raise errors.InvalidInput("it holds an escape for a character that there is not") from error
    found = Read()
    if root is not None:
        found.value = _value(root, "", found)
    return found


def join(path: str, step: str | int) -> str:
    """Return the path of something within what has a path."""
    if isinstance(step, int):
        return f"{path}[{step}]"
    step = step if step.isprintable() else repr(step)
    return f"{path}.{step[:_SHOWN]}" if path else step[:_SHOWN]


def _check_events(events: Iterator[yaml.Event]) -> None:
    depth = count = 0
    for event in events:
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise errors.InvalidInput(f"{where}: aliases are not allowed")
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:
            raise errors.InvalidInput(f"{where}: anchors are not allowed")
        if isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            count += 1
            if event.tag is not None and event.tag != "!":
                raise errors.InvalidInput(f"{where}: tags are not allowed")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise errors.InvalidInput(f"{where}: it is nested deeper than {MAX_DEPTH} levels")
        if count > MAX_NODES:
            raise errors.InvalidInput(f"{where}: it has more than {MAX_NODES} values")


def _value(node: yaml.Node, path: str, found: Read) -> JsonValue:
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, path, found)
    if isinstance(node, yaml.SequenceNode):
        return [_value(each, join(path, n), found) for n, each in enumerate(node.value)]
    text = str(node.value)
    if not text.isascii() and _HALF.search(text):
        found.problems.append((path, "has half of a surrogate pair"))
        return ""
    return _scalar(node.tag.removeprefix(_PREFIX), text)


def _mapping(node: yaml.MappingNode, path: str, found: Read) -> JsonValue:
    mapping: dict[str, JsonValue] = {}
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            found.problems.append((path, f"the key on line {line} is not a word"))
            continue
        # As it is written: `on` and `1` are words too where a key is expected.
        name = str(key.value)
        if name in mapping:
            told = f"is there twice, on line {lines[name]} and on line {line}"
            found.problems.append((join(path, name), told))
            continue
        lines[name] = line
        mapping[name] = _value(value, join(path, name), found)
    return mapping


def _scalar(kind: str, text: str) -> JsonValue:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in _TRUE
    if kind == "int" and _INTEGER.fullmatch(text):
        return int(text)
    if kind in {"int", "float"} and _FLOAT.fullmatch(text):
        return float(text)
    # Also a date and whatever else YAML 1.1 sees in words.
    return text

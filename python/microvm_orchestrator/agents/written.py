"""A file that somebody writes for agents: a head between two lines of three dashes, then its text.

The head has lines of `key: value`, taken as they stand. It looks like YAML and is less, so that
nothing in it can mean something else than it says. Pure; above are roles and teams.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from microvm_orchestrator import errors
from microvm_orchestrator.model.names import NAME

# A driver that passes it as a word of a command line has room for it, whatever its characters.
MAX_PROMPT = 24_000
MAX_DESCRIPTION = 200
MAX_ALIASES = 16
# More than any key of which there may be several has.
_MAX_LINES = 64

_FENCE = "---"
_KEYS = ("description", "aliases")
# All but the ends of lines, and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Said:
    """What a line of the head says, and which one it is."""

    number: int
    text: str

    def wrong(self, what: str) -> errors.InvalidInput:
        return _wrong(self.number, what)


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was read."""

    description: str
    aliases: tuple[str, ...]
    prompt: str
    # What else its head says, by the key.
    lines: Mapping[str, list[Said]]


def read_written(name: str, text: str, what: str, several: Collection[str] = ()) -> Written:
    """Read what is called `what`; of the keys `several` there may be many lines.

    Raises: InvalidInput, which says in which line.
    """
    if not NAME.fullmatch(name):
        raise errors.InvalidInput(
            f"its name is none of a {what}: letters, digits, dots, dashes and underscores, at "
            "most 64"
        )
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if _CONTROL.search(line):
            raise _wrong(number, "has a control character")
    given, end = _head(lines, what, several)
    if "description" not in given:
        raise errors.InvalidInput("its head has no description")
    [description] = given["description"]
    if len(description.text) > MAX_DESCRIPTION:
        raise description.wrong(f"the description has more than {MAX_DESCRIPTION} characters")
    prompt = "\n".join(lines[end:]).strip()
    if not prompt:
        raise errors.InvalidInput("it has no prompt behind its head")
    if len(prompt) > MAX_PROMPT:
        raise errors.InvalidInput(f"its prompt has more than {MAX_PROMPT} characters")
    return Written(
        description=description.text,
        aliases=_aliases(name, what, *given["aliases"]) if "aliases" in given else (),
        prompt=prompt,
        lines={key: given.get(key, []) for key in several},
    )


def _head(
    lines: list[str], what: str, several: Collection[str]
) -> tuple[dict[str, list[Said]], int]:
    """Give what the head says, and how many lines it takes."""
    if lines[0].rstrip() != _FENCE:
        raise _wrong(1, f"is not {_FENCE}, with which a {what} begins")
    keys = (*_KEYS, *several)
    given: dict[str, list[Said]] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.rstrip() == _FENCE:
            return given, number
        key, colon, value = line.partition(":")
        if not colon:
            raise _wrong(number, f"is neither `key: value` nor {_FENCE}, which ends the head")
        if key not in keys:
            there = f"{', '.join(keys[:-1])} and {keys[-1]}"
            raise _wrong(number, f"there is no key {key[:50]!r}; there are {there}")
        if key in given and (key not in several or len(given[key]) == _MAX_LINES):
            raise _wrong(number, f"says {key} once more")
        if not value.strip():
            raise _wrong(number, f"says no {key}")
        given.setdefault(key, []).append(Said(number, value.strip()))
    raise errors.InvalidInput(f"its head does not end: there is no second {_FENCE}")


def _aliases(name: str, what: str, said: Said) -> tuple[str, ...]:
    aliases = [alias.strip() for alias in said.text.split(",")]
    for place, alias in enumerate(aliases):
        if not NAME.fullmatch(alias):
            raise said.wrong(f"{alias[:64]!r} is no name; write `aliases: one, two`")
        if alias == name or alias in aliases[:place]:
            raise said.wrong(f"says the name {alias} twice, or that of the {what} itself")
    if len(aliases) > MAX_ALIASES:
        raise said.wrong(f"says more than {MAX_ALIASES} aliases")
    return tuple(aliases)


def _wrong(number: int, what: str) -> errors.InvalidInput:
    return errors.InvalidInput(f"line {number}: {what}")

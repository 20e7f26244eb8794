"""A role as it is written: a head between two lines of three dashes, and behind it the prompt.

The head has lines of `key: value`, taken as they stand. It looks like YAML and is less, so that
nothing in it can mean something else than it says. Pure; above is the shelf of all roles.
"""

from __future__ import annotations

import re

from microvm_orchestrator import errors
from microvm_orchestrator.model.agent_role import AgentRole, Source
from microvm_orchestrator.model.names import NAME

# A driver that passes it as a word of a command line has room for it, whatever its characters.
MAX_PROMPT = 24_000
MAX_DESCRIPTION = 200
MAX_ALIASES = 16

_FENCE = "---"
_KEYS = ("description", "aliases")
# All but the ends of lines, and tabs.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def parse_role(name: str, text: str, source: Source) -> AgentRole:
    """Read a role. Raises: InvalidInput, which says in which line."""
    if not NAME.fullmatch(name):
        raise errors.InvalidInput(
            "its name is none of a role: letters, digits, dots, dashes and underscores, at most 64"
        )
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if _CONTROL.search(line):
            raise _wrong(number, "has a control character")
    given, end = _head(lines)
    if "description" not in given:
        raise errors.InvalidInput("its head has no description")
    number, description = given["description"]
    if len(description) > MAX_DESCRIPTION:
        raise _wrong(number, f"the description has more than {MAX_DESCRIPTION} characters")
    prompt = "\n".join(lines[end:]).strip()
    if not prompt:
        raise errors.InvalidInput("it has no prompt behind its head")
    if len(prompt) > MAX_PROMPT:
        raise errors.InvalidInput(f"its prompt has more than {MAX_PROMPT} characters")
    return AgentRole(
        name=name,
        description=description,
        aliases=_aliases(name, *given["aliases"]) if "aliases" in given else (),
        source=source,
        prompt=prompt,
    )


def _head(lines: list[str]) -> tuple[dict[str, tuple[int, str]], int]:
    """Give what the head says, with the number of each line, and how many lines it takes."""
    if lines[0].rstrip() != _FENCE:
        raise _wrong(1, f"is not {_FENCE}, with which a role begins")
    given: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines[1:], 2):
        if line.rstrip() == _FENCE:
            return given, number
        key, colon, value = line.partition(":")
        if not colon:
            raise _wrong(number, f"is neither `key: value` nor {_FENCE}, which ends the head")
        if key not in _KEYS:
            raise _wrong(number, f"there is no key {key[:50]!r}; there are {' and '.join(_KEYS)}")
        if key in given:
            raise _wrong(number, f"says {key} once more")
        if not value.strip():
            raise _wrong(number, f"says no {key}")
        given[key] = number, value.strip()
    raise errors.InvalidInput(f"its head does not end: there is no second {_FENCE}")


def _aliases(name: str, number: int, value: str) -> tuple[str, ...]:
    aliases = [alias.strip() for alias in value.split(",")]
    for place, alias in enumerate(aliases):
        if not NAME.fullmatch(alias):
            raise _wrong(number, f"{alias[:64]!r} is no name; write `aliases: one, two`")
        if alias == name or alias in aliases[:place]:
            raise _wrong(number, f"says the name {alias} twice, or that of the role itself")
    if len(aliases) > MAX_ALIASES:
        raise _wrong(number, f"says more than {MAX_ALIASES} aliases")
    return tuple(aliases)


def _wrong(number: int, what: str) -> errors.InvalidInput:
    return errors.InvalidInput(f"line {number}: {what}")

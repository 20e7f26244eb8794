"""What tasks are called, and which of them a name means.

Every task gets a key. Others may name it by that, by its title, by its title as a key would be
made of it, by what stands in its title before a colon or a dash, or by `#` and its number, within
a document or as `TODO.md#3`. A name that could mean two is an error and never a guess. Above sits
order.py.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from microvm_orchestrator.plans.draft import Draft, Problems, Reference, cut, listed

MAX_MADE_KEY = 60
# Comparing longer ones takes long and finds nothing.
_LIKENED = 100

_NUMBER = re.compile(r"(?:(.*)#|task *#?)(\d{1,9}(?:\.\d{1,9}){0,5})", re.IGNORECASE | re.DOTALL)
# A colon, or a dash of any of three lengths.
_LEAD = re.compile(r":| [-\u2013\u2014] ")
_PLAIN_NUMBER = re.compile(r"\d{1,9}")


def slug(title: str) -> str:
    """Make a key of a title: `Build the site` becomes `build-the-site`."""
    words = "".join(letter if letter.isalnum() else " " for letter in title.casefold()).split()
    return "-".join(words)[:MAX_MADE_KEY].rstrip("-")


def _heard(title: str) -> str:
    """Give a title without what people leave out when they repeat it."""
    return " ".join(title.replace("`", "").replace("*", "").casefold().split()).rstrip(".:!")


def keys_of(drafts: Sequence[Draft], problems: Problems) -> list[str]:
    """Give each task its key: the one it has, or one that nobody has made of its title."""
    first: dict[str, Draft] = {}
    for draft in drafts:
        key = draft.task.key
        if key is None:
            continue
        if key in first:
            problems.add(draft.place, f"key {cut(key)} is that of {first[key].place} already")
        elif key.startswith("#"):
            problems.add(draft.place, f"key {cut(key)} looks like a number; choose another")
        first.setdefault(key, draft)
    taken = set(first)
    counted: dict[str, int] = defaultdict(int)
    return [draft.task.key or _made(draft, taken, counted) for draft in drafts]


def _made(draft: Draft, taken: set[str], counted: dict[str, int]) -> str:
    base = slug(draft.title) or "task"
    key = base
    while key in taken:
        counted[base] += 1
        key = f"{base}-{counted[base] + 1}"
    taken.add(key)
    return key


@dataclass(slots=True)
class Names:
    """Everything that drafts are called, each as a place in their list."""

    drafts: Sequence[Draft]
    keys: Sequence[str]
    _given: dict[str, int] = field(default_factory=dict[str, int])
    _titles: dict[str, list[int]] = field(default_factory=lambda: defaultdict[str, list[int]](list))
    _numbers: dict[tuple[str | None, str], list[int]] = field(
        default_factory=lambda: defaultdict[tuple[str | None, str], list[int]](list)
    )
    _leads: dict[str, list[int]] = field(default_factory=lambda: defaultdict[str, list[int]](list))
    _made: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        for place, (draft, key) in enumerate(zip(self.drafts, self.keys, strict=True)):
            (self._made if draft.task.key is None else self._given).setdefault(key, place)
            for name in {_heard(draft.title), slug(draft.title)} - {""}:
                self._titles[name].append(place)
            if lead := _heard(_LEAD.split(draft.title, maxsplit=1)[0]):
                self._leads[lead].append(place)
            if draft.number is not None:
                self._numbers[draft.place.document, draft.number].append(place)

    def find(self, reference: Reference, problems: Problems) -> int | None:
        """Find the one task that is meant; otherwise that is a problem."""
        found = self._candidates(reference)
        if len(found) == 1:
            return found[0]
        name = cut(reference.name)
        if found:
            places = listed(str(self.drafts[place].place) for place in found)
            problems.add(
                reference.place,
                f"{name!r} may mean {len(found)} tasks: {places}",
                hint="give each a `key:` of its own, and name that",
            )
        elif problems.full:
            # It is only counted, so nobody has to look for what is alike.
            problems.add(reference.place, "")
        else:
            sentence, hint = f"no task is called {name!r}", self._hint(reference)
            problems.add(reference.place, sentence, hint=hint)
        return None

    def _candidates(self, reference: Reference) -> Sequence[int]:
        name = reference.name
        if name in self._given:
            return [self._given[name]]
        if titled := self._titles.get(_heard(name)):
            return titled
        if name in self._made:
            return [self._made[name]]
        if led := self._leads.get(_heard(name)):
            return led
        if number := _NUMBER.fullmatch(name):
            document = number[1]
            return self._numbered(document or reference.place.document, number[2])
        if _PLAIN_NUMBER.fullmatch(name):
            return self._numbered(reference.place.document, name)
        return []

    def _numbered(self, document: str | None, number: str) -> Sequence[int]:
        return self._numbers.get((document, number), [])

    def _hint(self, reference: Reference) -> str | None:
        likely = self._alike(reference.name)
        return f"perhaps {listed(likely)}?" if likely else None

    def _alike(self, name: str) -> Iterable[str]:
        if len(name) > _LIKENED:
            return ()
        short = [key for key in self.keys if len(key) <= _LIKENED]
        return difflib.get_close_matches(slug(name) or name, short)

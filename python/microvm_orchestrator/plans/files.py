"""Paths and globs of a work tree: whether two of them can name one file, and where text names some.

`*` and `?` stand for anything but a slash, `**` between slashes for any number of folders, and
`{a,b}` for either; everything else, brackets too, stands for itself. What may be a folder, as its
last part has no dot, stands for all that is beneath it; so does what another path goes on from.
Below the makers of plans.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import MAX_FILES, file_pattern

T = TypeVar("T")

# Comparisons of characters for one plan: a second or two, and far more than people's globs take.
MAX_EFFORT = 4_000_000
# What braces may come to.
MAX_ALTERNATIVES = 32

_BRACES = re.compile(r"{([^{}]*,[^{}]*)}")
_WILD = set("*?")
_DEEP = "**"

_SPAN = re.compile(r"(?<!`)`([^`]{1,200})`(?!`)")
_PATH = re.compile(r"[\w.@+*?{},-]+(?:/[\w.@+*?{},-]+)*/?")
_PLACE_BEHIND = re.compile(r":\d+(?:[:-]\d+)?$")
_ENDING = re.compile(
    r"bash|c|cc|cfg|cpp|cs|css|csv|cxx|dart|el|ex|exs|go|gradle|h|hpp|hs|html|ini|ipynb|"
    r"java|js|json|jsx|kt|less|lock|lua|md|mjs|ml|nix|php|pl|proto|py|pyi|rb|rs|rst|"
    r"sass|scala|scss|sh|sql|svelte|svg|swift|tf|toml|ts|tsx|txt|vue|xml|yaml|yml|zig|"
    r"zsh"
)
_KNOWN = frozenset({"Makefile", "Dockerfile", "Justfile", "Rakefile", "Gemfile", "LICENSE"})


def mentioned(prose: Iterable[str]) -> list[str]:
    """Find what looks like a path between backticks, in the order it is named first."""
    found: dict[str, None] = {}
    for line in prose:
        for span in _SPAN.finditer(line):
            path = _PLACE_BEHIND.sub("", span[1])
            if _looks_like_a_path(path):
                try:
                    found[file_pattern(path)] = None
                except ValueError:
                    continue
    return list(found)[:MAX_FILES]


def _looks_like_a_path(text: str) -> bool:
    if not _PATH.fullmatch(text) or text[0] == "-":
        return False
    if "/" in text:
        return True
    stem, dot, ending = text.rpartition(".")
    return text in _KNOWN or (bool(dot and stem) and _ENDING.fullmatch(ending) is not None)


@dataclass(slots=True)
class Overlaps:
    """Which of some patterns can name the same file. Made once for a plan."""

    effort: int = MAX_EFFORT
    _meets: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    _segments: dict[tuple[str, str], bool] = field(default_factory=dict[tuple[str, str], bool])

    def compare(self, patterns: Iterable[str]) -> None:
        """Raises: TooLarge, when that takes longer than anybody should wait."""
        written = {pattern: _alternatives(pattern) for pattern in dict.fromkeys(patterns)}
        plain = {path[0]: name for name, path in written.items() if _is_plain(path)}
        globs = [name for name, paths in written.items() if not _is_plain(paths)]
        for path, name in plain.items():
            self._meets[name].add(name)
            for length in range(1, len(path)):
                if above := plain.get(path[:length]):
                    self._meet(above, name)
        for place, name in enumerate(globs):
            self._meets[name].add(name)
            for other in itertools.chain(plain.values(), globs[place + 1 :]):
                if self._any(written[name], written[other]):
                    self._meet(name, other)

    def of(self, pattern: str) -> set[str]:
        """Give those that can name a file which this one names too, with itself."""
        return self._meets[pattern]

    def spend(self, steps: int) -> None:
        self.effort -= steps
        if self.effort < 0:
            raise errors.TooLarge(
                "the files of these tasks are too many, or too alike, to be compared",
                hint="name folders rather than globs, or plan in parts",
            )

    def _meet(self, one: str, other: str) -> None:
        self._meets[one].add(other)
        self._meets[other].add(one)

    def _any(self, ones: Sequence[tuple[str, ...]], others: Sequence[tuple[str, ...]]) -> bool:
        return any(self._paths(one, other) for one, other in itertools.product(ones, others))

    def _paths(self, one: tuple[str, ...], other: tuple[str, ...]) -> bool:
        self.spend(1)
        for a, b in zip(one, other, strict=False):
            if _WILD & {*a, *b}:
                break
            if a != b:
                return False
        return self._walk(_with_below(one, other), _with_below(other, one), _DEEP, self._names)

    def _names(self, one: str, other: str) -> bool:
        """Tell whether one name fits both."""
        pair = (one, other)
        if pair not in self._segments:
            self._segments[pair] = one == other or (
                bool(_WILD & {*one, *other}) and self._walk(one, other, "*", _same)
            )
        return self._segments[pair]

    def _walk(
        self, one: Sequence[T], other: Sequence[T], many: T, fits: Callable[[T, T], bool]
    ) -> bool:
        """Tell whether something can be read as both, where `many` stands for any number."""
        todo = [(0, 0)]
        seen = {(0, 0)}
        while todo:
            i, j = todo.pop()
            self.spend(1)
            if i == len(one) and j == len(other):
                return True
            for step in _steps(one, other, i, j, many, fits):
                if step not in seen:
                    seen.add(step)
                    todo.append(step)
        return False


def _with_below(path: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Add what is beneath, where that can be: a glob of files says nothing of what is in them."""
    last = path[-1]
    folder = last not in _KNOWN and "." not in last[1:]
    return (*path, _DEEP) if folder or _is_plain([other]) else path


def _steps(
    one: Sequence[T], other: Sequence[T], i: int, j: int, many: T, fits: Callable[[T, T], bool]
) -> Iterator[tuple[int, int]]:
    more_of_one, more_of_other = i < len(one), j < len(other)
    any_of_one = more_of_one and one[i] == many
    any_of_other = more_of_other and other[j] == many
    if any_of_one:
        yield i + 1, j
        if more_of_other:
            yield i, j + 1
    if any_of_other:
        yield i, j + 1
        if more_of_one:
            yield i + 1, j
    none_of_any = not any_of_one and not any_of_other
    if more_of_one and more_of_other and none_of_any and fits(one[i], other[j]):
        yield i + 1, j + 1


def _same(one: str, other: str) -> bool:
    return one == other or "?" in {one, other}


def _is_plain(paths: Sequence[tuple[str, ...]]) -> bool:
    return len(paths) == 1 and not any(_WILD & {*part} for part in paths[0])


def _alternatives(pattern: str) -> list[tuple[str, ...]]:
    """Write braces out. Raises: TooLarge."""
    todo, done = [pattern], list[tuple[str, ...]]()
    while todo:
        text = todo.pop()
        braces = _BRACES.search(text)
        if braces is None:
            done.append(tuple(part for part in text.split("/") if part))
            continue
        before, behind = text[: braces.start()], text[braces.end() :]
        todo += [f"{before}{choice}{behind}" for choice in braces[1].split(",")]
        if len(todo) + len(done) > MAX_ALTERNATIVES:
            raise errors.TooLarge(f"{pattern} stands for more than {MAX_ALTERNATIVES} globs")
    return done

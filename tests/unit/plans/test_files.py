"""Whether two globs can name one file, held against trying every small path."""

from __future__ import annotations

import itertools
from fnmatch import fnmatchcase
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.plans.files import Overlaps, mentioned

# Enough of them: two patterns of two parts of two letters meet in one of these, if they do at all.
NAMES = [
    "".join(letters) for length in (1, 2) for letters in itertools.product("ab", repeat=length)
]
PATHS = [path for length in range(1, 5) for path in itertools.product(NAMES, repeat=length)]


def fits(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Read a pattern in the plainest way; a path stands for what is beneath it too."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return fits(path, pattern[1:]) or (bool(path) and fits(path[1:], pattern))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and fits(path[1:], pattern[1:])


@cache
def named_by(pattern: str) -> frozenset[tuple[str, ...]]:
    return frozenset(path for path in PATHS if fits(path, tuple(pattern.split("/"))))


def meet(one: str, other: str) -> bool:
    overlaps = Overlaps()
    overlaps.compare([one, other])
    assert (one in overlaps.of(other)) == (other in overlaps.of(one))
    return other in overlaps.of(one)


part = st.text("ab*?", min_size=1, max_size=2)
patterns = st.lists(part, min_size=1, max_size=2).map("/".join)


@settings(max_examples=300)
@given(one=patterns, other=patterns)
def test_two_patterns_meet_exactly_where_a_path_fits_both(one: str, other: str) -> None:
    assert meet(one, other) == bool(named_by(one) & named_by(other))


MEETING = [
    ("src/a.py", "src/a.py"),
    ("src", "src/a.py"),
    ("src/*.py", "src/a.py"),
    ("src/*", "src/deep/a.py"),
    ("src/**/a.py", "src/a.py"),
    ("src/**/a.py", "src/x/y/a.py"),
    ("**/*.py", "src/a.py"),
    ("**", "x"),
    ("**/test_*.py", "src/**/*_a.py"),
    ("src/{a,b}.py", "src/b.py"),
    ("{src,lib}/**", "lib/x"),
    ("app/[id]/page.tsx", "app/*/page.tsx"),
    ("a?c", "ab*"),
    ("**/*.py", "docs"),
    ("docs/**", "docs"),
    ("v1.*", "v1.2/a"),
    ("v1.2", "v1.2/a"),
    ("tests/*", "tests/unit/test_a.py"),
]
APART = [
    ("src/a.py", "src/b.py"),
    ("src", "srcs/a.py"),
    ("src/*.py", "src/a.ts"),
    ("src/*.py", "lib/a.py"),
    ("src/*/a.py", "src/a.py"),
    ("**/*.py", "README.md"),
    ("**/*.py", "Makefile"),
    ("src/**/b.py", "src/a.py"),
    ("**/a.py", "**/b.py"),
    ("src/{a,b}.py", "src/c.py"),
    ("app/[id]/page.tsx", "app/[slug]/page.tsx"),
    ("src/{a.py", "src/a.py"),
    ("a?c", "ac"),
    ("Readme.md", "README.md"),
]


@pytest.mark.parametrize(("one", "other"), MEETING)
def test_patterns_that_meet(one: str, other: str) -> None:
    assert meet(one, other)


@pytest.mark.parametrize(("one", "other"), APART)
def test_patterns_that_do_not_meet(one: str, other: str) -> None:
    assert not meet(one, other)


def test_a_thousand_globs_of_a_usual_kind_are_compared() -> None:
    names = [f"src/room{number % 40}/part{number}/**/*.py" for number in range(1000)]
    overlaps = Overlaps()
    overlaps.compare([*names, "src/room7/part47"])
    assert overlaps.of("src/room7/part47") == {"src/room7/part47", "src/room7/part47/**/*.py"}


def test_braces_that_stand_for_very_many_are_refused() -> None:
    with pytest.raises(errors.TooLarge, match="more than 32 globs"):
        Overlaps().compare(["{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}"])


@pytest.mark.parametrize(
    "text", ["`src`", "src/a.py", "``src/a.py``", "`foo.bar()`", "`x / y`", "`/v1/x`"]
)
def test_what_is_no_path_is_not_proposed(text: str) -> None:
    assert mentioned([text]) == []

"""Which parts of a document are tasks.

1. Headings that say so: `## Task: title`, `## Task 3: title`.
2. Else the headings of the highest level on which several stand, two of them with text of their
   own below, and none with only a list below.
3. Else the items of lists; what is nested in an item is a part of it.
4. Else, in a document without lists, all of it is one task.

Above sits details.py; below, markdown.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import MAX_TASKS
from microvm_orchestrator.plans.draft import Place, cut
from microvm_orchestrator.plans.markdown import Kind, Line, Scan, unboxed

_NUMBER = r"\d{1,9}(?:\.\d{1,9}){0,5}"
# Any of three lengths.
_DASH = r" +[-\u2013\u2014](?= )"
_SAID = re.compile(
    rf"task(?: *#?({_NUMBER}))? *(?::|(?<=\d)[.)]|(?<=\d){_DASH}) *(.*)", re.IGNORECASE
)
_NUMBERED = re.compile(rf"#?({_NUMBER})(?:[.):]|{_DASH}) +(.*)")
# An item is nested from here on, whatever the width of the marker above it.
_NESTED = 2
# Below a heading: what makes it a task rather than a title of a list.
_OWN_TEXT = {Kind.TEXT, Kind.FENCE}


@dataclass(slots=True)
class Section:
    """A part of a document that is a task."""

    line: int
    head: str
    number: str | None = None
    done: bool = False
    # Columns that its lines are moved in.
    offset: int = 0
    # Whether its first line goes on in the next, rather than being a title above a text.
    flows: bool = False
    body: list[Line] = field(default_factory=list[Line])


@dataclass(slots=True)
class Split:
    """The tasks of a document."""

    sections: list[Section]
    # It has neither headings nor items that are tasks.
    whole: bool = False


def split(scan: Scan, own_text: Callable[[Line], bool]) -> Split:
    """Find the tasks; `own_text` tells whether an item is something said about the task above it.

    Raises: TooLarge.
    """
    outside: list[int] = []
    whole = False
    if any(_said(line) for line in scan.lines):
        found = list(_by_headings(scan.lines, None, outside))
    elif level := _repeated(scan.lines, own_text):
        found = list(_by_headings(scan.lines, level, outside))
        _warn_of_boxes(scan, found)
    elif any(line.kind is Kind.ITEM and line.indent < 4 for line in scan.lines):
        found = list(_by_items(scan.lines, outside))
    else:
        found, whole = _all_of_it(scan.lines), True
    if len(found) > MAX_TASKS:
        raise errors.TooLarge(f"{scan.name} has more than {MAX_TASKS} tasks")
    if not any(section.number for section in found):
        # Nobody sees a number, so they are counted.
        for number, section in enumerate(found, 1):
            section.number = str(number)
    if outside:
        scan.warnings.append(
            f"{Place(scan.name, outside[0])}: text outside of tasks was left out"
            + (f", {len(outside)} lines of it" if len(outside) > 1 else "")
        )
    if not found:
        scan.warnings.append(f"{scan.name} has no tasks")
    return Split(found, whole)


# Headings


def _said(line: Line) -> re.Match[str] | None:
    if line.kind is not Kind.HEADING:
        return None
    return _SAID.fullmatch(unboxed(line.words)[1])


def _repeated(lines: Sequence[Line], own_text: Callable[[Line], bool]) -> int | None:
    """Find the level whose headings are tasks."""
    with_text = dict.fromkeys(range(1, 7), 0)
    with_list = dict.fromkeys(range(1, 7), 0)
    for heading, below in _chapters(lines):
        if _speaks(below, own_text):
            with_text[heading.level] += 1
        elif any(line.kind is Kind.ITEM for line in below):
            with_list[heading.level] += 1
    levels = (level for level, count in with_text.items() if count > 1 and not with_list[level])
    return next(levels, None)


def _speaks(below: Sequence[Line], own_text: Callable[[Line], bool]) -> bool:
    """Tell whether something stands there that is not just an item of a list."""
    in_item = apart = False
    for line in below:
        if line.kind is Kind.BLANK:
            apart = True
        elif line.kind is Kind.ITEM:
            if line.indent < _NESTED and own_text(line):
                return True
            in_item, apart = True, False
        elif line.kind in _OWN_TEXT:
            if not in_item or (apart and line.indent < _NESTED):
                return True
            apart = False
    return False


def _chapters(lines: Sequence[Line]) -> Iterator[tuple[Line, list[Line]]]:
    """Give each heading, and what stands between it and the next one of any level."""
    heading: Line | None = None
    below: list[Line] = []
    for line in lines:
        if line.kind is Kind.HEADING:
            if heading is not None:
                yield heading, below
            heading, below = line, []
        else:
            below.append(line)
    if heading is not None:
        yield heading, below


def _by_headings(lines: Sequence[Line], level: int | None, outside: list[int]) -> Iterator[Section]:
    """Cut at the headings of a level, or at those that say that they are tasks."""
    section: Section | None = None
    ends = level or 0
    for line in lines:
        if line.kind is Kind.HEADING and (_said(line) if level is None else line.level == level):
            if section is not None:
                yield section
            section, ends = _headed(line, saying=level is None), line.level
        elif line.kind is Kind.HEADING and line.level <= ends:
            if section is not None:
                yield section
            section = None
        elif section is not None:
            section.body.append(line)
        elif line.kind not in {Kind.BLANK, Kind.RULE, Kind.HEADING}:
            outside.append(line.number)
    if section is not None:
        yield section


def _headed(line: Line, *, saying: bool) -> Section:
    done, words = unboxed(line.words)
    found = (_SAID if saying else _NUMBERED).fullmatch(words)
    number, title = (None, words) if found is None else found.groups()
    inner, title = unboxed(title)
    return Section(line.number, title.strip(), number, bool(done or inner))


def _warn_of_boxes(scan: Scan, found: Sequence[Section]) -> None:
    """Say so where boxes to tick are taken for a part of what is to be done."""
    for section in found:
        if any(line.done is not None for line in section.body):
            scan.warnings.append(
                f"{Place(scan.name, section.line)}: the boxes below {cut(section.head)!r} are "
                "part of that task; a heading with only a list below it makes each a task"
            )


# Lists


def _by_items(lines: Sequence[Line], outside: list[int]) -> Iterator[Section]:
    """Cut at the items that are not nested in others."""
    walk = _Items(outside)
    for line in lines:
        ended = walk.take(line)
        if ended is not None:
            yield ended
    if walk.section is not None:
        yield walk.section


@dataclass(slots=True)
class _Items:
    outside: list[int]
    section: Section | None = None
    # Columns from which on a line belongs to the item.
    nested: int = 0
    # The line before was blank: text at the margin is no part of the item any more.
    apart: bool = False
    # What the next item of this list is called.
    ordinal: int | None = None
    # The code block of which the item has the beginning.
    block: int = 0

    def take(self, line: Line) -> Section | None:
        """Give the section that ends with this line."""
        if line.kind is Kind.BLANK:
            self.apart = True
            if self.section is not None:
                self.section.body.append(line)
            return None
        if self.section is not None and self._belongs(line):
            # Code may begin on the line of a nested item too.
            self.block = line.block or line.number
            self.section.body.append(line)
            self.apart = False
            return None
        ended, self.section = self.section, None
        if line.kind is Kind.ITEM and line.indent < 4:
            self._begin(line)
        elif line.kind not in {Kind.HEADING, Kind.RULE}:
            self.outside.append(line.number)
        if self.section is None:
            self.ordinal = None
        self.apart = False
        return ended

    def _belongs(self, line: Line) -> bool:
        if line.block and line.block == self.block:
            return True
        if line.kind is Kind.TEXT and not self.apart:
            return True
        return line.kind is not Kind.HEADING and line.indent >= self.nested

    def _begin(self, line: Line) -> None:
        if line.ordinal is not None:
            # As it is shown: only the first of a list decides.
            self.ordinal = line.ordinal if self.ordinal is None else self.ordinal + 1
        else:
            self.ordinal = None
        number = None if self.ordinal is None else str(self.ordinal)
        self.section = Section(
            line.number, line.words.strip(), number, bool(line.done), line.offset, flows=True
        )
        self.nested = min(line.offset, line.indent + _NESTED)
        self.block = line.number


# Everything


def _all_of_it(lines: Sequence[Line]) -> list[Section]:
    told = [place for place, line in enumerate(lines) if line.kind not in {Kind.BLANK, Kind.RULE}]
    if not told:
        return []
    first = lines[told[0]]
    head = first.words if first.kind is Kind.HEADING else first.plain
    done, title = unboxed(head)
    section = Section(
        first.number, title.strip(), done=bool(done), flows=first.kind is not Kind.HEADING
    )
    section.body += lines[told[0] + 1 :]
    return [section]

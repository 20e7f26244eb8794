"""Lines of Markdown, each with what it is: a heading, a list item, code, or plain text.

Not a renderer: it tells apart only what decides where a task begins and ends, and it never looks
into code. Comments and front matter are gone afterwards. Above sits sections.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import Enum, auto

from microvm_orchestrator import errors
from microvm_orchestrator.plans.draft import Place

# A paragraph written as one line is far shorter; a file that is no text at all is not.
MAX_LINE = 16_384
# Far more than anybody nests by hand.
MAX_INDENT = 200
# Where a heading may stand: deeper, it is part of what a list item says.
_HEADING_INDENT = 1
_TAB = 4

_FENCE = re.compile(r"(`{3,})[^`]*|(~{3,}).*")
_ITEM = re.compile(r"([-*+]|(\d{1,9})[.)])(?:([ \t])[ \t]*(.*))?")
_BOX = re.compile(r"\[([ xX])\](?:[ \t]+(.*))?")
_RULE = re.compile(r"([-*_])(?: *\1){2,} *")
_UNDERLINE = re.compile(r"(=+|-{2,}) *")


class Kind(Enum):
    """What a line is."""

    BLANK = auto()
    TEXT = auto()
    HEADING = auto()
    ITEM = auto()
    # A line between topics: `---`.
    RULE = auto()
    # The first and the last line of a code block, and what is in between.
    FENCE = auto()
    CODE = auto()


@dataclass(frozen=True, slots=True)
class Line:
    """A line that is no comment."""

    number: int
    raw: str
    kind: Kind
    indent: int
    # Of a heading, 1 to 6.
    level: int = 0
    # Of a heading or an item: what it says, without its marks and its box.
    words: str = ""
    # Of an item: where what it says begins, its number, and whether its box is ticked.
    offset: int = 0
    ordinal: int | None = None
    done: bool | None = None
    # Of code: the line on which its block begins.
    block: int = 0

    @property
    def plain(self) -> str:
        return self.raw.strip()


@dataclass(slots=True)
class Scan:
    """The lines of a document, and what its reader should know."""

    name: str
    lines: list[Line] = field(default_factory=list[Line])
    front: list[str] = field(default_factory=list[str])
    warnings: list[str] = field(default_factory=list[str])


def scan(name: str, text: str) -> Scan:
    """Raises: TooLarge, for a line or a nesting beyond what people write."""
    found = Scan(name)
    raw = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    first = _front_matter(raw)
    found.front = raw[1 : first - 1] if first else []
    _Scanner(found).read(raw, first)
    _underlined(found.lines)
    return found


def _front_matter(raw: list[str]) -> int:
    """Count the lines of the front matter, with its marks."""
    if raw[0].rstrip() != "---":
        return 0
    return next(
        (number + 1 for number, line in enumerate(raw) if number and line.rstrip() in _FRONT_ENDS),
        0,
    )


_FRONT_ENDS = {"---", "..."}


@dataclass(slots=True)
class _Scanner:
    found: Scan
    # What ends the code block, and where it began.
    fence: str = ""
    block: int = 0
    # Where the comment began that goes on.
    comment: int = 0

    def read(self, raw: list[str], first: int) -> None:
        for number, line in enumerate(raw[first:], first + 1):
            if len(line) > MAX_LINE:
                raise errors.TooLarge(
                    f"{Place(self.found.name, number)} is longer than {MAX_LINE} characters"
                )
            if self.fence:
                self._code(number, line)
            else:
                self._text(number, line)
        for what, began in (("code block", self.block), ("comment", self.comment)):
            if began:
                self.found.warnings.append(
                    f"{Place(self.found.name, began)}: the {what} that begins here never ends"
                )

    def _code(self, number: int, raw: str) -> None:
        plain = raw.strip()
        ends = plain.startswith(self.fence) and not plain.strip(self.fence[0])
        kind = Kind.FENCE if ends else Kind.CODE
        self.found.lines.append(Line(number, raw, kind, indent_of(raw), block=self.block))
        if ends:
            self.fence, self.block = "", 0

    def _text(self, number: int, raw: str) -> None:
        without = self._uncommented(number, raw)
        if without.strip() or not raw.strip():
            line = _line(number, without, self.found.name)
            # A code block may begin on the line of an item.
            fence = _FENCE.fullmatch(line.words if line.kind is Kind.ITEM else without.strip())
            if fence:
                self.fence, self.block = fence[1] or fence[2], number
                if line.kind is not Kind.ITEM:
                    line = Line(number, without, Kind.FENCE, line.indent, block=number)
            self.found.lines.append(line)

    def _uncommented(self, number: int, raw: str) -> str:
        if self.comment:
            _, end, raw = raw.partition("-->")
            if not end:
                return ""
            self.comment = 0
        kept: list[str] = []
        marks = 0
        while "<!--" in raw:
            before, _, raw = raw.partition("<!--")
            kept.append(before)
            marks += before.count("`")
            # What stands in a code span is no comment.
            if marks % 2:
                kept.append("<!--")
                continue
            _, end, raw = raw.partition("-->")
            if not end:
                self.comment = number
        return "".join((*kept, raw))


def indent_of(raw: str) -> int:
    """Count the columns before the text; a tab goes to the next multiple of four."""
    expanded = raw.expandtabs(_TAB)
    return len(expanded) - len(expanded.lstrip(" "))


def outdented(raw: str, columns: int) -> str:
    """Take so many columns of white space off the front, and leave the rest as it is."""
    column = 0
    for place, character in enumerate(raw):
        if column >= columns or character not in " \t":
            return " " * (column - columns) + raw[place:]
        column += 1 if character == " " else _TAB - column % _TAB
    return ""


def _line(number: int, raw: str, name: str) -> Line:
    plain = raw.strip()
    indent = indent_of(raw)
    if not plain:
        return Line(number, "", Kind.BLANK, 0)
    if indent <= _HEADING_INDENT and (heading := _heading(plain)):
        level, words = heading
        return Line(number, raw, Kind.HEADING, indent, level=level, words=words)
    if _RULE.fullmatch(plain):
        return Line(number, raw, Kind.RULE, indent)
    if item := _ITEM.fullmatch(plain):
        if indent > MAX_INDENT:
            raise errors.TooLarge(f"{Place(name, number)} is nested deeper than anybody can read")
        return _item(number, raw, indent, item)
    return Line(number, raw, Kind.TEXT, indent)


def _heading(plain: str) -> tuple[int, str] | None:
    rest = plain.lstrip("#")
    level = len(plain) - len(rest)
    if not 1 <= level <= 6 or (rest and not rest[0].isspace()):
        return None
    words = rest.strip()
    unclosed = words.rstrip("#")
    if unclosed != words and (not unclosed or unclosed[-1].isspace()):
        words = unclosed.strip()
    return level, words


def _item(number: int, raw: str, indent: int, item: re.Match[str]) -> Line:
    marker, ordinal, _, words = item.groups()
    done, text = unboxed(words or "")
    behind = raw.expandtabs(_TAB)[indent + len(marker) :]
    gap = len(behind) - len(behind.lstrip(" "))
    # Text that begins far behind the marker is code, which begins one column behind it.
    offset = indent + len(marker) + (gap if 0 < gap <= _TAB else 1)
    return Line(
        number,
        raw,
        Kind.ITEM,
        indent,
        words=text,
        offset=offset,
        ordinal=None if ordinal is None else int(ordinal),
        done=done,
    )


def unboxed(words: str) -> tuple[bool | None, str]:
    """Take a box off the front: whether it is ticked, None without one, and what follows it."""
    box = _BOX.fullmatch(words)
    return (None, words) if box is None else (box[1] != " ", box[2] or "")


def _underlined(lines: list[Line]) -> None:
    """Turn a paragraph of one line with a line of = or - beneath it into a heading."""
    for place in range(len(lines) - 1, 0, -1):
        above, line = lines[place - 1], lines[place]
        if (
            _UNDERLINE.fullmatch(line.plain)
            and line.kind in {Kind.TEXT, Kind.RULE}
            and above.kind is Kind.TEXT
            and max(line.indent, above.indent) <= _HEADING_INDENT
            and (place == 1 or lines[place - 2].kind in {Kind.BLANK, Kind.HEADING})
        ):
            level = 1 if line.plain[0] == "=" else 2
            lines[place - 1] = replace(above, kind=Kind.HEADING, level=level, words=above.plain)
            lines[place] = Line(line.number, "", Kind.BLANK, 0)

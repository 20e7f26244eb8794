"""What is said inside of a task: its key, what it comes after, its files; and the text left over.

A line such as `after: #2`, alone or as an item, in bold or not, is taken out of the text. So is a
list below `files:`, and the code block below `run:`. Nothing is looked for in code or in quotes.
Above sits plan.py; below, the sections of a document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from microvm_orchestrator.model.plan import MAX_FILES, PlanTask, file_pattern
from microvm_orchestrator.plans.draft import Draft, Place, Problems, Reference, cut
from microvm_orchestrator.plans.files import mentioned
from microvm_orchestrator.plans.markdown import Kind, Line, outdented
from microvm_orchestrator.plans.sections import Section

MAX_TITLE = 200
# As they are written, and the field of a task that each one fills.
WORDS = {
    "key": "key",
    "depends on": "after",
    "after": "after",
    "file": "files",
    "files": "files",
    "label": "labels",
    "labels": "labels",
    "priority": "priority",
    "kind": "kind",
    "run": "run",
    "repo": "repo",
    "image": "image",
}
_SEVERAL = {"after", "files", "labels"}
_NOTHING = {"", "-", "—", "none", "nothing", "n/a"}
_LONGEST = max(map(len, WORDS)) + 8
_EMPHASIS = ("**", "__", "*", "_")
_WHOLE = re.compile(r"[+-]?[0-9]{1,6}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def detail(line: Line) -> tuple[str, str] | None:
    """Give the field that a line fills, and with what."""
    if line.kind is Kind.ITEM:
        return said(line.words)
    return said(line.plain) if line.kind is Kind.TEXT else None


def said(plain: str) -> tuple[str, str] | None:
    mark = next((mark for mark in _EMPHASIS if plain.startswith(mark)), "")
    head, colon, value = plain[len(mark) :].partition(":")
    if not colon or len(head) > _LONGEST:
        return None
    # The emphasis ends before the colon or behind it.
    inside = head.removesuffix(mark) if mark else head
    if mark and inside == head:
        if not value.startswith(mark):
            return None
        value = value.removeprefix(mark)
    word = " ".join(re.split(r"[\s_-]+", inside.strip().lower()))
    found = WORDS.get(word)
    return None if found is None else (found, value.strip())


def words_of(value: str) -> Iterator[str]:
    """Cut at commas, but for those between quotes, backticks or braces."""
    word: list[str] = []
    closing = ""
    for character in value:
        if closing:
            closing = "" if character == closing else closing
        elif character in _PAIRS:
            closing = _PAIRS[character]
        elif character == ",":
            yield unquoted("".join(word))
            word.clear()
            continue
        word.append(character)
    yield unquoted("".join(word))


_PAIRS = {'"': '"', "`": "`", "{": "}"}


def unquoted(word: str) -> str:
    plain = word.strip()
    if len(plain) > 1 and plain[0] == plain[-1] and plain[0] in {'"', "`"}:
        return plain[1:-1].strip()
    return plain


def read(document: str, section: Section, problems: Problems) -> Draft | None:
    """Give the task of a section; None if it says nothing at all."""
    # What is wrong with a task that is done already concerns nobody.
    reader = _Reader(document, Problems() if section.done else problems)
    for line in section.body:
        reader.take(line, section.offset)
    reader.end()
    return reader.draft(section)


@dataclass(slots=True)
class _Reader:
    document: str
    problems: Problems
    kept: list[str] = field(default_factory=list[str])
    # What stands in no code, where paths may be mentioned.
    prose: list[str] = field(default_factory=list[str])
    single: dict[str, str] = field(default_factory=dict[str, str])
    said_at: dict[str, Place] = field(default_factory=dict[str, Place])
    after: list[Reference] = field(default_factory=list[Reference])
    files: dict[str, None] = field(default_factory=dict[str, None])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    # A field that had no value on its line: the list or the code block below may be that.
    open: tuple[str, Line] | None = None
    code: list[str] | None = None
    margin: int = 0

    def take(self, line: Line, offset: int) -> None:
        if self.open is not None and self._goes_on(*self.open, line):
            return
        if found := detail(line):
            name, value = found
            if value:
                self._fill(name, value, line)
            else:
                self.open = (name, line)
            return
        self.kept.append(outdented(line.raw, offset))
        if line.kind not in {Kind.CODE, Kind.FENCE}:
            self.prose.append(line.raw)

    def _goes_on(self, name: str, above: Line, line: Line) -> bool:
        """Take the line as a value of the field above it; False if it is none."""
        if name == "run" and line.kind in {Kind.FENCE, Kind.CODE}:
            self._take_code(above, line)
            return True
        # The items of the list in which the field itself is one are its neighbours.
        least = above.indent + 1 if above.kind is Kind.ITEM else above.indent
        if name in _SEVERAL and line.kind is Kind.ITEM and line.indent >= least:
            self._fill(name, line.words, line)
            return True
        self.end()
        return False

    def _take_code(self, above: Line, line: Line) -> None:
        if self.code is None:
            self.code, self.margin = [], line.indent
        elif line.kind is Kind.CODE:
            self.code.append(outdented(line.raw, self.margin))
        else:
            self._script(self.code, above)

    def _script(self, code: Sequence[str], above: Line) -> None:
        self.open, self.code = None, None
        self._single("run", "".join(f"{line}\n" for line in code), above)

    def end(self) -> None:
        """See that a field whose value was to follow has got it."""
        if self.open is None:
            return
        name, line = self.open
        self.open = None
        if self.code is not None:
            self._script(self.code, line)
        elif name not in _SEVERAL:
            self.problems.add(self._at(line), f"`{name}` has no value")

    def _fill(self, name: str, value: str, line: Line) -> None:
        match name:
            case "after":
                self.after += [
                    Reference(word, self._at(line))
                    for word in words_of(value)
                    if word.lower() not in _NOTHING
                ]
            case "files":
                for word in words_of(value):
                    self._file(word, line)
            case "labels":
                for word in filter(None, words_of(value)):
                    key, equals, text = word.partition("=")
                    if not equals:
                        self.problems.add(self._at(line), f"label {cut(word)!r} is not key=value")
                    self.said_at.setdefault("labels", self._at(line))
                    self.labels[key.strip()] = text.strip()
            case _:
                self._single(name, unquoted(value), line)

    def _file(self, word: str, line: Line) -> None:
        if word.lower() in _NOTHING:
            return
        try:
            self.files[file_pattern(word)] = None
        except ValueError as error:
            self.problems.add(self._at(line), f"file {cut(word)!r} {error}")
        self.said_at.setdefault("files", self._at(line))

    def _single(self, name: str, value: str, line: Line) -> None:
        if name in self.single:
            self.problems.add(
                self._at(line),
                f"`{name}` was said already on line {self.said_at[name].line}; nested items are "
                "part of the task they stand in",
            )
        self.single[name] = value
        self.said_at[name] = self._at(line)

    def _at(self, line: Line) -> Place:
        return Place(self.document, line.number)

    # Put together

    def draft(self, section: Section) -> Draft | None:
        body = _trimmed(self.kept)
        head = section.head
        if not head and body:
            head, body = body[0].strip(), _trimmed(body[1:])
        if not head:
            return None
        between = [] if section.flows or not body else [""]
        place = Place(self.document, section.line)
        text = "\n".join([head, *between, *body])
        proposed = [path for path in mentioned([head, *self.prose]) if path not in self.files]
        task = self._checked(
            place,
            {
                "title": cut(_CONTROL.sub(" ", head.replace("**", "")), MAX_TITLE),
                "text": text,
                "files": list(self.files),
                "proposed_files": proposed[:MAX_FILES],
                "labels": self.labels,
                "document": self.document,
                "line": section.line,
                **{name: _value(name, value) for name, value in self.single.items()},
            },
        )
        return Draft(place, task, head, section.number, tuple(self.after), section.done)

    def _checked(self, place: Place, given: dict[str, Any]) -> PlanTask:
        try:
            return PlanTask.model_validate(given)
        except ValidationError as error:
            for problem in error.errors(include_url=False, include_context=False):
                name = str(problem["loc"][0])
                at = self.said_at.get(name, place)
                self.problems.add(at, f"`{name}`: {problem['msg']}")
            return PlanTask(title=given["title"])


def _value(name: str, value: str) -> str | int:
    match name:
        case "priority":
            return int(value) if _WHOLE.fullmatch(value) else value.lower()
        case "kind":
            return value.lower()
        case _:
            return value


def _trimmed(lines: Sequence[str]) -> list[str]:
    """Leave out the blank lines at both ends."""
    told = [place for place, line in enumerate(lines) if line.strip()]
    return list(lines[told[0] : told[-1] + 1]) if told else []

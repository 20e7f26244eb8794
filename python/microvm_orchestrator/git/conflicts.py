"""What git says when two sides do not merge, as files, kinds and the text they disagree on.

The paths and the text are a guest's: what is no text is shown as such, and everything is bounded in
length and count, with what was left out counted. Attributes of the repository's content are not
read, so the kind of a conflict is what git sees in the bytes. Above stands merge.py; below,
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

# A person, or an agent, reads it; the rest is in the commits themselves.
FILES_TOLD = 200
_HUNKS_TOLD = 16
_TEXT_TOLD = 4000
_TEXT_OF_ALL = 200_000
# A larger file is named and not shown.
BLOB_CAP = 1 << 20

_OURS, _BASE, _MIDDLE, _THEIRS = b"<" * 7 + b" ", b"|" * 7 + b" ", b"=" * 7, b">" * 7 + b" "


class Kind(StrEnum):
    """How two sides disagree about a file."""

    CONTENT = "content"
    ADD_ADD = "add_add"
    MODIFY_DELETE = "modify_delete"
    RENAME = "rename"
    BINARY = "binary"
    # A file here, a folder, a link or another kind of file there.
    TYPE = "type"
    SUBMODULE = "submodule"


@dataclass(frozen=True, slots=True)
class Entry:
    """One of the up to three versions of a path that does not merge."""

    mode: str
    oid: str
    stage: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Message:
    """What git says about some paths, and which kind of thing that is."""

    paths: tuple[bytes, ...]
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Clash:
    """A merge that git could not make."""

    # It has the files with marks of conflict in them.
    tree: str
    # The names that stand at those marks; that of the base is cut short there.
    base: str
    ours: str
    theirs: str
    entries: tuple[Entry, ...]
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines that both sides changed; the line is that of the file with the marks in it."""

    line: int
    ours: str
    base: str
    theirs: str


@dataclass(frozen=True, slots=True)
class ConflictFile:
    """A file that does not merge; `ours` is the branch, `theirs` what the run brought."""

    path: str
    kind: Kind
    explanation: str
    hunks: tuple[Hunk, ...] = ()
    hunks_left_out: int = 0


def shown(path: bytes) -> str:
    """Write a path as text, whatever bytes it is of."""
    return path.decode(errors="backslashreplace")


def of(clash: Clash) -> dict[bytes, ConflictFile]:
    """List the files of a conflict, without their hunks; each path once, in order."""
    entries: dict[bytes, list[Entry]] = {}
    for entry in clash.entries:
        entries.setdefault(entry.path, []).append(entry)
    said: dict[bytes, list[Message]] = {path: [] for path in entries}
    for message in clash.messages:
        # The first path is what it is about; others have entries of their own or no conflict.
        if "CONFLICT" in message.kind:
            for path in message.paths[: 1 + (message.paths[0] not in entries)]:
                said.setdefault(path, []).append(message)
    return {
        path: ConflictFile(
            shown(path), _kind(entries.get(path, ()), messages), _explain(path, messages)
        )
        for path, messages in sorted(said.items())
    }


def _kind(entries: Sequence[Entry], messages: Sequence[Message]) -> Kind:
    kinds = " ".join(message.kind for message in messages)
    stages = {entry.stage for entry in entries}
    modes = {entry.mode for entry in entries}
    if "rename" in kinds:
        return Kind.RENAME
    if "modify/delete" in kinds:
        return Kind.MODIFY_DELETE
    if "submodule" in kinds or "160000" in modes:
        return Kind.SUBMODULE
    if "file/directory" in kinds or "distinct modes" in kinds or "120000" in modes:
        return Kind.TYPE
    if "binary" in kinds:
        return Kind.BINARY
    return Kind.ADD_ADD if stages == {2, 3} else Kind.CONTENT


def _explain(path: bytes, messages: Sequence[Message]) -> str:
    said = "; ".join(message.text.strip() for message in messages)
    return said[:_TEXT_TOLD] or f"both sides changed {shown(path)[:_TEXT_TOLD]}"


def with_hunks(
    clash: Clash, files: Iterable[tuple[ConflictFile, bytes | None]]
) -> Iterator[ConflictFile]:
    """Add to each file the hunks that its merged bytes are marked with, as far as there is room."""
    left = _TEXT_OF_ALL
    for file, merged in files:
        if merged is None or b"\0" in merged:
            yield file
            continue
        told: list[Hunk] = []
        count = 0
        for hunk in _hunks(merged, clash):
            count += 1
            size = len(hunk.ours) + len(hunk.base) + len(hunk.theirs)
            if len(told) < _HUNKS_TOLD and size <= left:
                told.append(hunk)
                left -= size
        yield ConflictFile(file.path, file.kind, file.explanation, tuple(told), count - len(told))


def _hunks(merged: bytes, clash: Clash) -> Iterator[Hunk]:
    """Find the marked parts; only marks with the names of this merge count.

    Without that, lines of the file that look like marks would be taken for some.
    """
    base, ours, theirs = (name.encode() for name in (clash.base, clash.ours, clash.theirs))
    parts: dict[bytes, list[bytes]] = {}
    part, began = b"", 0
    for number, line in enumerate(merged.split(b"\n"), 1):
        if _marks(line, _OURS, ours):
            parts = {_OURS: [], _BASE: [], _MIDDLE: []}
            part, began = _OURS, number
        elif part and _marks(line, _THEIRS, theirs):
            texts = [_text(parts[name]) for name in (_OURS, _BASE, _MIDDLE)]
            yield Hunk(began, *texts)
            part = b""
        elif part == _OURS and line.startswith(_BASE) and base.startswith(_name(line)):
            part = _BASE
        elif part == _BASE and line.rstrip(b"\r") == _MIDDLE:
            part = _MIDDLE
        elif part:
            parts[part].append(line)


def _marks(line: bytes, mark: bytes, name: bytes) -> bool:
    return line.startswith(mark) and _name(line) == name


def _name(line: bytes) -> bytes:
    """Give the name at a mark, without the path that may stand behind it."""
    return line[8:].rstrip(b"\r").partition(b":")[0]


def _text(lines: Sequence[bytes]) -> str:
    text = b"\n".join(lines).decode(errors="backslashreplace")
    if len(text) <= _TEXT_TOLD:
        return text
    return f"{text[:_TEXT_TOLD]}\n[{len(text) - _TEXT_TOLD} characters more]"

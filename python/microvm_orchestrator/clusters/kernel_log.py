"""The lines of a kernel's log, out of whatever shows it: the ring by two ways, or a console.

`dmesg -r` and the records of /dev/kmsg are the kernel's own words. A console has what programs
write between them, terminal sequences, and lines that others broke into. All of it may have been
written by an attacker: sizes and counts are bounded, the newest is kept, and no text that comes out
has anything a terminal would obey. Pure: nothing here reads or waits. Above stand marks and
reports; below, the words of `model` and what a headline looks like.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from microvm_orchestrator.clusters.kernel_words import trouble_of
from microvm_orchestrator.model.kernel_log import LEVELS, KernelLine, Level

# A ring is a few hundred kilobytes, on large hosts some megabytes.
MAX_BYTES = 4 << 20
MAX_LINES = 20_000
# The kernel itself cuts at a thousand and some.
MAX_TEXT = 1024

FACILITIES = (
    *("kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron"),
    *("authpriv", "ftp", "ntp", "security", "console", "clock"),
    *(f"local{number}" for number in range(8)),
)
_KERN = FACILITIES[0]

_STAMP = r"\[ {0,6}([0-9]{1,10})\.([0-9]{6})\](?:\[ {0,10}[CT][0-9]{1,10}\])? ?"
_RAW = re.compile(rf"<([0-9]{{1,4}})>(?:{_STAMP})?")
_PRINTED = re.compile(_STAMP)
_RECORD = re.compile(rb"([0-9]{1,4}),([0-9]{1,20}),([0-9]{1,20}),[^;\n]{0,200};([^\n]*)", re.ASCII)
_ESCAPED = re.compile(rb"\\x([0-9a-fA-F]{2})")
_BREAKS = re.compile(r"[\r\n]+")
# A string for the terminal counts with its end only, or it would swallow what the kernel says.
_FOR_TERMINALS = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-Z\\-~]"  # never a bracket, which may begin a time
    r"|\x1b[\]PX^_][^\x07\x1b\n]{0,300}(?:\x07|\x1b\\)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
)


@dataclass(frozen=True, slots=True)
class KernelLines:
    """What was read."""

    lines: tuple[KernelLine, ...]
    # Something older was left out, for there is more than is kept.
    cut: bool = False


def parse_raw(data: bytes) -> KernelLines:
    """Read what `dmesg -r` writes: each line with its priority, and with a time if it has one."""
    level, facility = None, None
    lines: list[KernelLine] = []
    kept, cut = _newest(data)
    for text in _broken(kept):
        match = _RAW.match(text)
        if match is not None:
            level, facility = _priority(int(match[1]))
            line = _line(text[match.end() :], _seconds(match[2], match[3]), level, facility)
        else:  # an old kernel numbers the first line of several only
            line = _line(text, None, level, facility)
        if line is not None:
            lines.append(line)
    return _bounded(lines, cut=cut)


def parse_kmsg(data: bytes) -> KernelLines:
    """Read records of /dev/kmsg, whole ones."""
    kept, cut = _newest(data)
    return _bounded(list(kmsg_records(kept.split(b"\n"))), cut=cut)


def kmsg_records(lines: Iterable[bytes]) -> Iterator[KernelLine]:
    """Read the lines of records; what describes a device, or is none, is passed over."""
    for line in lines:
        match = _RECORD.match(line)
        if match is None:
            continue
        level, facility = _priority(int(match[1]))
        seq, at = int(match[2]), int(match[3]) / 1e6
        said = _ESCAPED.sub(lambda found: bytes([int(found[1], 16)]), match[4][: 16 * MAX_TEXT])
        for text in _broken(said):
            read = _line(text, at, level, facility, seq)
            if read is not None:
                yield read


def parse_console(data: bytes) -> KernelLines:
    """Read a console; a line of the kernel is told by its time, wherever in the line it stands.

    A kernel that prints no times has none of its lines told from those of programs: where there is
    no time at all, every line may be the kernel's.
    """
    kept, cut = _newest(data)
    lines: list[KernelLine] = []
    for text in _broken(_FOR_TERMINALS.sub("", kept.decode(errors="replace"))):
        lines += console_lines(text)
    if not any(line.timestamp is not None for line in lines):
        lines = [_line(line.text, None, None, None) or line for line in lines]
    return _bounded(lines, cut=cut)


def console_lines(text: str) -> Iterator[KernelLine]:
    """Read one line of a console, which may hold several: somebody broke in."""
    begin, at = 0, None
    for match in [*_PRINTED.finditer(text), None]:
        part = text[begin : match.start() if match else len(text)]
        line = _line(part, at, None, None) if at is not None else _said_by_program(part)
        if line is not None:
            yield line
        if match:
            begin, at = match.end(), _seconds(match[1], match[2])


def clean(text: str, most: int = MAX_TEXT) -> str:
    """Return text without what a terminal would obey, and no longer than that."""
    text = _FOR_TERMINALS.sub("", text[: 4 * most]).replace("\t", " ").rstrip()
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= most else text[: most - 1] + "\N{HORIZONTAL ELLIPSIS}"


def at_least(line: KernelLine, level: Level) -> bool:
    """Tell whether a line is as grave as that; one that does not tell its level may well be."""
    return line.level is None or line.level.number <= level.number


def _newest(data: bytes) -> tuple[bytes, bool]:
    if len(data) <= MAX_BYTES:
        return data, False
    # What is left of the first line would be read as another one.
    return data[-MAX_BYTES:].partition(b"\n")[2], True


def _broken(said: bytes | str) -> list[str]:
    text = said if isinstance(said, str) else said.decode(errors="replace")
    return [part for part in _BREAKS.split(text) if part]


def _bounded(lines: list[KernelLine], *, cut: bool) -> KernelLines:
    return KernelLines(tuple(lines[-MAX_LINES:]), cut or len(lines) > MAX_LINES)


def _priority(number: int) -> tuple[Level, str]:
    facility = number >> 3
    named = FACILITIES[facility] if facility < len(FACILITIES) else str(facility)
    return LEVELS[number & 7], named


def _seconds(whole: str | None, millionths: str | None) -> float | None:
    return None if whole is None else int(f"{whole}{millionths}") / 1e6


def _line(
    text: str,
    at: float | None,
    level: Level | None,
    facility: str | None,
    seq: int | None = None,
) -> KernelLine | None:
    text = clean(text)
    if not text:
        return None
    # What a program writes into the log bears another facility; it is no word of the kernel.
    trouble = trouble_of(text) if facility in {None, _KERN} else None
    return KernelLine(text, at, level, facility, trouble, seq)


def _said_by_program(text: str) -> KernelLine | None:
    text = clean(text)
    return KernelLine(text, from_kernel=False) if text.strip() else None

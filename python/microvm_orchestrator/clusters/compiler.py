"""What a build says went wrong: the words of gcc, clang, ld, lld, as, make, modpost, rustc, cargo.

One diagnostic each, with the file and line where the tool tells them, whichever of the tools was at
work: a build runs several, at once. What only repeats that something failed, as make does for each
folder, is left in: it may be all there is. The text is a guest's: lengths and counts are bounded,
and errors are kept before warnings. Pure; above stands the building of sources on a node.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from microvm_orchestrator.clusters.kernel_log import clean

MAX_BYTES = 16 << 20
MAX_DIAGNOSTICS = 500
_MAX_LINE = 4096
_MAX_MESSAGE = 1000


class Severity(StrEnum):
    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_ORDER = {severity: order for order, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Something that a tool complains of."""

    severity: Severity
    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    # As the tool has it: -Wunused-variable, E0425.
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """All that was complained of, in its order."""

    diagnostics: tuple[Diagnostic, ...]
    errors: int
    warnings: int
    # Some are counted, and not among them.
    cut: bool = False


_FILE = r"(?P<file>(?=[^\s:]{0,400}[^\s:0-9])[^\s:]{1,400})"
_SEVERITY = r"(?P<severity>fatal error|error|warning|note|Error|Warning|ERROR|WARNING)"
_MESSAGE = r"(?P<message>\S.*)"
_FLAG = re.compile(r" \[(?:-Werror,)?-W(?:error=)?(?P<flag>[\w+=-]{1,80})\]$")
# Of rustc and cargo; the place stands in the next line.
_RUST = re.compile(
    r"(?P<severity>error|warning|note)(?:\[(?P<code>[A-Z][0-9]{1,6})\])?: " + _MESSAGE
)
_RUST_PLACE = re.compile(
    r" {1,12}--> (?P<file>[^:\n]{1,400}):(?P<line>[0-9]{1,8}):(?P<column>[0-9]{1,6})"
)
_LINKER = r"(?:\S{0,300}[/-])?(?:ld(?:\.\w{1,10})?|lld|mold|gold)(?:\.exe)?"

# In the order they are tried. Groups tell the fields; a `place` is what precedes an undefined name.
_LINES: tuple[tuple[Severity | None, re.Pattern[str]], ...] = tuple(
    (severity, re.compile(pattern))
    for severity, pattern in (
        # gcc, clang, as, and make's own warnings.
        (
            None,
            _FILE + r":(?P<line>[0-9]{1,8}):(?:(?P<column>[0-9]{1,6}):)? ?" + _SEVERITY + ": "
            + _MESSAGE,
        ),
        (
            Severity.ERROR,
            (rf"(?:{_LINKER}: )?{_FILE}:(?:(?P<line>[0-9]{{1,8}}): |\([^()\s]{{1,200}}\): )"
            r"(?P<message>(?:undefined reference to|multiple definition of|relocation truncated"
            r"|more undefined references) .*)"),
        ),
        (Severity.WARNING, rf"{_LINKER}: (?:{_FILE}: )?warning: {_MESSAGE}"),
        (
            Severity.ERROR,
            (rf"{_LINKER}: (?:error: |fatal error: )?(?P<message>(?:cannot |undefined symbol"
            r"|duplicate symbol|unable to |unrecognized |skipping |final link failed|error).*)"),
        ),
        (
            Severity.ERROR,
            r"(?P<file>[\w./-]{0,200}[Mm]akefile[\w.-]{0,60}|[\w./-]{1,200}\.mk)"
            r":(?P<line>[0-9]{1,8}): \*\*\* " + _MESSAGE,
        ),
        (
            Severity.ERROR,
            (r"g?make(?:\[[0-9]{1,4}\])?: \*\*\* \[(?P<file>[^\s:\]]{1,400}):(?P<line>[0-9]{1,8}): "
            r"(?P<message>[^\]]{1,400}\] (?:Error|Segmentation|Killed|Terminated|Interrupt).*)"),
        ),
        (Severity.ERROR, r"g?make(?:\[[0-9]{1,4}\])?: \*\*\* (?!Waiting )" + _MESSAGE),
        (Severity.WARNING, r"g?make(?:\[[0-9]{1,4}\])?: warning: +" + _MESSAGE),
        # The programs behind the compiler: they know no place.
        (None, r"(?:\S{0,300}/)?(?:cc1(?:plus)?|collect2|g?cc|g\+\+|clang(?:\+\+)?|c\+\+)"
         r"(?:-[0-9.]{1,10})?: " + _SEVERITY + ": " + _MESSAGE),
        (Severity.ERROR, r"cc1(?:plus)?: (?P<message>all warnings being treated as errors)"),
        (None, r"(?P<severity>ERROR|WARNING): modpost: " + _MESSAGE),
        (Severity.ERROR, (r"(?:/bin/)?(?:ba|da)?sh: (?:[0-9]{1,6}: |line [0-9]{1,6}: )?"
         r"(?P<message>\S{1,200}: (?:command )?not found)")),
    )
)  # fmt: skip
# Every complaint has one of these.
_HINT = re.compile(
    r"rror|ERROR|arning|WARNING|note: |undefined|multiple|\*\*\*|ld|not found|reloc|more"
)


def diagnose(output: bytes) -> Diagnosed:
    """Find what the output of a build complains of; the same told again counts once."""
    found: dict[Diagnostic, None] = {}
    pending: Diagnostic | None = None
    for raw in output[:MAX_BYTES].split(b"\n"):
        text = clean(raw[:_MAX_LINE].decode(errors="replace"), _MAX_LINE)
        if pending is not None:
            place = _RUST_PLACE.match(text)
            found[_placed(pending, place) if place else pending] = None
            pending = None
            if place:
                continue
        if not _HINT.search(text):
            continue
        if rust := _RUST.match(text):
            pending = _of(rust, None)
        elif (diagnostic := _diagnostic(text)) is not None:
            found[diagnostic] = None
    if pending is not None:
        found[pending] = None
    return _bounded(list(found), cut=len(output) > MAX_BYTES)


def _bounded(found: list[Diagnostic], *, cut: bool) -> Diagnosed:
    def count(severity: Severity) -> int:
        return sum(each.severity is severity for each in found)

    kept = found
    if len(found) > MAX_DIAGNOSTICS:
        gravest = sorted(range(len(found)), key=lambda index: _ORDER[found[index].severity])
        kept = [found[index] for index in sorted(gravest[:MAX_DIAGNOSTICS])]
    return Diagnosed(
        tuple(kept), count(Severity.ERROR), count(Severity.WARNING), cut or len(kept) < len(found)
    )


def _diagnostic(text: str) -> Diagnostic | None:
    for severity, pattern in _LINES:
        match = pattern.match(text)
        if match is not None:
            return _of(match, severity)
    return None


def _of(match: re.Match[str], severity: Severity | None) -> Diagnostic:
    fields = match.groupdict()
    message = fields["message"].strip()
    code = fields.get("code")
    if flag := _FLAG.search(message):
        message, code = message[: flag.start()], f"-W{flag['flag']}"
    return Diagnostic(
        severity=severity or _severity(fields["severity"]),
        message=message[:_MAX_MESSAGE],
        file=fields.get("file"),
        line=_number(fields.get("line")),
        column=_number(fields.get("column")),
        code=code,
    )


def _placed(diagnostic: Diagnostic, place: re.Match[str]) -> Diagnostic:
    return Diagnostic(
        severity=diagnostic.severity,
        message=diagnostic.message,
        file=place["file"],
        line=int(place["line"]),
        column=int(place["column"]),
        code=diagnostic.code,
    )


def _severity(word: str) -> Severity:
    return Severity.ERROR if "error" in word.lower() else Severity(word.lower())


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)

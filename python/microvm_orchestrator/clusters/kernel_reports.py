"""Reports: the lines by which a kernel tells of one trouble, found among all its lines.

A report begins with a headline, and goes on to the mark that ends its kind, to a call trace's end,
to the next headline, or until the kernel has gone on to other things. What an oops, a warning or a
sanitizer prints is bracketed by marks; the others have none. Lines and reports are bounded, and the
same told again is counted. Pure: `Reporter` is fed line by line, so a live log is read by it too.
Above stand marks and the watch; below, the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from microvm_orchestrator.model.kernel_log import KernelLine, KernelReport, Trouble

MAX_REPORTS = 200
# A report of KASAN has some 150 lines, of lockdep up to 300.
MAX_REPORT_LINES = 400
MAX_FRAMES = 64
# One report is printed at once. A console at 9600 baud takes a second for fifteen lines.
_GAP_S = 10.0
# Between the mark that opens a report and its headline, a sentence may stand.
_BEFORE_HEADLINE = 5
# Of what has no mark and may have no call trace either.
_LOOSE_GAP_S = 2.0
# Processors do not print quite in turn; more than this backwards is another boot.
_BACK_S = 1.0

_CUT_HERE = re.compile(r"-{4,}\[ cut here \]-{4,}")
_END = re.compile(r"---\[ end trace")
_PANIC_END = re.compile(r"---\[ end Kernel panic")
_RULE = re.compile(r"={20,}$")
_TRACE = re.compile(r" ?(?:Call [Tt]race:|backtrace:)")
_FRAME = re.compile(
    r" {1,4}(?:\[<[0-9a-fx]{1,20}>\] )?(?:\[[0-9a-f]{8,16}\] )?"
    r"(\? )?([A-Za-z_][\w.$]{0,200}\+0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16}(?: \[[\w-]{1,60}\])?)"
)
_RIP = re.compile(
    r"(?:RIP: (?:[0-9a-f]{4}:)?|pc : |EIP: (?:[0-9a-f]{4}:)?)"
    r"(?:\[<[0-9a-f]{1,16}>\] )?([\w.$]{1,200}(?:\+0x[0-9a-f]{1,16}/0x[0-9a-f]{1,16})?)"
)
_PROCESSES = tuple(
    re.compile(pattern)
    for pattern in (
        (
            r"CPU: [0-9]{1,5} (?:UID: [0-9]{1,10} )?PID: (?P<pid>[0-9]{1,10}) "
            r"Comm: (?P<name>.{1,40}?) (?:Kdump: |Not tainted|Tainted)"
        ),
        r"INFO: task (?P<name>.{1,40}):(?P<pid>[0-9]{1,10}) blocked",
        r".{0,40}BUG: soft lockup .{0,40}\[(?P<name>.{1,40}):(?P<pid>[0-9]{1,10})\]",
        r"(?:Read|Write|Free|Access) .{0,100} by task (?P<name>.{1,40})/(?P<pid>[0-9]{1,10})",
        r"WARNING: .{1,300}, CPU#[0-9]{1,5}: (?P<name>.{1,40})/(?P<pid>[0-9]{1,10})",
        r"(?P<name>.{1,40})/(?P<pid>[0-9]{1,10}) is trying to (?:acquire|release) lock",
        (
            r"(?:Memory cgroup )?[Oo]ut of memory: Kill(?:ed)? process (?P<pid>[0-9]{1,10}) "
            r"\((?P<name>.{1,40}?)\)"
        ),
    )
)
# What follows a headline or a call trace without a mark of its own.
_BELONGS = re.compile(
    r"\s|</?(?:TASK|IRQ|NMI|SOFTIRQ|#\w{1,4})>|(?:[RE]?[A-Z]{2}|R[0-9]{2}|DR[0-9]|CR[0-9]): ?"
    r"|(?:[RE]IP|RSP|PKRU|FS|GS|CS|CPU|Code|PGD|Call [Tt]race|Modules linked in|Hardware name"
    r"|Workqueue|task|irq event stamp|hardirqs last|softirqs last|NMI backtrace|Sending NMI"
    r"|Tainted|Mem abort info|Data abort info|pstate|pc |lr |sp |x[0-9]{1,2}|rcu|note"
    r'|"echo 0 >|Future hung task|INFO: lockdep|oom_reaper|#PF|last |Showing |[0-9]{1,3} locks? '
    r"held|#[0-9]{1,3}:)"
)
# They tell all in a line; what follows has a beginning to be known by.
_FOLLOWED_BY = {
    Trouble.MCE: re.compile(r"(?:mce: )?(?:\{[0-9]{1,10}\})?\[Hardware Error\]"),
    Trouble.FILESYSTEM: None,
    Trouble.IO: None,
}
_OOM_ENDS = re.compile(r"(?:Memory cgroup )?[Oo]ut of memory")
_REAPED = re.compile(r"oom_reaper: ")
_BRACKETED = frozenset(
    {
        *(Trouble.PANIC, Trouble.OOPS, Trouble.WARN, Trouble.UBSAN),
        *(Trouble.KASAN, Trouble.KMSAN, Trouble.KFENCE, Trouble.KCSAN),
    }
)
_RULED = frozenset({Trouble.KASAN, Trouble.KMSAN, Trouble.KFENCE, Trouble.KCSAN, Trouble.UBSAN})
# They never begin a report while one of theirs or a graver one is open: they are its second line.
_SECONDS = re.compile(r"Oops|Internal error|KASAN: (?:null|prob|maybe)")
# Nor do these, wherever in the report they stand.
_LATER = {
    Trouble.OOM: re.compile(r"oom-kill:|(?:Memory cgroup )?[Oo]ut of memory"),
    Trouble.RCU_STALL: re.compile(r"rcu: rcu_\w{1,30} kthread"),
    Trouble.MCE: re.compile(""),
    Trouble.PANIC: re.compile(""),
}
_NUMBERS = re.compile(r"\b(?:0x[0-9a-f]+|[0-9a-f]{8,}|[0-9]+)\b")
# Of these, who it befell makes it another one.
_PERSONAL = frozenset({Trouble.HUNG_TASK, Trouble.OOM})


@dataclass(slots=True)
class _Open:
    """A report whose end has not come."""

    trouble: Trouble
    headline: str
    timestamp: float | None
    lines: list[str] = field(default_factory=list[str])
    more: int = 0
    last_at: float | None = None
    process: str | None = None
    rip: str | None = None
    frames: list[str] = field(default_factory=list[str])
    # Of the first call trace: the others are those of who allocated and the like.
    in_trace: bool = False
    traced: bool = False
    cut_here: bool = False
    ending: bool = False

    def take(self, line: KernelLine) -> None:
        text = line.text
        if len(self.lines) < MAX_REPORT_LINES:
            self.lines.append(text)
        else:
            self.more += 1
        self.last_at = line.timestamp or self.last_at
        if self.process is None or self.trouble is Trouble.OOM:
            self.process = _process(text) or self.process
        if self.rip is None and (match := _RIP.match(text)):
            self.rip = match[1]
        if _TRACE.match(text):
            self.in_trace, self.traced = not self.traced, True
        elif self.in_trace:
            self._frame(text)

    def _frame(self, text: str) -> None:
        match = _FRAME.match(text)
        if match is not None:
            # With a question mark, what was found on the stack may be old.
            if match[1] is None and len(self.frames) < MAX_FRAMES:
                self.frames.append(match[2])
        elif not text.startswith((" ", "<")):
            self.in_trace = False

    def seen(self, *, ended: bool) -> KernelReport:
        return KernelReport(
            trouble=self.trouble,
            headline=self.headline,
            timestamp=self.timestamp,
            process=self.process,
            rip=self.rip,
            call_trace=tuple(self.frames),
            lines=tuple(self.lines),
            more_lines=self.more,
            open=not ended,
        )


class Reporter:
    """Finds the reports in lines that come one after the other."""

    def __init__(self) -> None:
        self._open: _Open | None = None
        # A bracket was opened; its headline comes soon.
        self._cut_here: list[KernelLine] = []

    def feed(self, line: KernelLine) -> list[KernelReport]:
        """Take a line, and give the reports that are whole by it."""
        if not line.from_kernel:
            return []
        done: list[KernelReport] = []
        if self._open is not None and self._is_over(self._open, line):
            done += self._close(ended=_needs_no_mark(self._open))
        if self._open is not None:
            self._open.take(line)
            if _ends(self._open, line.text):
                done += self._close()
            return done
        if _CUT_HERE.match(line.text):
            self._cut_here = [line]
        elif line.trouble is None and 0 < len(self._cut_here) < _BEFORE_HEADLINE:
            self._cut_here.append(line)
        elif line.trouble is not None:
            self._begin(line.trouble, line)
            if self._open is not None and _ends(self._open, line.text):
                done += self._close()
        return done

    @property
    def open(self) -> KernelReport | None:
        """The report whose end has not come, as far as it goes."""
        return self._open.seen(ended=False) if self._open else None

    def end(self) -> list[KernelReport]:
        """Give what is open: nothing more comes."""
        return [] if self._open is None else self._close(ended=_needs_no_mark(self._open))

    def _begin(self, trouble: Trouble, line: KernelLine) -> None:
        self._open = opened = _Open(trouble, line.text.strip(), line.timestamp)
        before, self._cut_here = self._cut_here, []
        if before and not _apart(before[0].timestamp, line.timestamp):
            opened.cut_here = True
            opened.lines += [each.text for each in before]
        opened.take(line)

    def _is_over(self, now: _Open, line: KernelLine) -> bool:
        """Whether a line is no more of the report that is open."""
        text = line.text
        marked = now.trouble in _BRACKETED or now.trouble is Trouble.OOM
        gap = _GAP_S if marked or now.traced else _LOOSE_GAP_S
        if _apart(now.last_at, line.timestamp, gap):
            return True
        if _CUT_HERE.match(text):
            return now.trouble is not Trouble.PANIC
        if line.trouble is not None:
            return _is_another(now, line.trouble, text)
        if now.ending:  # of what killed: its reaper may still speak
            return not _REAPED.match(text)
        if now.trouble in _FOLLOWED_BY:
            follows = _FOLLOWED_BY[now.trouble]
            return follows is None or not follows.match(text)
        if marked:
            return False
        if now.in_trace or now.traced:
            return not _BELONGS.match(text)
        return len(now.lines) >= MAX_REPORT_LINES

    def _close(self, *, ended: bool = True) -> list[KernelReport]:
        opened, self._open = self._open, None
        return [] if opened is None else [opened.seen(ended=ended)]


def _is_another(now: _Open, trouble: Trouble, text: str) -> bool:
    """Whether a headline begins a report of its own while one is open."""
    if trouble is now.trouble is Trouble.PANIC:
        # A program can write such a line to a console; the kernel's own word comes through.
        return text.strip() != now.headline
    later = _LATER.get(now.trouble)
    if later is not None and later.match(text):
        return trouble is not now.trouble and now.trouble is not Trouble.PANIC
    if trouble.rank >= now.trouble.rank and not now.traced and _SECONDS.match(text):
        return False
    # In brackets, whatever is told meanwhile is part of it, unless it is graver or as grave.
    return trouble.rank <= now.trouble.rank or now.trouble not in _BRACKETED


def reports_of(lines: Iterable[KernelLine]) -> tuple[tuple[KernelReport, ...], int]:
    """Find all reports, and how many beyond those that are kept; the same is counted, not kept.

    The gravest are kept where there are too many.
    """
    reporter = Reporter()
    found: list[KernelReport] = []
    for line in lines:
        found += reporter.feed(line)
    found += reporter.end()
    merged: dict[tuple[Trouble, str], KernelReport] = {}
    for report in found:
        key = likeness(report)
        before = merged.get(key)
        merged[key] = replace(before, count=before.count + 1) if before else report
    reports = list(merged.values())
    if len(reports) > MAX_REPORTS:
        gravest = sorted(range(len(reports)), key=lambda index: reports[index].trouble.rank)
        reports = [reports[index] for index in sorted(gravest[:MAX_REPORTS])]
    return tuple(reports), len(merged) - len(reports)


def likeness(report: KernelReport) -> tuple[Trouble, str]:
    """Return what is the same of reports that tell the same."""
    who = report.process or "" if report.trouble in _PERSONAL else ""
    return report.trouble, " ".join((_NUMBERS.sub("#", report.headline), report.rip or "", who))


def _ends(now: _Open, text: str) -> bool:
    if (_PANIC_END if now.trouble is Trouble.PANIC else _END).match(text):
        return True
    if now.trouble in _RULED and not now.cut_here and _RULE.match(text):
        return True
    if now.trouble is Trouble.OOM and _OOM_ENDS.match(text):
        now.ending = True
    return False


def _needs_no_mark(now: _Open) -> bool:
    """Whether nothing is lacking where no mark has come; after a panic nothing more is said."""
    return now.trouble is Trouble.PANIC or now.trouble not in _BRACKETED


def _apart(earlier: float | None, later: float | None, gap: float = _GAP_S) -> bool:
    """Whether so much time lies between that it is something else, or another boot."""
    if earlier is None or later is None:
        return False
    return later - earlier > gap or earlier - later > _BACK_S


def _process(text: str) -> str | None:
    for pattern in _PROCESSES:
        match = pattern.match(text)
        if match is not None:
            return f"{match['name']}/{match['pid']}"
    return None

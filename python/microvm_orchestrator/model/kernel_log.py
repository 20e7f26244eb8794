"""What a kernel has said: its lines, the troubles it tells of, and each of these as one report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator.model.machine import MachineState
from microvm_orchestrator.model.values import Moment


class Level(StrEnum):
    """How grave the kernel took a line to be, as `dmesg` names it; the gravest is first."""

    EMERG = "emerg"
    ALERT = "alert"
    CRIT = "crit"
    ERR = "err"
    WARN = "warn"
    NOTICE = "notice"
    INFO = "info"
    DEBUG = "debug"

    @property
    def number(self) -> int:
        return LEVELS.index(self)


LEVELS = tuple(Level)


class Trouble(StrEnum):
    """What a kernel tells of, the gravest first."""

    PANIC = "panic"
    OOPS = "oops"
    KASAN = "kasan"
    KMSAN = "kmsan"
    KFENCE = "kfence"
    KCSAN = "kcsan"
    UBSAN = "ubsan"
    # It says BUG and goes on.
    BUG = "bug"
    LOCKDEP = "lockdep"
    HARD_LOCKUP = "hard_lockup"
    SOFT_LOCKUP = "soft_lockup"
    RCU_STALL = "rcu_stall"
    HUNG_TASK = "hung_task"
    OOM = "oom"
    MCE = "mce"
    FILESYSTEM = "filesystem"
    IO = "io"
    WARN = "warn"

    @property
    def rank(self) -> int:
        """Smaller for what is graver."""
        return _RANK[self]


_RANK = {trouble: rank for rank, trouble in enumerate(Trouble)}


@dataclass(frozen=True, slots=True)
class KernelLine:
    """A line of a kernel's log; its text has nothing that a terminal would obey."""

    text: str
    # Seconds since the kernel began; None where the line does not say.
    timestamp: float | None = None
    # None on a console, which does not tell.
    level: Level | None = None
    facility: str | None = None
    # What the line is the first word of.
    trouble: Trouble | None = None
    # The kernel's own number of the record.
    seq: int | None = None
    # On a console, what programs write stands between the kernel's lines.
    from_kernel: bool = True


@dataclass(frozen=True, slots=True)
class KernelReport:
    """Something that went wrong in a kernel, told once, from its headline to its call trace."""

    trouble: Trouble
    headline: str
    timestamp: float | None = None
    # As name/pid, or the name alone.
    process: str | None = None
    # The function that was running, as the kernel writes it: name+offset/size.
    rip: str | None = None
    call_trace: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    # Lines beyond those that are kept.
    more_lines: int = 0
    # How often the same was told.
    count: int = 1
    # Its end was not seen: it was cut off, or goes on.
    open: bool = False


# The kind of record in which the marks of a machine stand.
MARKS = "kernel_marks"


class Source(StrEnum):
    """Where the lines of a kernel come from."""

    # Of the kernel itself, by what runs beside it.
    RING = "ring"
    # What it has said aloud; all there is of a kernel that answers no more.
    CONSOLE = "console"


class Since(StrEnum):
    """What became of the mark that lines were asked from."""

    # None was asked for: all that there is.
    BEGINNING = "beginning"
    MARK = "mark"
    # Gone from the ring, or of an earlier boot: all that there is came after it, and some is gone.
    LOST = "lost"


class KernelMark(BaseModel):
    """A line in a kernel's log by which what comes later is told from what was before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mark: str
    machine_id: str
    boot_id: str = Field(description="of the boot it was written in")
    timestamp: float | None = Field(description="seconds since that boot, by the guest's kernel")
    console_offset: int = Field(description="where its console stood before")
    marked_at: Moment


class KernelMarks(BaseModel):
    """The marks of one machine, the oldest first."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine_id: str
    marks: list[KernelMark] = []


@dataclass(frozen=True, slots=True)
class KernelLog:
    """What a machine's kernel has said, and what that tells."""

    machine_id: str
    source: Source
    since: Since
    lines: tuple[KernelLine, ...]
    reports: tuple[KernelReport, ...]
    # Reports beyond those that are kept.
    more_reports: int = 0
    # Something older than the lines was left out.
    cut: bool = False
    # Why it comes from there, or what is lacking.
    reason: str = ""

    def has(self, trouble: Trouble) -> bool:
        return any(report.trouble is trouble for report in self.reports)


# The kind of record by which trouble in the kernels of a cluster's nodes becomes events.
KERNEL_LOG = "kernel-log"


class News(StrEnum):
    """What is told of a node whose kernel is watched."""

    LINE = "line"
    REPORT = "report"
    # Lines, or bytes of a console, that nobody has read: there was too much of it.
    DROPPED = "dropped"
    # How the node is: it has ended, runs again, does not answer.
    NODE = "node"


@dataclass(frozen=True, slots=True)
class KernelPlace:
    """From where on a machine's kernel is heard."""

    # Of what it writes to its console.
    console_offset: int
    # Of its ring: behind this line, or behind the record of this number; without, from its begin.
    mark: str | None = None
    seq: int | None = None
    # Of which boot that is, and when it was by its kernel's clock.
    boot_id: str | None = None
    timestamp: float | None = None


@dataclass(frozen=True, slots=True)
class KernelNews:
    """One thing heard of a kernel that is watched."""

    what: News
    # Where it comes from.
    source: Source | None = None
    line: KernelLine | None = None
    report: KernelReport | None = None
    # How often the line was said on end; how much was dropped.
    count: int = 1
    # Null of a node whose machine is gone.
    state: MachineState | None = None
    # Which boot of its kernel this is, once that is known.
    boot_id: str | None = None
    answers: bool = True
    reason: str = ""
    # Where to go on behind a report, or where a machine that was started begins.
    place: KernelPlace | None = None

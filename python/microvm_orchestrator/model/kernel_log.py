"""What a kernel has said: its lines, the troubles it tells of, and each of these as one report."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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

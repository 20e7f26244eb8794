"""How a command fails: a sentence on stderr and an exit status by the kind of error.

Above sit the commands and the bridge, which reads this on every start: nothing but the standard
library. Below, the tree of errors. The table stands in docs/how-to/use-the-cli.md too.
"""

from __future__ import annotations

import re
import sys

from microvm_orchestrator import errors

OK = 0
INTERNAL = 1
INVALID = 2
NOT_FOUND = 3
CONFLICT = 4
DENIED = 5
UNAVAILABLE = 6
UNKNOWN_OUTCOME = 7
# What `task wait` and `task watch` found at the end.
TASK_FAILED = 8
TASK_CANCELLED = 9
# As timeout(1) says it, and as a shell tells of an interrupted program.
TIMED_OUT = 124
INTERRUPTED = 130

# By class: the nearest ancestor in the table counts.
STATUSES: dict[type[errors.OrchestratorError], int] = {
    errors.OrchestratorError: INTERNAL,
    errors.InvalidInput: INVALID,
    errors.TooLarge: INVALID,
    errors.NotFound: NOT_FOUND,
    errors.Conflict: CONFLICT,
    errors.Denied: DENIED,
    errors.Unauthenticated: DENIED,
    errors.Unavailable: UNAVAILABLE,
    errors.UnknownOutcome: UNKNOWN_OUTCOME,
}

# Escapes, and marks that change the direction of what follows: a title could repaint the screen.
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


def status_of(kind: type[errors.OrchestratorError]) -> int:
    return next(STATUSES[each] for each in kind.__mro__ if each in STATUSES)


def tell(error: errors.OrchestratorError) -> int:
    """Say on stderr what went wrong, and return the exit status for it."""
    say(f"error: {error.message} ({error.code})")
    if error.hint:
        say(f"\nhint: {error.hint}")
    return status_of(type(error))


def say(text: str) -> None:
    """Write a line for people to stderr, where it does not mix with data."""
    sys.stderr.write(f"{harmless(text)}\n")
    sys.stderr.flush()


def harmless(text: str) -> str:
    """Return text that a terminal only shows; what would command it is written out."""
    text = text.encode(errors="backslashreplace").decode()
    return UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)

"""Ids, keys and the other names things go by, and what each may look like."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
import time
from typing import NewType

TaskId = NewType("TaskId", str)
RunId = NewType("RunId", str)

# Crockford's alphabet: sorts like the number it writes and has no letter that reads as a digit.
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"

TASK_ID = re.compile(r"t_[0-9a-hjkmnp-tv-z]{26}")
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME = re.compile(NAME_PATTERN)
DEFAULT_GROUP = "default"


class _Ulids:
    """Ids of one process that sort in the order they were made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> str:
        fresh = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
        with self._lock:
            # Within one millisecond, or after the clock went back, count on from the last one.
            self._last = fresh if fresh >> 80 > self._last >> 80 else self._last + 1
            number = self._last
        return _written(number)


_ulids = _Ulids()


def new_id(prefix: str) -> str:
    """A fresh id such as `t_01k…`: unique, and sorted by the time it was made."""
    return f"{prefix}_{_ulids.next()}"


def derived_id(prefix: str, *parts: str) -> str:
    """The same id for the same parts: what they name can exist only once."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    number = int.from_bytes(digest[:16])
    return f"{prefix}_{_written(number)}"


def _written(number: int) -> str:
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def is_task_id(text: str) -> bool:
    return TASK_ID.fullmatch(text) is not None

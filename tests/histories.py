"""Histories of registers for tests: written by hand, made from a real register, and checked slowly.

`slowly` is the definition itself: it tries every order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import count, permutations

from pydantic import JsonValue

from microvm_orchestrator.clusters.history import EventType, Operation


def op(
    process: int,
    f: str,
    value: JsonValue,
    start: int,
    end: int | None = None,
    *,
    key: JsonValue = None,
    outcome: EventType | None = None,
) -> Operation:
    """Make an operation; of a read, `value` is what it gave. Without an end nobody knows it."""
    how = outcome or (EventType.OK if end is not None else EventType.INFO)
    given, gave = (None, value) if f == "read" else (value, value)
    return Operation(process, f, given, gave, how, start, end, key)


def drawn(text: str) -> list[Operation]:
    """Read a drawing: a line for each process.

    `w1--` writes, `r1-` reads, `c12--` compares and sets; from its letter to its last dash it runs,
    and with `?` at its end nobody knows how it ended.
    """
    found: list[Operation] = []
    for process, line in enumerate(filter(None, text.splitlines())):
        at = 0
        while at < len(line):
            if line[at] not in "wrc":
                at += 1
                continue
            size = 3 if line[at] == "c" else 2
            digits = [None if digit == "_" else int(digit) for digit in line[at + 1 : at + size]]
            end = at + size
            while end < len(line) and line[end] == "-":
                end += 1
            lost = line[end : end + 1] == "?"
            f = {"w": "write", "r": "read", "c": "cas"}[line[at]]
            value: JsonValue = list(digits) if f == "cas" else digits[0]
            found.append(op(process, f, value, at, None if lost else end - 1))
            at = end + 1
    return found


def atomic(
    seed: int, operations: int, processes: int, *, values: int = 3, lost: float = 0.1
) -> list[Operation]:
    """Run a real register: each operation takes place at one moment between its ends."""
    rng = random.Random(seed)
    register: JsonValue = None
    clocks = [0] * processes
    plans: list[tuple[float, int, str, JsonValue, int, int]] = []
    names = count(processes)
    who = list(range(processes))
    for _ in range(operations):
        slot = rng.randrange(processes)
        start = clocks[slot] + rng.randint(1, 20)
        end = start + rng.randint(1, 60)
        clocks[slot] = end
        f = rng.choice(["read", "read", "write", "cas"])
        pair: JsonValue = [rng.choice([None, *range(values)]), rng.randrange(values)]
        value: JsonValue = pair if f == "cas" else rng.randrange(values) if f == "write" else None
        plans.append((rng.uniform(start, end), slot, f, value, start, end))
    found: list[Operation] = []
    for _, slot, f, asked, start, end in sorted(plans, key=lambda plan: plan[0]):
        value = asked
        process = who[slot]
        vanished = rng.random() < lost
        if vanished:  # a process whose operation is lost goes on as another one
            who[slot] = next(names)
            if rng.random() < 0.5:  # it never took place
                found.append(op(process, f, value, start))
                continue
        outcome = None
        if f == "read":
            value = register
        elif f == "write":
            register = value
        elif isinstance(value, list):
            if value[0] != register:
                outcome = EventType.FAIL
            else:
                register = value[1]
        if vanished:
            found.append(op(process, f, value if f != "read" else None, start))
        else:
            found.append(op(process, f, value, start, end, outcome=outcome))
    return sorted(found, key=lambda each: each.start)


def with_stale_read(history: Sequence[Operation], values: int) -> list[Operation]:
    """Add what no register gives: what was there before, after it was written over."""
    last = max(each.end or each.start for each in history) + 1
    process = max(int(each.process) for each in history) + 1
    old, new = values + 1, values + 2
    return [
        *history,
        op(process, "write", old, last, last + 2),
        op(process, "write", new, last + 4, last + 6),
        op(process + 1, "read", old, last + 8, last + 10),
    ]


def slowly(history: Iterable[Operation], initial: JsonValue = None) -> bool:
    """Try every order of what took place, with each choice of what may have."""
    certain = [each for each in history if each.outcome is EventType.OK]
    maybe = [
        each for each in history if each.outcome is EventType.INFO and each.f in {"write", "cas"}
    ]
    for choice in range(1 << len(maybe)):
        chosen = certain + [each for bit, each in enumerate(maybe) if choice >> bit & 1]
        if any(_holds(order, initial) for order in permutations(chosen)):
            return True
    return False


def _holds(order: Sequence[Operation], register: JsonValue) -> bool:
    for index, each in enumerate(order):
        if any(later.end is not None and later.end < each.start for later in order[index + 1 :]):
            return False
        if each.f == "read" and each.result != register:
            return False
        if each.f == "write":
            register = each.value
        elif isinstance(each.value, list):
            if each.value[0] != register:
                return False
            register = each.value[1]
    return True

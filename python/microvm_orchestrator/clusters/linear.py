"""Whether a history of registers is linearizable: as if each operation took place at one moment.

The check is that of Wing and Gong with the memory of Lowe, by just-in-time linearization as Knossos
does it: it goes through the history once with all the states the register may be in, each with the
running operations that have taken place in it, and puts operations in order only when one ends. The
first operation that can have ended in none of these states shows the history wrong. Registers of
different keys are checked one by one, which is enough (Herlihy and Wing: linearizability is local).

An operation that nobody knows the end of may take place at any time from its beginning, or never.
The work is bounded: where the bound is reached, the answer is `unknown`, and never a guess. Pure.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from pydantic import JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.clusters.history import EventType, Operation

READ, WRITE, CAS = "read", "write", "cas"
# States of the search; a few microseconds each.
MAX_WORK = 2_000_000
# To make what is shown smaller, and no more right.
_MAX_SHRINKING = 200_000


class Answer(StrEnum):
    VALID = "valid"
    INVALID = "invalid"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Counterexample:
    """Why a history is wrong."""

    key: JsonValue
    # It cannot have ended as it did.
    operation: Operation
    # The values that the register could have had until then, some of them.
    values: tuple[JsonValue, ...]
    # Operations that cannot be put in order by themselves, in the order of their beginnings; all
    # others may be left out.
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found."""

    answer: Answer
    operations: int
    keys: int
    work: int
    counterexample: Counterexample | None = None


class _TooMuch(Exception):
    """The bound on work is reached."""


@dataclass(frozen=True, slots=True)
class _Step:
    """An operation as the search sees it: values are numbers."""

    index: int
    f: str
    # What the register has to be before; None for anything.
    before: int | None
    # What it is after; None where it stays.
    after: int | None
    start: int
    # None for one that may take place at any time, or never.
    end: int | None


@dataclass(slots=True)
class _Found:
    """The step that cannot have ended then, with what the register could be before it."""

    step: _Step
    end: int
    values: frozenset[int]


@dataclass(slots=True)
class _Work:
    most: int
    done: int = 0

    def count(self, more: int = 1) -> None:
        self.done += more
        if self.done > self.most:
            raise _TooMuch


@dataclass(slots=True)
class _Values:
    """Numbers for values, so that true and 1, or 1 and 1.0, are not the same."""

    numbers: dict[str, int] = field(default_factory=dict[str, int])
    values: list[JsonValue] = field(default_factory=list[JsonValue])

    def number(self, value: JsonValue) -> int:
        text = json.dumps(value, sort_keys=True)
        if text not in self.numbers:
            self.numbers[text] = len(self.values)
            self.values.append(value)
        return self.numbers[text]


def explained(wrong: Counterexample) -> list[str]:
    """Tell a counterexample to a person, one operation a line."""
    which = "the register" if wrong.key is None else f"register {json.dumps(wrong.key)}"
    lines = [f"no order explains what these operations of {which} gave:"]
    for each in wrong.operations:
        until = "nobody knows when" if each.end is None else f"{each.end / 1e6:.3f} ms"
        given = each.result if each.f == READ else each.value
        mark = "  <- could not end so" if each == wrong.operation else ""
        lines.append(
            f"  {each.start / 1e6:.3f} to {until}: process {each.process} "
            f"{each.f} {json.dumps(given)}{mark}"
        )
    could = ", ".join(json.dumps(value) for value in wrong.values)
    return [*lines, f"by then it could only have been {could}"]


def check_linearizable(
    operations: Iterable[Operation], *, initial: JsonValue = None, max_work: int = MAX_WORK
) -> Verdict:
    """Check a history of registers, which begin with `initial`.

    `read` gives what it read, `write` is given what it writes, `cas` a pair: what has to be there,
    and what it writes then. Raises: InvalidInput for any other operation of a client.
    """
    by_key: defaultdict[str, list[Operation]] = defaultdict(list)
    count = 0
    for operation in operations:
        if isinstance(operation.process, str):  # who breaks things is no client
            continue
        count += 1
        by_key[json.dumps(operation.key, sort_keys=True)].append(operation)
    work = _Work(max_work)
    unknown = False
    for left, of_key in zip(range(len(by_key), 0, -1), by_key.values(), strict=True):
        # A key that takes too much leaves the others their shares.
        work.most = work.done + (max_work - work.done) // left
        values = _Values()
        begin = values.number(initial)
        steps = _steps(of_key, values)
        try:
            found = _search(steps, begin, work)
        except _TooMuch:
            unknown = True
            continue
        if found is not None:
            wrong = _explain(of_key, steps, begin, values, found)
            return Verdict(Answer.INVALID, count, len(by_key), work.done, wrong)
    answer = Answer.UNKNOWN if unknown else Answer.VALID
    return Verdict(answer, count, len(by_key), work.done)


def _steps(operations: Sequence[Operation], values: _Values) -> list[_Step]:
    steps: list[_Step] = []
    for index, operation in enumerate(operations):
        known = operation.outcome is EventType.OK
        if operation.outcome is EventType.FAIL or (operation.f == READ and not known):
            continue  # it took no effect, and tells nothing
        before, after = _effect(operation, values)
        end = operation.end if known else None
        if known and (end is None or end < operation.start):
            raise errors.InvalidInput(f"operation {index} ended before it began")
        steps.append(_Step(index, operation.f, before, after, operation.start, end))
    return steps


def _effect(operation: Operation, values: _Values) -> tuple[int | None, int | None]:
    if operation.f == READ:
        return values.number(operation.result), None
    if operation.f == WRITE:
        return None, values.number(operation.value)
    pair = operation.value
    if operation.f == CAS and isinstance(pair, list) and len(pair) == 2:
        return values.number(pair[0]), values.number(pair[1])
    raise errors.InvalidInput(
        f"{operation.f} of process {operation.process} is no operation of a register",
        hint="read, write, and cas with a pair of values",
    )


# A state of the search: the value, and as bits which of the running operations took place.
_State = tuple[int, int]


def _search(steps: Sequence[_Step], begin: int, work: _Work) -> _Found | None:
    """Find the first step that can have ended in no state."""
    # At the same moment beginnings come first: what touches may overlap.
    moments = [(step.start, 0, number) for number, step in enumerate(steps)]
    moments += [(step.end, 1, number) for number, step in enumerate(steps) if step.end is not None]
    moments.sort()
    running = _Running(steps, work)
    states: set[_State] = {(begin, 0)}
    for at, ends, number in moments:
        if not ends:
            running.begin(number)
            if steps[number].f == READ:
                states = {running.settled(state) for state in states}
            continue
        after = running.ended(number, states)
        if not after:
            return _Found(steps[number], at, frozenset(running.could_be))
        states = after
    return None


class _Running:
    """The operations that run at a moment, each with a bit of its own."""

    def __init__(self, steps: Sequence[_Step], work: _Work) -> None:
        self._steps = steps
        self._work = work
        self._free: list[int] = []
        self._used = 0
        self._bits: dict[int, int] = {}
        # Reads by what they read; those that may still take place at any time, by what they do.
        self._reads: defaultdict[int, int] = defaultdict(int)
        self._writers: dict[int, _Step] = {}
        self._lost: defaultdict[tuple[int | None, int | None], list[int]] = defaultdict(list)
        self._lost_bits = 0
        # What the register could be at the last end.
        self.could_be: set[int] = set()

    def begin(self, number: int) -> None:
        step = self._steps[number]
        bit = self._free.pop() if self._free else 1 << self._used
        if bit == 1 << self._used:
            self._used += 1
        if step.end is None:
            self._lost[step.before, step.after].append(bit)
            self._lost_bits |= bit
            return
        self._bits[number] = bit
        if step.f == READ:
            self._reads[step.before or 0] |= bit
        else:
            self._writers[bit] = step

    def settled(self, state: _State) -> _State:
        """Let every read that fits the value take place: it changes nothing, and later may not."""
        value, done = state
        return value, done | self._reads.get(value, 0)

    def ended(self, number: int, states: set[_State]) -> set[_State]:
        """Give the states in which a step has taken place, now that it has ended."""
        bit = self._bits.pop(number)
        after = self._until(bit, states)
        step = self._steps[number]
        if step.f == READ:
            self._reads[step.before or 0] &= ~bit
        else:
            del self._writers[bit]
        self._free.append(bit)
        return self._fewest({(value, done & ~bit) for value, done in after})

    def _until(self, bit: int, states: set[_State]) -> set[_State]:
        """Let operations take place one after the other until that one has."""
        reached = {state for state in states if state[1] & bit}
        todo = [(*state, False) for state in states if not state[1] & bit]
        seen = set(todo)
        while todo:
            self._work.count()
            for state in self._next(*todo.pop()):
                if state in seen:
                    continue
                seen.add(state)
                if not state[1] & bit:
                    todo.append(state)
                elif not state[2]:
                    reached.add(state[:2])
        self._work.count(len(reached))
        self.could_be = {value for value, *_ in seen}
        return reached

    def _next(self, value: int, done: int, unseen: bool) -> Iterable[tuple[int, int, bool]]:  # noqa: FBT001 part of a state
        """Give what may follow at once.

        What was lost takes place only right before somebody sees it: elsewhere it may as well not
        have. `unseen` is a value that it has left, and nobody has seen yet.
        """
        fits = {value} if unseen else {value, None}
        for bit, step in self._writers.items():
            if not done & bit and step.before in fits:
                after = value if step.after is None else step.after
                yield (*self.settled((after, done | bit)), False)
        for (before, after), bits in self._lost.items():
            if before not in fits or after in {None, value}:
                continue
            # They are alike: the first that is left stands for all.
            bit = next((each for each in bits if not done & each), None)
            if bit is not None and after is not None:
                settled = self.settled((after, done | bit))
                yield (*settled, settled[1] == done | bit)

    def _fewest(self, states: set[_State]) -> set[_State]:
        """Leave out states in which more of the lost took place than in one that is else the same.

        Whatever can follow there can follow here too.
        """
        if not self._lost_bits or len(states) == 1:
            return states
        alike: defaultdict[_State, list[int]] = defaultdict(list)
        for value, done in sorted(
            states, key=lambda state: (state[1] & self._lost_bits).bit_count()
        ):
            lost = done & self._lost_bits
            least = alike[value, done & ~self._lost_bits]
            if not any(each & lost == each for each in least):
                least.append(lost)
            self._work.count(len(least))
        return {(value, done | lost) for (value, done), least in alike.items() for lost in least}


def _explain(
    operations: Sequence[Operation],
    steps: Sequence[_Step],
    begin: int,
    values: _Values,
    found: _Found,
) -> Counterexample:
    """Make a counterexample small enough to read."""
    # What began later has no part in it.
    smallest = _shrunk([step for step in steps if step.start <= found.end], begin)
    return Counterexample(
        key=operations[found.step.index].key,
        operation=operations[found.step.index],
        values=tuple(values.values[number] for number in sorted(found.values)[:10]),
        operations=tuple(operations[step.index] for step in smallest),
    )


def _shrunk(steps: list[_Step], begin: int) -> list[_Step]:
    """Leave out what can be, in large pieces first.

    A read may always be left out, and writes whose values none of the others needs: an order of all
    would be an order of the rest. So what is wrong with the rest is wrong with all.
    """
    work = _Work(_MAX_SHRINKING)

    def is_wrong(rest: list[_Step]) -> bool:
        gone = set(steps).difference(rest)
        return _may_go(gone, rest) and _search(rest, begin, work) is not None

    try:
        # What is wrong is often at the end, and that of few operations.
        steps = _last(steps, is_wrong)
        for but in range(1, 4):
            reads = [step for step in steps if step.f == READ][:-but]
            without = [step for step in steps if step not in reads]
            if is_wrong(without):
                steps = _last(without, is_wrong)
                break
        size = len(steps) // 2
        while size:
            at = 0
            while at < len(steps):
                rest = steps[:at] + steps[at + size :]
                if is_wrong(rest):
                    steps = rest
                else:
                    at += size
            size //= 2
    except _TooMuch:
        pass  # what is left is right all the same
    return steps


def _last(steps: list[_Step], is_wrong: Callable[[list[_Step]], bool]) -> list[_Step]:
    most = 2
    while most < len(steps):
        if is_wrong(steps[-most:]):
            return steps[-most:]
        most *= 2
    return steps


def _may_go(gone: Iterable[_Step], rest: Iterable[_Step]) -> bool:
    needed = {step.before for step in rest}
    return all(step.after is None or step.after not in needed for step in gone)

"""Drafts put in order: names become dependencies, shared files become more of them, and then waves.

What somebody declared must succeed first. Of two tasks that share a file and are not in an order
already, the later one waits until the earlier one is over, however it ends. Above sits plan.py.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from microvm_orchestrator import errors
from microvm_orchestrator.model.plan import MAX_ALL_FILES, PlanEdge, PlannedTask, Why
from microvm_orchestrator.plans.draft import Draft, Problems, Reference, cut, listed
from microvm_orchestrator.plans.files import Overlaps
from microvm_orchestrator.plans.names import Names, keys_of

# A file that two hundred tasks share is passed from one to the next by so many.
MAX_EDGES = 20_000
_BECAUSE = 900
_RING_TOLD = 12


def in_order(
    drafts: Sequence[Draft], problems: Problems, *, infer_files: bool
) -> list[PlannedTask]:
    """Give the tasks that are left to do, each behind all that it depends on.

    Raises: InvalidInput with all problems; CycleFound; TooLarge.
    """
    keys = keys_of(drafts, problems)
    declared = _declared(drafts, keys, problems)
    problems.refuse()
    order = _sorted(drafts, keys, declared)
    # From here on a task goes by its place in this order, so that every edge points back.
    rank = {place: number for number, place in enumerate(order)}
    tasks = [
        _Task(
            keys[place],
            drafts[place],
            {rank[above]: reference for above, reference in declared[place].items()},
            _files_of(drafts[place], infer_files=infer_files),
        )
        for place in order
    ]
    shared = list(_shared(tasks))
    return list(_planned(tasks, shared))


@dataclass(frozen=True, slots=True)
class _Task:
    key: str
    draft: Draft
    after: Mapping[int, Reference]
    # Each with whether it is only proposed.
    files: Mapping[str, bool]


def _files_of(draft: Draft, *, infer_files: bool) -> dict[str, bool]:
    inferred = draft.task.proposed_files if infer_files else []
    return dict.fromkeys(inferred, True) | dict.fromkeys(draft.task.files, False)


# What was declared


def _declared(
    drafts: Sequence[Draft], keys: Sequence[str], problems: Problems
) -> list[dict[int, Reference]]:
    """Find what each task comes after; what is done already holds up nobody."""
    names = Names(drafts, keys)
    edges: list[dict[int, Reference]] = []
    for draft in drafts:
        found: dict[int, Reference] = {}
        for reference in () if draft.done else draft.after:
            above = names.find(reference, problems)
            if above is not None and not drafts[above].done:
                found.setdefault(above, reference)
        edges.append(found)
    return edges


def _sorted(
    drafts: Sequence[Draft], keys: Sequence[str], after: Sequence[Mapping[int, Reference]]
) -> list[int]:
    """Order the places of the tasks that are not done; as they were written, where that is free.

    Raises: CycleFound.
    """
    left = {place: len(after[place]) for place, draft in enumerate(drafts) if not draft.done}
    below: dict[int, list[int]] = defaultdict(list)
    for place in left:
        for above in after[place]:
            below[above].append(place)
    free = [place for place, count in left.items() if not count]
    heapq.heapify(free)
    order: list[int] = []
    while free:
        place = heapq.heappop(free)
        del left[place]
        order.append(place)
        for waiting in below[place]:
            left[waiting] -= 1
            if not left[waiting]:
                heapq.heappush(free, waiting)
    if left:
        ring = [f"{cut(keys[place])} ({drafts[place].place})" for place in _ring(after, left)]
        told = ring if len(ring) <= _RING_TOLD else [*ring[:6], "…", *ring[-5:]]
        raise errors.CycleFound(f"tasks would wait for each other: {' -> '.join(told)}")
    return order


def _ring(after: Sequence[Mapping[int, Reference]], left: Mapping[int, int]) -> list[int]:
    # Each task that is left waits for another one that is left, so this comes round.
    path = [next(iter(left))]
    seen: dict[int, int] = {}
    while path[-1] not in seen:
        seen[path[-1]] = len(path) - 1
        path.append(next(above for above in after[path[-1]] if above in left))
    return path[seen[path[-1]] :]


# Files


def _shared(tasks: Sequence[_Task]) -> Iterator[dict[int, list[str]]]:
    """Give for each task those it must come after because of files, and which.

    Raises: TooLarge.
    """
    if sum(len(task.files) for task in tasks) > MAX_ALL_FILES:
        raise errors.TooLarge(f"the tasks name more than {MAX_ALL_FILES} files")
    overlaps = Overlaps()
    overlaps.compare(path for task in tasks for path in task.files)
    users: dict[str, list[int]] = defaultdict(list)
    # As sets of bits: what is over for sure when a task begins.
    over: list[int] = []
    count = 0
    for number, task in enumerate(tasks):
        before = 0
        for above in task.after:
            # It has succeeded, so it has run, so all that was to be over before it was.
            before |= 1 << above | over[above]
        touched = _touched(task, users, overlaps)
        found: dict[int, list[str]] = {}
        for above in sorted(touched, reverse=True):
            if not before >> above & 1:
                # It may be over because it was cancelled, and then it says nothing of others.
                before |= 1 << above
                found[above] = touched[above]
        count += len(found)
        if count > MAX_EDGES:
            raise errors.TooLarge(
                f"tasks that share files would need more than {MAX_EDGES} dependencies",
                hint="name smaller files, or say with `after` which of them follow each other",
            )
        yield found
        over.append(before)
        for path in task.files:
            users[path].append(number)


def _touched(
    task: _Task, users: Mapping[str, Sequence[int]], overlaps: Overlaps
) -> dict[int, list[str]]:
    """Name the files that a task shares with each of those before it."""
    touched: dict[int, dict[str, None]] = defaultdict(dict)
    for path, proposed in task.files.items():
        for other in sorted(overlaps.of(path)):
            above = users.get(other, ())
            overlaps.spend(len(above) + 1)
            told = _told(path, other) + (" (proposed)" if proposed else "")
            for number in above:
                touched[number][told] = None
    return {number: list(told) for number, told in touched.items()}


def _told(one: str, other: str) -> str:
    """Name what two patterns share: the narrower, where that is one of them."""
    if one == other or one.startswith(f"{other}/"):
        return one
    if other.startswith(f"{one}/"):
        return other
    wild = {name for name in (one, other) if set("*?{") & set(name)}
    plain = [name for name in (one, other) if name not in wild]
    return plain[0] if plain else f"{one} and {other}"


# Put together


def _planned(
    tasks: Sequence[_Task], shared: Sequence[Mapping[int, Sequence[str]]]
) -> Iterator[PlannedTask]:
    waves: list[int] = []
    for task, because in zip(tasks, shared, strict=True):
        above = sorted({*task.after, *because})
        wave = 1 + max((waves[number] for number in above), default=0)
        waves.append(wave)
        given = task.draft.task
        fields = {name: getattr(given, name) for name in PlannedTask.model_fields if name in _KEPT}
        yield PlannedTask.model_construct(
            **fields,
            key=task.key,
            depends_on=[_edge(tasks, task, number, because.get(number)) for number in above],
            wave=wave,
        )


_KEPT = set(PlannedTask.model_fields) - {"key", "depends_on", "wave"}


def _edge(
    tasks: Sequence[_Task], task: _Task, number: int, files: Sequence[str] | None
) -> PlanEdge:
    key = tasks[number].key
    if files is not None:
        because = cut(f"overlap on {listed(files)}", _BECAUSE)
        return PlanEdge.model_construct(task=key, why=Why.OVERLAP, because=because)
    said = task.after[number]
    because = said.because or cut(f"{said.name!r}, {said.place}", _BECAUSE)
    return PlanEdge.model_construct(task=key, why=Why.DECLARED, because=because)

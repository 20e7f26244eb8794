"""Tasks enter the graph: ids, gates and edges, cycles refused, all of a graph or nothing."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue, TypeAdapter

from microvm_orchestrator import errors
from microvm_orchestrator.model.names import is_task_id, new_id
from microvm_orchestrator.model.run import IN_A_MACHINE
from microvm_orchestrator.model.task import (
    FINISHED,
    Dependency,
    Edge,
    Gate,
    GroupedSpec,
    On,
    TaskSpec,
    TaskState,
)
from microvm_orchestrator.model.transition import Policy, Shut, TaskRow, Unmeetable, edge_met
from microvm_orchestrator.model.values import priority_number
from microvm_orchestrator.store.base import (
    Address,
    Graph,
    Idempotency,
    NewTask,
    Submitted,
    SubmittedTask,
)
from microvm_orchestrator.store.lease import held
from microvm_orchestrator.store.read import run_told
from microvm_orchestrator.store.rows import Tx, compact
from microvm_orchestrator.store.settle import ripple

# How long a replayed request is recognised: longer than any client retries.
ANSWERED_S = 7 * 86_400.0


@dataclass(slots=True)
class Upstream:
    """A task that another will depend on: one that is stored, or one of the same graph."""

    seq: int
    id: str
    state: TaskState


@dataclass(slots=True)
class PlannedGate:
    need: int
    edges: list[tuple[Upstream, str]]
    origin: Literal["asked", "child", "before"] = "asked"


def submit(tx: Tx, graph: Graph) -> Submitted:
    """Raises: AlreadyExists, CycleFound, NotFound, KeyReused, LeaseLost."""
    if graph.idempotency is not None:
        replayed = _answered(tx, graph.idempotency)
        if replayed is not None:
            return replayed
    parent = None if graph.under is None else held(tx, graph.under)
    drafts = _number(tx, graph, parent)
    _refuse_cycles(graph.tasks, drafts)
    visibility = graph.visibility_labels
    rows = [
        _write(tx, task, draft, drafts, parent, visibility)
        for task, draft in zip(graph.tasks, drafts.values(), strict=True)
    ]
    if parent is not None:
        children = [row for task, row in zip(graph.tasks, rows, strict=True) if task.child]
        _hold_up_dependents(tx, parent, children)
    for task, row in zip(graph.tasks, rows, strict=True):
        _put_before(tx, row, task.before)
    # Only now, when every edge is there, can a task that is given up take others along.
    for row in rows:
        give_up_unmeetable(tx, tx.get(row.seq))
    submitted = tuple(
        SubmittedTask(row.id, task.spec.key, row.grp, tx.get(row.seq).state)
        for task, row in zip(graph.tasks, rows, strict=True)
    )
    tx.audit(_told(submitted))
    answer = Submitted(submitted)
    if graph.idempotency is not None:
        _remember(tx, graph.idempotency, answer)
    return answer


def _told(submitted: Sequence[SubmittedTask]) -> str:
    rest = len(submitted) - 1
    return submitted[0].task_id + (f" and {rest} more" if rest else "")


# Names and numbers


def _number(tx: Tx, graph: Graph, parent: TaskRow | None) -> dict[tuple[str, str], Upstream]:
    """Give each new task its id and number, by group and key, in the order given."""
    seq = tx.one("SELECT coalesce(max(seq), 0) FROM task")[0]
    drafts: dict[tuple[str, str], Upstream] = {}
    for task in graph.tasks:
        seq += 1
        group = task.spec.group if parent is None else parent.grp
        task_id = new_id("t")
        key = task.spec.key or task_id
        if task.spec.key is not None:
            if is_task_id(key):
                raise errors.InvalidInput(f"key {key} looks like a task_id; choose another")
            if (group, key) in drafts or _stored(tx, group, key):
                raise errors.AlreadyExists(f"task {key} already exists in group {group}")
        drafts[group, key] = Upstream(seq, task_id, TaskState.BLOCKED)
    return drafts


def _stored(tx: Tx, group: str, key: str) -> bool:
    return tx.one("SELECT 1 FROM task WHERE grp = ? AND key = ?", group, key) is not None


def _refuse_cycles(tasks: Sequence[NewTask], drafts: Mapping[tuple[str, str], Upstream]) -> None:
    """Among the new tasks only: what is stored cannot depend on what is not."""
    if not any(task.spec.depends_on for task in tasks):
        return
    names = list(drafts)
    upstream: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for task, name in zip(tasks, names, strict=True):
        keys = ((name[0], edge.task) for edge in edges_of(task.spec.depends_on))
        upstream[name] = [key for key in keys if key in drafts]
    waiting = {name: len(set(ups)) for name, ups in upstream.items()}
    downstream: dict[tuple[str, str], list[tuple[str, str]]] = {name: [] for name in names}
    for name, ups in upstream.items():
        for up in set(ups):
            downstream[up].append(name)
    free = deque(name for name, count in waiting.items() if not count)
    while free:
        done = free.popleft()
        del waiting[done]
        for name in downstream[done]:
            waiting[name] -= 1
            if not waiting[name]:
                free.append(name)
    if waiting:
        raise _cycle([key for _, key in _walk_cycle(upstream, waiting)])


def _walk_cycle(
    upstream: Mapping[tuple[str, str], list[tuple[str, str]]], left: Mapping[tuple[str, str], int]
) -> list[tuple[str, str]]:
    # Every task left over waits for another one left over, so going up ends in a ring.
    path = [next(iter(left))]
    while True:
        path.append(next(up for up in upstream[path[-1]] if up in left))
        if path[-1] in path[:-1]:
            return path[path.index(path[-1]) :]


def _cycle(names: Sequence[str]) -> errors.CycleFound:
    shown = names if len(names) <= 12 else [*names[:6], "…", *names[-5:]]
    return errors.CycleFound(f"dependencies would create a cycle: {' -> '.join(shown)}")


def edges_of(dependencies: Iterable[Dependency]) -> Iterable[Edge]:
    for dependency in dependencies:
        match dependency:
            case str(task):
                yield Edge(task=task)
            case Edge():
                yield dependency
            case Gate():
                yield from dependency.edges


# Writing one task


def _write(
    tx: Tx,
    task: NewTask,
    draft: Upstream,
    drafts: Mapping[tuple[str, str], Upstream],
    parent: TaskRow | None,
    visibility: frozenset[str],
) -> TaskRow:
    spec = task.spec if parent is None else _grown(tx, task.spec, parent)
    if parent is not None and not task.child:
        spec = spec.model_copy(update={"depends_on": [*spec.depends_on, parent.id]})
    kin = lineage(tx, parent.seq) if parent is not None and task.child else set[int]()
    gates = plan_gates(tx, spec, drafts, own_id=draft.id, kin=kin)
    row = _fresh_row(tx, task, spec, draft, parent if task.child else None, visibility)
    row = with_gates(tx, row, gates)
    tx.insert(row)
    tx.run(
        "INSERT INTO task_body (seq, spec) VALUES (?, ?)",
        row.seq,
        spec_text(spec, gates, task.template),
    )
    write_labels(tx, row.seq, spec.labels)
    write_gates(tx, row.seq, gates)
    tx.event("task.submitted", row, priority=row.priority, title=spec.title)
    return row


def _grown(tx: Tx, spec: GroupedSpec, parent: TaskRow) -> GroupedSpec:
    """What grows out of a task is in its group, and seen by whoever its labels let see it."""
    labels = tx.classes.get(tx.connection, parent.class_id).labels | spec.labels
    return spec.model_copy(update={"group": parent.grp, "labels": labels})


def _fresh_row(
    tx: Tx,
    task: NewTask,
    spec: GroupedSpec,
    draft: Upstream,
    parent: TaskRow | None,
    visibility: frozenset[str],
) -> TaskRow:
    return TaskRow(
        seq=draft.seq,
        id=draft.id,
        grp=spec.group,
        key=spec.key or draft.id,
        class_id=class_of(tx, spec, tx.by.name, visibility),
        priority=priority_number(spec.priority),
        state=TaskState.READY,
        reason=None,
        gates_left=0,
        not_before=due(spec, tx.now),
        attempt=0,
        failures=0,
        expiries=0,
        worker=None,
        holder=None,
        lease_until=None,
        deadline=None,
        expires_at=None,
        lease_s=task.lease_s,
        timeout_s=spec.timeout_s,
        on_unmet=spec.on_unmet,
        policy=policy_of(spec),
        created_at=tx.now,
        ready_at=tx.now,
        started_at=None,
        finished_at=None,
        parent=None if parent is None else parent.seq,
        version=1,
    )


def policy_of(spec: TaskSpec) -> str:
    return Policy(spec.retry, spec.on_expiry, spec.max_expiries).dump()


def due(spec: TaskSpec, now: float) -> float | None:
    if spec.not_before is None or spec.not_before.timestamp() <= now:
        return None
    return spec.not_before.timestamp()


def class_of(tx: Tx, spec: TaskSpec, owner: str, visibility: frozenset[str]) -> int:
    seen_by = {key: value for key, value in spec.labels.items() if key in visibility}
    needed = spec.capabilities if spec.run is None else [*spec.capabilities, IN_A_MACHINE]
    return tx.classes.intern(
        tx.connection, owner=owner, capabilities=needed, role=spec.role, labels=seen_by
    )


def with_gates(tx: Tx, row: TaskRow, gates: Sequence[PlannedGate]) -> TaskRow:
    """The state a new or rewired task has, given what it waits for."""
    left = sum(_met(tx, gate) < gate.need for gate in gates)
    blocked = left > 0 or row.not_before is not None
    return row._replace(
        gates_left=left,
        state=TaskState.BLOCKED if blocked else TaskState.READY,
        ready_at=None if blocked else tx.now,
    )


def _met(tx: Tx, gate: PlannedGate) -> int:
    return sum(_edge_state(tx, upstream, condition) == "met" for upstream, condition in gate.edges)


def _edge_state(tx: Tx, upstream: Upstream, condition: str) -> str:
    if upstream.state not in FINISHED:
        return "open"
    # Only a condition on the result needs it.
    result = tx.result(upstream.seq) if condition[0] == "[" else None
    return "met" if edge_met(condition, upstream.state, result) else "missed"


def give_up_unmeetable(tx: Tx, row: TaskRow) -> TaskRow:
    """Tell an unclaimed task if its dependencies can no longer be met.

    So one submitted after its dependency has failed is in the same place as one before.
    """
    if not row.gates_left:
        return row
    found = tx.one(
        "SELECT up.id, up.state FROM gate"
        " JOIN edge ON edge.dependent = gate.task AND edge.gate = gate.number"
        " JOIN task AS up ON up.seq = edge.upstream"
        " WHERE gate.task = ? AND gate.total - gate.missed < gate.need AND edge.state = 'missed'"
        " LIMIT 1",
        row.seq,
    )
    if found is None:
        return row
    row = tx.apply(row, Unmeetable(found[0], TaskState(found[1]))).row
    if row.state in FINISHED:
        ripple(tx, row)
    return row


def spec_text(spec: GroupedSpec, gates: Sequence[PlannedGate], template: str | None) -> str:
    """The seldom read part, with dependencies by id: keys can be taken anew, ids cannot."""
    return compact(
        {
            "title": spec.title,
            "description": spec.description,
            "input": spec.input,
            "labels": spec.labels,
            "capabilities": spec.capabilities,
            "role": spec.role,
            "depends_on": gates_told(gates),
            "template": template,
            "run": run_told(spec),
        }
    )


def gates_told(gates: Sequence[PlannedGate]) -> list[JsonValue]:
    return [_gate_told(gate) for gate in gates if gate.origin == "asked"]


def _gate_told(gate: PlannedGate) -> JsonValue:
    edges = [_edge_told(upstream, condition) for upstream, condition in gate.edges]
    need = "all" if gate.need == len(edges) else "any" if gate.need == 1 else gate.need
    return {"need": need, "of": edges}


def _edge_told(upstream: Upstream, condition: str) -> JsonValue:
    if condition[0] != "[":
        return {"task": upstream.id, "on": condition}
    field, op, value = json.loads(condition)
    return {"task": upstream.id, "where": {"field": field, "op": op, "value": value}}


def write_labels(tx: Tx, seq: int, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        tx.run("INSERT INTO label (key, value, task) VALUES (?, ?, ?)", key, value, seq)


# Gates and edges


def plan_gates(
    tx: Tx,
    spec: GroupedSpec,
    drafts: Mapping[tuple[str, str], Upstream],
    *,
    own_id: str,
    kin: Collection[int],
) -> list[PlannedGate]:
    """What a task waits for: its plain dependencies make one gate, each `Gate` another.

    `kin` are the tasks of which it is a part. One that comes after such a task waits for that one
    alone: with its other parts it would wait for itself.
    Raises: NotFound, CycleFound for a task that names itself.
    """
    plain: dict[int, tuple[Upstream, str]] = {}
    gates: list[PlannedGate] = []
    for dependency in spec.depends_on:
        if isinstance(dependency, Gate):
            edges = [_planned(tx, spec, edge, drafts, own_id) for edge in dependency.edges]
            if len({upstream.seq for upstream, _ in edges}) < len(edges):
                raise errors.InvalidInput(
                    f"a dependency of task {_name(spec)} names one task twice"
                )
            gates.append(PlannedGate(dependency.needed, edges))
            continue
        edge = Edge(task=dependency) if isinstance(dependency, str) else dependency
        planned = _planned(tx, spec, edge, drafts, own_id)
        if plain.setdefault(planned[0].seq, planned) != planned:
            # Two conditions on one task: an edge belongs to one gate.
            gates.append(PlannedGate(1, [planned]))
    if plain:
        gates.insert(0, PlannedGate(len(plain), list(plain.values())))
    return gates + [inherited for gate in gates if (inherited := _children_of(tx, gate, kin))]


def _name(spec: TaskSpec) -> str:
    return spec.key or spec.title or "without a key"


def _planned(
    tx: Tx,
    spec: GroupedSpec,
    edge: Edge,
    drafts: Mapping[tuple[str, str], Upstream],
    own_id: str,
) -> tuple[Upstream, str]:
    upstream = drafts.get((spec.group, edge.task))
    if upstream is None:
        row = tx.find(Address(edge.task, spec.group))
        if row is None:
            raise errors.NotFound(
                f"dependency {edge.task} of task {_name(spec)} not found",
                hint="name a key of the same group or a task_id, submitted before or together",
            )
        upstream = _upstream(row)
    if upstream.id == own_id:
        raise _cycle([edge.task, edge.task])
    return upstream, _condition(edge)


def _condition(edge: Edge) -> str:
    if edge.where is None:
        return edge.on
    return compact([edge.where.field, edge.where.op, edge.where.value])


def lineage(tx: Tx, seq: int | None) -> set[int]:
    """A task, the one it is a part of, and so on up."""
    found: set[int] = set()
    while seq is not None and seq not in found:
        found.add(seq)
        row = tx.one("SELECT parent FROM task WHERE seq = ?", seq)
        seq = None if row is None else row[0]
    return found


def _children_of(tx: Tx, gate: PlannedGate, kin: Collection[int]) -> PlannedGate | None:
    """The unfinished children of tasks that are all waited for: they are waited for too."""
    if gate.need < len(gate.edges):
        return None
    edges: dict[int, tuple[Upstream, str]] = {}
    for upstream, condition in gate.edges:
        if condition != On.FAILURE and upstream.seq not in kin:
            layer = [upstream.seq]
            while layer:
                rows = [row for seq in layer for row in tx.tasks("parent = ?", seq)]
                for row in rows:
                    if row.state not in FINISHED:
                        on = On.FINISH if condition == On.FINISH else On.SUCCESS
                        edges[row.seq] = (_upstream(row), on)
                layer = [row.seq for row in rows]
    return PlannedGate(len(edges), list(edges.values()), "child") if edges else None


def write_gates(tx: Tx, seq: int, gates: Sequence[PlannedGate], first: int = 0) -> None:
    for number, gate in enumerate(gates, first):
        states = [_edge_state(tx, upstream, condition) for upstream, condition in gate.edges]
        tx.run(
            "INSERT INTO gate (task, number, need, total, met, missed, whole)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            seq,
            number,
            gate.need,
            len(states),
            states.count("met"),
            states.count("missed"),
            gate.need == len(states),
        )
        tx.connection.executemany(
            "INSERT INTO edge (upstream, dependent, gate, condition, state, origin)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [
                (upstream.seq, seq, number, condition, state, gate.origin)
                for (upstream, condition), state in zip(gate.edges, states, strict=True)
            ],
        )


def refuse_ring(tx: Tx, tasks: Sequence[int], waiting: Collection[int]) -> None:
    """Make sure that none of `tasks` waits, however far up, for one of those `waiting` for it.

    Raises: CycleFound.
    """
    found = tx.one(
        "WITH RECURSIVE above (seq) AS (SELECT value FROM json_each(?1)"
        f" UNION SELECT upstream FROM above {_UP_FROM_ABOVE})"
        f" SELECT 1 FROM above {_UP_FROM_ABOVE} WHERE upstream IN (SELECT value FROM json_each(?2))"
        " LIMIT 1",
        compact(list(tasks)),
        compact(list(waiting)),
    )
    if found is not None:
        ring = _ring(tx, tasks, waiting)
        rows = [tx.get(seq) for seq in ring]
        raise _cycle([row.key if tx.sees(row) else "(not yours to see)" for row in rows])


# What is done never waits again, so the search for a ring ends there.
_UP_FROM_ABOVE = (
    "JOIN edge ON edge.dependent = above.seq"
    " JOIN task AS up ON up.seq = edge.upstream AND up.state <> 'done'"
)


def _ring(tx: Tx, tasks: Sequence[int], waiting: Collection[int]) -> list[int]:
    came_from: dict[int, int | None] = dict.fromkeys(tasks)
    layer = deque(tasks)
    while True:
        seq = layer.popleft()
        for upstream in tx.upstreams(seq):
            if upstream in waiting:
                way = [upstream, seq]
                while (step := came_from[way[-1]]) is not None:
                    way.append(step)
                # The first waits for the last, unless it is the last.
                return way[::-1] if way[0] == way[-1] else [*way[::-1], way[-1]]
            if upstream not in came_from:
                came_from[upstream] = seq
                layer.append(upstream)


# A graph that grows


def _hold_up_dependents(tx: Tx, parent: TaskRow, children: Sequence[TaskRow]) -> None:
    """Whoever waits for the whole of the parent waits for its new children too."""
    if not children:
        return
    waiting = tx.all(
        "SELECT DISTINCT edge.dependent, edge.condition FROM edge JOIN gate"
        " ON gate.task = edge.dependent AND gate.number = edge.gate"
        " WHERE edge.upstream = ? AND edge.state = 'open' AND gate.whole"
        " AND edge.condition <> 'failure'",
        parent.seq,
    )
    # A part that comes after the whole does not wait for the other parts.
    others = [each for each in waiting if parent.seq not in lineage(tx, each[0])]
    for dependent, condition in others:
        on = On.FINISH if condition == On.FINISH else On.SUCCESS
        edges = [(_upstream(child), str(on)) for child in children]
        _add_gate(tx, tx.get(dependent), PlannedGate(len(edges), edges, "child"))
    refuse_ring(tx, [child.seq for child in children], {dependent for dependent, _ in others})


def _upstream(row: TaskRow) -> Upstream:
    return Upstream(row.seq, row.id, row.state)


def _add_gate(tx: Tx, row: TaskRow, gate: PlannedGate) -> None:
    """Make a task that waits, or would if it were retried, wait for more, which is not done yet."""
    first = tx.one("SELECT coalesce(max(number), -1) + 1 FROM gate WHERE task = ?", row.seq)[0]
    write_gates(tx, row.seq, [gate], first)
    row = tx.save(row, row._replace(gates_left=row.gates_left + 1))
    tx.apply(row, Shut())


def _put_before(tx: Tx, new: TaskRow, refs: Sequence[str]) -> None:
    for ref in refs:
        row = tx.need(Address(ref, new.grp))
        if row.grp != new.grp:
            raise errors.InvalidInput(
                f"task {ref} is of group {row.grp}; one of {new.grp} cannot be put before it"
            )
        if row.state not in {TaskState.BLOCKED, TaskState.READY}:
            raise errors.StateForbids(
                f"task {ref} is {row.state}; only an unclaimed task can be made to wait for another"
            )
        _add_gate(tx, row, PlannedGate(1, [(_upstream(new), On.SUCCESS)], "before"))
        refuse_ring(tx, [new.seq], {row.seq})


# Replays

_SUBMITTED: TypeAdapter[tuple[SubmittedTask, ...]] = TypeAdapter(tuple[SubmittedTask, ...])


def _answered(tx: Tx, request: Idempotency) -> Submitted | None:
    found = tx.one(
        "SELECT digest, answer FROM answered WHERE principal = ? AND key = ?",
        tx.by.name,
        request.key,
    )
    if found is None:
        return None
    if found[0] != request.digest:
        raise errors.KeyReused(
            f"idempotency key {request.key} was used before with another request",
            hint="use a fresh key for a new request",
        )
    return Submitted(_SUBMITTED.validate_json(found[1]), replayed=True)


def _remember(tx: Tx, request: Idempotency, answer: Submitted) -> None:
    tx.run(
        "INSERT INTO answered (principal, key, digest, answer, at) VALUES (?, ?, ?, ?, ?)",
        tx.by.name,
        request.key,
        request.digest,
        _SUBMITTED.dump_json(answer.tasks).decode(),
        tx.now,
    )

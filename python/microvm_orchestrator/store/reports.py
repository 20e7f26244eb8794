"""Where a group's time went and what holds it up.

A report walks the group's tasks, attempts and edges, each by its index, and keeps a few numbers of
each task. It never reads the journal.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from microvm_orchestrator.model.report import (
    Bottleneck,
    GroupReport,
    PathStep,
)
from microvm_orchestrator.store.questions import GroupAnalysis
from microvm_orchestrator.store.rows import Tx
from microvm_orchestrator.store.view import View, no_group, view_of

_BOTTLENECKS_TOLD = 10
# Bounds the search for them in a graph made to be hard; a second's work.
_LOOKED_AT_MOST = 2_000_000
# A finished task is slow when it took this many times the median of its group.
_SLOW_TIMES = 2.0


@dataclass(slots=True)
class _Node:
    """A task of the group as the report sees it."""

    seq: int
    id: str
    key: str
    state: str
    reason: str | None
    worker: str | None
    attempt: int
    not_before: float | None
    ready_at: float | None
    finished_at: float | None
    wait_s: float
    run_s: float = 0.0

    @property
    def name(self) -> str | None:
        return None if self.key == self.id else self.key


@dataclass(frozen=True, slots=True)
class _Edge:
    upstream: int
    dependent: int
    open: bool


def group_report(tx: Tx, question: GroupAnalysis) -> GroupReport:
    """Raises: NotFound."""
    view = view_of(tx, [question.group])
    nodes = _nodes(tx, view)
    if not nodes:
        raise no_group(question.group)
    edges = _edges(tx, view, nodes)
    created_at, finished_at = _span(tx, view)
    elapsed = (tx.now if finished_at is None else finished_at) - created_at
    busy = sum(node.run_s for node in nodes.values())
    path = _critical_path(nodes, edges)
    return GroupReport(
        group=question.group,
        elapsed_s=elapsed,
        busy_s=busy,
        parallelism=busy / elapsed if elapsed > 0 else 0.0,
        critical_path=[
            PathStep(
                task_id=node.id,
                key=node.name,
                state=node.state,
                wait_s=node.wait_s,
                run_s=node.run_s,
            )
            for node in path
        ],
        critical_path_s=sum(node.wait_s + node.run_s for node in path),
        bottlenecks=_bottlenecks(tx, nodes, edges),
    )


def _nodes(tx: Tx, view: View) -> dict[int, _Node]:
    nodes = {
        row[0]: _Node(*row)
        for row in tx.all(
            "SELECT seq, id, key, state, reason, worker, attempt, not_before, ready_at,"
            # The wait of a task that nobody has claimed is not over.
            " finished_at, CASE state WHEN 'ready' THEN ? - ready_at ELSE 0 END"
            f" FROM task WHERE {view.where}",
            tx.now,
            *view.values,
        )
    }
    for seq, ran, waited in tx.all(
        "SELECT task.seq, sum(coalesce(run.finished_at, ?) - run.started_at), sum(run.waited_s)"
        f" FROM task JOIN run ON run.task = task.seq WHERE {view.where} GROUP BY task.seq",
        tx.now,
        *view.values,
    ):
        nodes[seq].run_s = ran
        nodes[seq].wait_s += waited
    return nodes


def _edges(tx: Tx, view: View, nodes: Mapping[int, _Node]) -> list[_Edge]:
    """Edges between tasks of the group that decided, or will, when the lower one can start."""
    rows = tx.all(
        "SELECT DISTINCT edge.upstream, edge.dependent, edge.state = 'open'"
        " FROM task JOIN edge ON edge.dependent = task.seq"
        f" WHERE {view.where} AND edge.state <> 'missed'",
        *view.values,
    )
    return [
        _Edge(upstream, dependent, bool(is_open))
        for upstream, dependent, is_open in rows
        if upstream in nodes
    ]


def _span(tx: Tx, view: View) -> tuple[float, float | None]:
    """When the group began, and when it ended if it has."""
    created, finished, ended, total = tx.one(
        "SELECT min(created_at), max(finished_at), count(finished_at), count(*)"
        f" FROM task WHERE {view.where}",
        *view.values,
    )
    return created, finished if ended == total else None


def _in_order(below: Mapping[int, list[int]], seqs: Iterable[int]) -> list[int]:
    """Each task after those above it."""
    above = dict.fromkeys(seqs, 0)
    for lows in below.values():
        for low in lows:
            above[low] += 1
    order = [seq for seq, count in above.items() if not count]
    for seq in order:
        for low in below.get(seq, ()):
            above[low] -= 1
            if not above[low]:
                order.append(low)
    return order


# The critical path


def _critical_path(nodes: Mapping[int, _Node], edges: Iterable[_Edge]) -> list[_Node]:
    """The chain of tasks, each freed by the one before, that took longest."""
    below: dict[int, list[int]] = defaultdict(list)
    for edge in edges:
        if _freed(nodes[edge.upstream], nodes[edge.dependent]):
            below[edge.upstream].append(edge.dependent)
    longest = {seq: node.wait_s + node.run_s for seq, node in nodes.items()}
    before: dict[int, int] = {}
    for seq in _in_order(below, nodes):
        for low in below.get(seq, ()):
            through = longest[seq] + nodes[low].wait_s + nodes[low].run_s
            if through > longest[low]:
                longest[low] = through
                before[low] = seq
    # Of equally long ones the first task: those behind it that took no time add nothing.
    path = [max(longest, key=lambda seq: (longest[seq], -seq))]
    while path[-1] in before:
        path.append(before[path[-1]])
    return [nodes[seq] for seq in reversed(path)]


def _freed(upstream: _Node, dependent: _Node) -> bool:
    """Whether the dependent could not have started before the upstream task ended.

    With "any of these" only the ones that ended before it was ready held it up.
    """
    if dependent.ready_at is None:
        return True
    return upstream.finished_at is not None and upstream.finished_at <= dependent.ready_at


# Bottlenecks


def _bottlenecks(tx: Tx, nodes: Mapping[int, _Node], edges: Iterable[_Edge]) -> list[Bottleneck]:
    """What holds most up and waits for nothing here itself; then what was slow."""
    below: dict[int, list[int]] = defaultdict(list)
    waits: set[int] = set()
    for edge in edges:
        if edge.open and nodes[edge.dependent].finished_at is None:
            below[edge.upstream].append(edge.dependent)
            waits.add(edge.dependent)
    heads = [
        node
        for node in nodes.values()
        if node.finished_at is None and (node.seq not in waits or node.reason is not None)
    ]
    told = [
        (nodes[seq], held, _why_unfinished(tx, nodes[seq]))
        for seq, held in _most_held(below, nodes, heads)
    ]
    told += [(node, 0, why) for node, why in _slow(nodes)]
    return [
        Bottleneck(
            task_id=node.id,
            key=node.name,
            state=node.state,
            holds_up=held,
            run_s=node.run_s,
            wait_s=node.wait_s,
            why=why,
        )
        for node, held, why in told[:_BOTTLENECKS_TOLD]
    ]


def _most_held(
    below: Mapping[int, list[int]], nodes: Mapping[int, _Node], heads: Iterable[_Node]
) -> list[tuple[int, int]]:
    """The heads that most tasks wait for, with how many.

    To count them for each head may cost heads times tasks. The number of ways down is at least as
    great and quickly found: it says which heads come first and when no better one can follow.
    """
    ways = dict.fromkeys(nodes, 0)
    for seq in reversed(_in_order(below, nodes)):
        ways[seq] = min(len(nodes), sum(1 + ways[low] for low in below.get(seq, ())))
    most: list[tuple[int, int]] = []
    looked_at = 0
    for node in sorted(heads, key=lambda node: (-ways[node.seq], node.seq)):
        full = len(most) == _BOTTLENECKS_TOLD
        if full and (ways[node.seq] <= most[-1][1] or looked_at > _LOOKED_AT_MOST):
            break
        held = len(_all_below(below, node.seq))
        looked_at += held
        most = sorted([*most, (node.seq, held)], key=lambda found: -found[1])[:_BOTTLENECKS_TOLD]
    return most


def _all_below(below: Mapping[int, list[int]], seq: int) -> set[int]:
    seen: set[int] = set()
    layer = [seq]
    while layer:
        layer = list({low for high in layer for low in below.get(high, ())} - seen)
        seen.update(layer)
    return seen


def _why_unfinished(tx: Tx, node: _Node) -> str:
    match node.state:
        case "running":
            attempt = f", attempt {node.attempt}" if node.attempt > 1 else ""
            return f"running for {_seconds(node.run_s)} by {node.worker}{attempt}"
        case "ready":
            return f"ready for {_seconds(tx.now - (node.ready_at or tx.now))}, and nobody took it"
        case _ if node.not_before is not None:
            left = _seconds(max(0.0, node.not_before - tx.now))
            return f"starts in {left}" + (f": {node.reason}" if node.reason else "")
        case _:
            return node.reason or "waits for a task elsewhere"


def _slow(nodes: Mapping[int, _Node]) -> list[tuple[_Node, str]]:
    done = [node for node in nodes.values() if node.state == "done"]
    if not done:
        return []
    usual = median(node.run_s for node in done)
    slow = [node for node in done if usual > 0 and node.run_s >= _SLOW_TIMES * usual]
    slow.sort(key=lambda node: -node.run_s)
    return [
        (node, f"took {_seconds(node.run_s)}, {node.run_s / usual:.1f} times the group's median")
        for node in slow
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s"

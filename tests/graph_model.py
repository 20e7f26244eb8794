"""The task graph again, as plainly as it can be said: no counters, no ripple, everything anew.

Written from the rules and not from the store, to be compared with it. After each change every task
is looked at until nothing moves any more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FINISHED = frozenset({"done", "failed", "cancelled"})
UNLUCKY = frozenset({"failed", "cancelled"})

# Which end meets an edge; "one" asks for a result whose field `v` is 1.
On = Literal["success", "failure", "finish", "one"]


class Ask(NamedTuple):
    """A gate as it is asked for: how many of these tasks, each on its condition."""

    need: int
    of: tuple[tuple[str, On], ...]


@dataclass
class Edge:
    upstream: str
    on: On
    state: Literal["open", "met", "missed"]


@dataclass
class Gate:
    need: int
    edges: list[Edge]
    origin: Literal["asked", "child", "before"]

    def count(self, state: str) -> int:
        return sum(edge.state == state for edge in self.edges)

    @property
    def open(self) -> bool:
        return self.count("met") >= self.need

    @property
    def unmeetable(self) -> bool:
        return len(self.edges) - self.count("missed") < self.need


@dataclass
class Node:
    """A task. Its name is its key; keys are never used twice here."""

    name: str
    group: str
    order: int
    priority: int
    capability: str | None
    on_unmet: Literal["wait", "cancel", "fail"]
    max_attempts: int
    backoff_s: float
    max_expiries: int
    timeout_s: float | None
    lease_s: float
    not_before: float | None
    parent: str | None
    state: str = "blocked"
    gates: list[Gate] = field(default_factory=list[Gate])
    attempt: int = 0
    failures: int = 0
    expiries: int = 0
    lease_until: float = 0.0
    deadline: float | None = None
    result: int | None = None
    given_up: bool = False
    finished_at: float | None = None
    # Past its retention: nobody sees it any more, but what it once meant to others stays.
    gone: bool = False

    @property
    def expires_at(self) -> float:
        return self.lease_until if self.deadline is None else min(self.lease_until, self.deadline)

    def edges(self) -> list[Edge]:
        return [edge for gate in self.gates for edge in gate.edges]


class Refused(Exception):
    """The rules forbid it; nothing may have changed. The argument is the error's code."""


@dataclass
class Model:
    now: float
    nodes: dict[str, Node] = field(default_factory=dict[str, Node])
    made: int = 0

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if not node.gone]

    # Entering

    def submit(self, nodes: list[tuple[Node, list[Ask]]], parent: str | None = None) -> None:
        """Add tasks; those whose `parent` is set are children of it, others of `parent` follow."""
        names = {node.name for node, _ in nodes}
        waits = {
            node.name: {up for ask in asks for up, _ in ask.of} & names for node, asks in nodes
        }
        while free := [name for name, ups in waits.items() if not ups]:
            waits = {name: ups - set(free) for name, ups in waits.items() if name not in free}
        if waits:
            raise Refused("cycle-found")
        for node, _ in nodes:
            self.nodes[node.name] = node
        for node, asks in nodes:
            follows = parent is not None and node.parent is None
            extra = [Ask(1, ((str(parent), "success"),))] if follows else []
            node.gates = self._gates([*asks, *extra], node)
        if parent is not None:
            self._hold_up(parent, [node for node, _ in nodes if node.parent == parent])
        self.settle()

    def put_before(self, name: str, low: str) -> None:
        if self.nodes[low].state not in {"blocked", "ready"}:
            raise Refused("state-forbids")
        self.nodes[low].gates.append(Gate(1, [Edge(name, "success", "open")], "before"))
        if name in self._above(name):
            raise Refused("cycle-found")
        self.settle()

    def _gates(self, asks: list[Ask], own: Node) -> list[Gate]:
        gates = [
            Gate(ask.need, [Edge(up, on, self._judge(up, on)) for up, on in ask.of], "asked")
            for ask in asks
        ]
        for gate in list(gates):
            if gate.need == len(gate.edges):
                waited = {
                    child: "finish" if edge.on == "finish" else "success"
                    for edge in gate.edges
                    # With the other parts of what it is a part of, it would wait for itself.
                    if edge.on != "failure" and edge.upstream not in self._ancestors(own)
                    for child in self._descendants(edge.upstream)
                    if self.nodes[child].state not in FINISHED
                }
                if waited:
                    edges = [Edge(child, on, "open") for child, on in waited.items()]  # pyright: ignore[reportArgumentType]  # both are conditions
                    gates.append(Gate(len(edges), edges, "child"))
        return gates

    def _judge(self, name: str, on: On) -> Literal["open", "met", "missed"]:
        node = self.nodes[name]
        if node.state not in FINISHED:
            return "open"
        met = {
            "success": node.state == "done",
            "failure": node.state == "failed",
            "finish": True,
            "one": node.state == "done" and node.result == 1,
        }[on]
        return "met" if met else "missed"

    def _descendants(self, name: str) -> list[str]:
        children = [node.name for node in self.alive() if node.parent == name]
        return children + [low for child in children for low in self._descendants(child)]

    def _ancestors(self, node: Node) -> list[str]:
        if node.parent is None:
            return []
        parent = self.nodes[node.parent]
        return [parent.name, *([] if parent.gone else self._ancestors(parent))]

    def _hold_up(self, parent: str, children: list[Node]) -> None:
        fresh = {child.name for child in children}
        for node in self.alive():
            if parent in self._ancestors(node):
                continue
            for gate in list(node.gates):
                for edge in gate.edges:
                    waits = edge.upstream == parent and edge.state == "open"
                    if waits and gate.need == len(gate.edges) and edge.on != "failure" and fresh:
                        on: On = "finish" if edge.on == "finish" else "success"
                        edges = [Edge(name, on, "open") for name in sorted(fresh)]
                        node.gates.append(Gate(len(edges), edges, "child"))
        if any(name in self._above(name) for name in fresh):
            raise Refused("cycle-found")

    def _above(self, name: str) -> set[str]:
        """What a task waits for, however far up; what is done waits no more."""
        found: set[str] = set()
        layer = {name}
        while layer:
            layer = {
                edge.upstream
                for low in layer
                for edge in self.nodes[low].edges()
                if self.nodes[edge.upstream].state != "done" and not self.nodes[edge.upstream].gone
            } - found
            found |= layer
        return found

    def below(self, name: str) -> set[str]:
        found: set[str] = set()
        layer = {name}
        while layer:
            layer = {
                node.name
                for node in self.nodes.values()
                if any(edge.upstream in layer for edge in node.edges())
            } - found
            found |= layer
        return found - {name}

    # What follows

    def settle(self) -> None:
        """Judge every open edge of what is finished, and place every task that is unclaimed."""
        moved = True
        while moved:
            moved = False
            for node in self.nodes.values():
                for edge in node.edges():
                    if edge.state == "open":
                        edge.state = self._judge(edge.upstream, edge.on)
                        moved = moved or edge.state != "open"
                if node.state in {"blocked", "ready"}:
                    after = self._place(node)
                    moved = moved or after != node.state
                    node.state = after
        for node in self.nodes.values():
            if node.state in FINISHED and node.finished_at is None:
                node.finished_at = self.now

    def _place(self, node: Node) -> str:
        if node.on_unmet != "wait" and any(gate.unmeetable for gate in node.gates):
            node.given_up = True
            return "cancelled" if node.on_unmet == "cancel" else "failed"
        due = node.not_before is None or node.not_before <= self.now
        if due and all(gate.open for gate in node.gates):
            node.not_before = None
            return "ready"
        return "blocked"

    # Claims and ends

    def claim(self, capabilities: set[str], groups: set[str]) -> str:
        """The name of the task that must be given, or the verdict."""
        self.settle()
        view = [node for node in self.alive() if not groups or node.group in groups]
        ready = [node for node in view if node.state == "ready"]
        fits = [
            node for node in ready if node.capability is None or node.capability in capabilities
        ]
        if fits:
            best = min(fits, key=lambda node: (-node.priority, node.order))
            best.state = "running"
            best.attempt += 1
            best.deadline = None if best.timeout_s is None else self.now + best.timeout_s
            best.lease_until = self.now + best.lease_s
            return best.name
        if ready:
            return "no_match"
        if any(node.state == "running" for node in view):
            return "blocked"
        blocked = [node for node in view if node.state == "blocked"]
        if not blocked:
            return "all_done"
        return "blocked" if any(self._moves(node.name, set()) for node in blocked) else "deadlocked"

    def _moves(self, name: str, seen: set[str]) -> bool:
        """Whether the task, or one it waits for, however far up, can still do something."""
        node = self.nodes[name]
        if node.state in {"ready", "running"}:
            return True
        if node.state in FINISHED or name in seen:
            return False
        seen.add(name)
        if node.not_before is not None and all(gate.open for gate in node.gates):
            return True
        return any(
            self._moves(edge.upstream, seen) for edge in node.edges() if edge.state == "open"
        )

    def beat(self, name: str) -> None:
        self.nodes[name].lease_until = self.now + self.nodes[name].lease_s

    def complete(self, name: str, result: int) -> None:
        self.nodes[name].state, self.nodes[name].result = "done", result
        self.settle()

    def fail(self, name: str, *, retryable: bool) -> None:
        node = self.nodes[name]
        node.failures += 1
        if retryable and node.failures < node.max_attempts:
            self.release(name, node.backoff_s * 2 ** (node.failures - 1))
        else:
            node.state = "failed"
            self.settle()

    def release(self, name: str, delay_s: float) -> None:
        node = self.nodes[name]
        node.state = "blocked"
        node.not_before = self.now + delay_s if delay_s else None
        self.settle()

    def sweep(self) -> None:
        for node in list(self.nodes.values()):
            if node.state == "running" and node.expires_at <= self.now:
                if node.deadline is not None and node.deadline <= self.now:
                    self.fail(node.name, retryable=True)
                    continue
                node.expiries += 1
                if node.expiries > node.max_expiries:
                    node.state = "failed"
                else:
                    self.release(node.name, 0)
        self.settle()

    def trim(self, age_s: float) -> None:
        for node in self.alive():
            old = node.finished_at is not None and node.finished_at < self.now - age_s
            needed = any(
                low.state not in FINISHED
                and any(edge.upstream == node.name for edge in low.edges())
                for low in self.nodes.values()
            )
            node.gone = old and not needed
        for node in self.nodes.values():
            if node.gone:
                node.gates = []
            elif node.parent is not None and self.nodes[node.parent].gone:
                node.parent = None

    def grace(self) -> None:
        for node in self.nodes.values():
            if node.state == "running":
                until = self.now + 2 * node.lease_s
                node.lease_until = max(node.lease_until, until)
                if node.deadline is not None:
                    node.deadline = max(node.deadline, until)

    # Changes from outside

    def cancel(self, names: list[str], *, cascade: bool = False) -> set[str]:
        doomed = set(names)
        if cascade:
            doomed |= {low for name in names for low in self.below(name)}
        doomed = {name for name in doomed if self.nodes[name].state not in FINISHED}
        for name in doomed:
            self.nodes[name].state, self.nodes[name].given_up = "cancelled", False
        self.settle()
        return doomed

    def retry(self, name: str, *, upstream: bool) -> set[str]:
        wanted = {name} | (self._above(name) if upstream else set[str]())
        revived = self._revive(wanted)
        if self.nodes[name].state in UNLUCKY or not revived:
            raise Refused("state-forbids")
        return revived

    def retry_group(self, group: str) -> set[str]:
        return self._revive({node.name for node in self.alive() if node.group == group})

    def _revive(self, wanted: set[str]) -> set[str]:
        revived: set[str] = set()
        while True:
            back = [
                node
                for node in self.alive()
                if node.state in UNLUCKY
                and (node.name in wanted or (node.given_up and self._touched(node, revived)))
                and not any(gate.unmeetable for gate in node.gates)
            ]
            if not back:
                break
            for node in back:
                node.state, node.given_up, node.not_before = "blocked", False, None
                node.failures = node.expiries = 0
                node.finished_at = None
                revived.add(node.name)
                for low in self.nodes.values():
                    if low.state not in {"running", "done"}:
                        for edge in low.edges():
                            if edge.upstream == node.name:
                                edge.state = "open"
        self.settle()
        return revived

    def _touched(self, node: Node, revived: set[str]) -> bool:
        return any(edge.upstream in revived for edge in node.edges())

    def rewire(self, name: str, asks: list[Ask]) -> None:
        node = self._unclaimed(name)
        kept = [gate for gate in node.gates if gate.origin == "before"]
        node.gates = kept + self._gates(asks, node)
        if name in self._above(name):
            raise Refused("cycle-found")
        self.settle()

    def postpone(self, name: str, until: float | None) -> None:
        self._unclaimed(name).not_before = until
        self.settle()

    def on_unmet(self, name: str, what: Literal["wait", "cancel", "fail"]) -> None:
        self._unclaimed(name).on_unmet = what
        self.settle()

    def _unclaimed(self, name: str) -> Node:
        if self.nodes[name].state not in {"blocked", "ready"}:
            raise Refused("state-forbids")
        return self.nodes[name]

    def delete(self, name: str, *, cascade: bool) -> set[str]:
        below = self.below(name)
        if below and not cascade:
            raise Refused("has-dependents")
        doomed = {name, *below}
        if any(self.nodes[one].state == "running" for one in doomed):
            raise Refused("state-forbids")
        for one in doomed:
            del self.nodes[one]
        for node in self.nodes.values():
            if node.parent in doomed:
                node.parent = None
        return doomed

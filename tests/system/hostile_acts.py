"""Of the table: what is well said, and must not be done now, or not by this one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from system.row import Row, row, submit

if TYPE_CHECKING:
    from collections.abc import Iterator


def graphs() -> Iterator[Row]:
    def graph(name: str, code: str, *tasks: dict[str, Any], **more: Any) -> Row:
        given: dict[str, Any] = {"tasks": list(tasks), **more}
        return row(
            name,
            code,
            "graph_submit",
            **given,
            _words=("graph", "submit", "-"),
            _stdin=json.dumps(given).encode(),
        )

    yield graph("a ring of one", "cycle-found", {"key": "a", "depends_on": ["a"]})
    yield graph(
        "a ring of two",
        "cycle-found",
        {"key": "a", "depends_on": ["b"]},
        {"key": "b", "depends_on": ["a"]},
    )
    yield graph(
        "a ring of three",
        "cycle-found",
        {"key": "a", "depends_on": ["b"]},
        {"key": "b", "depends_on": ["c"]},
        {"key": "c", "depends_on": ["a"]},
    )
    yield graph(
        "a ring through a gate",
        "cycle-found",
        {"key": "a", "depends_on": [{"of": ["b", "first"], "need": "any"}]},
        {"key": "b", "depends_on": [{"task": "a", "on": "finish"}]},
    )
    yield graph(
        "a ring behind good tasks",
        "cycle-found",
        {"key": "ok"},
        {"key": "a", "depends_on": ["ok", "b"]},
        {"key": "b", "depends_on": ["a"]},
    )
    yield graph("a key twice in a graph", "already-exists", {"key": "a"}, {"key": "a"})
    yield graph("a key that is taken", "already-exists", {"key": "a"}, {"key": "standing"})
    yield graph(
        "a dependency that is not there", "not-found", {"key": "a"}, {"depends_on": ["nowhere"]}
    )
    yield graph(
        "a dependency of another group",
        "not-found",
        {"depends_on": ["standing"]},
        group="elsewhere",
    )
    yield graph("a good task and a bad one", "invalid-input", {"key": "a"}, {"key": 5})
    for name, change in (("one", "third"), ("three", "first")):
        yield row(
            f"an update to a ring of {name}",
            "cycle-found",
            "task_update",
            task_id=change,
            changes={"depends_on": ["third"]},
            _words=("task", "update", change, "--depends-on", "third"),
        )
    yield row(
        "an update to a ring through a gate",
        "cycle-found",
        "task_update",
        task_id="first",
        changes={"depends_on": [{"of": ["standing", "second"], "need": "any"}]},
    )
    gates: dict[str, dict[str, Any]] = {
        "3 of 2": {"of": ["first", "second"], "need": 3},
        "0 of 1": {"of": ["first"], "need": 0},
        "-1 of 1": {"of": ["first"], "need": -1},
        "0%": {"of": ["first"], "need": "0%"},
        "101%": {"of": ["first"], "need": "101%"},
        "most": {"of": ["first"], "need": "most"},
        "true": {"of": ["first"], "need": True},
        "1.5": {"of": ["first"], "need": 1.5},
        "all of none": {"of": []},
        "one task twice": {"of": ["first", "first"], "need": 2},
        "a test on failure": {"of": [{"task": "first", "on": "failure", "where": {"field": "n"}}]},
        "an unknown end": {"of": [{"task": "first", "on": "whenever"}]},
        "an unknown test": {"of": [{"task": "first", "where": {"field": "n", "op": "~"}}]},
        "a test of nothing": {"of": [{"task": "first", "where": {"field": ""}}]},
    }
    for name, gate in gates.items():
        yield submit(f"a gate: {name}", depends_on=[gate])


def states() -> Iterator[Row]:
    """What is well said, and not to be done now, or not by this one."""
    ends = ("task_complete", "task_fail", "task_release")
    for call in ends:
        verb = call.partition("_")[2]
        yield row(
            f"{call} without a claim",
            "lease-lost",
            call,
            task_id="standing",
            token=0,
            _by="ann",
            _words=("task", verb, "standing", "--token", "0"),
        )
        for token in (0, -1, 2, 2**63 - 1):
            yield row(
                f"{call} with token {token}",
                "lease-lost",
                call,
                task_id="held",
                token=token,
                _by="ann",
                _words=("task", verb, "held", "--token", str(token)),
            )
        yield row(
            f"{call} of another's task",
            "lease-lost",
            call,
            task_id="held",
            token=1,
            _by="bob",
            _words=("task", verb, "held", "--token", "1"),
        )
        yield row(
            f"{call} in another's name",
            "denied",
            call,
            task_id="held",
            token=1,
            worker="ann",
            _by="bob",
            _words=("task", verb, "held", "--token", "1", "--worker", "ann"),
        )
        yield row(
            f"{call} by an operator in a worker's name",
            "lease-lost",
            call,
            task_id="held",
            token=1,
            worker="ann",
            _by="operator",
        )
    yield row(
        "growing another's task",
        "lease-lost",
        "task_extend",
        task_id="held",
        token=1,
        children=[{}],
        _by="bob",
    )
    yield row(
        "growing by nothing", "invalid-input", "task_extend", task_id="held", token=1, _by="ann"
    )
    yield row(
        "growing before a task of another group",
        "invalid-input",
        "task_extend",
        task_id="held",
        token=1,
        _by="ann",
        children=[{"before": ["$red"]}],
    )
    yield row(
        "growing before a running task",
        "state-forbids",
        "task_extend",
        task_id="held",
        token=1,
        _by="ann",
        children=[{"before": ["held"]}],
    )
    yield row(
        "claiming in another's name",
        "denied",
        "task_claim",
        worker="ann",
        _by="bob",
        _words=("task", "claim", "--worker", "ann"),
    )
    yield row(
        "claiming in a name that begins alike", "denied", "task_claim", worker="bobby", _by="bob"
    )
    yield row("claiming none", "invalid-input", "task_claim", count=0)
    yield row("claiming 101", "invalid-input", "task_claim", count=101)
    yield row("claiming for no time", "invalid-input", "task_claim", lease_s=0)
    yield row(
        "claiming for ever",
        "invalid-input",
        "task_claim",
        lease_s=1e18,
        _words=("task", "claim", "--lease-s", "1e18"),
    )
    yield row("waiting for ever", "invalid-input", "task_claim", wait_s=1e18)
    yield row("registering in another's name", "denied", "worker_register", worker="ann", _by="bob")
    yield row(
        "an operator takes a worker's name",
        "already-exists",
        "worker_register",
        worker="ann",
        _by="operator",
    )
    yield row(
        "cancelling what is done",
        "state-forbids",
        "task_cancel",
        task_id="finished",
        _words=("task", "cancel", "finished"),
    )
    yield row(
        "retrying what is ready",
        "state-forbids",
        "task_retry",
        task_id="standing",
        _words=("task", "retry", "standing"),
    )
    yield row(
        "changing what runs",
        "state-forbids",
        "task_update",
        task_id="held",
        changes={"title": "x"},
        _words=("task", "update", "held", "--title", "x"),
    )
    yield row(
        "changing a key", "invalid-input", "task_update", task_id="standing", changes={"key": "x"}
    )
    yield row(
        "changing a state",
        "invalid-input",
        "task_update",
        task_id="standing",
        changes={"state": "done"},
    )
    yield row("changing nothing", "invalid-input", "task_update", task_id="standing", changes={})
    yield row(
        "changing an older version",
        "version-moved",
        "task_update",
        task_id="standing",
        changes={"title": "x"},
        expect_version=0,
        _words=("task", "update", "standing", "--title", "x", "--expect-version", "0"),
    )
    yield row(
        "deleting what runs",
        "has-dependents",
        "task_delete",
        task_id="first",
        _words=("task", "delete", "first"),
    )
    yield row(
        "deleting what others need",
        "has-dependents",
        "task_delete",
        task_id="first",
        _words=("task", "delete", "first"),
    )
    yield row(
        "a key that said something else",
        "key-reused",
        "task_submit",
        title="other",
        idempotency_key="used",
        _words=("task", "submit", "other", "--idempotency-key", "used"),
    )
    yield row(
        "a graph under a task's key",
        "key-reused",
        "graph_submit",
        tasks=[{"title": "x"}],
        idempotency_key="used",
    )
    yield row(
        "another graph under a key",
        "key-reused",
        "graph_submit",
        tasks=[{"key": "b"}],
        group="said",
        idempotency_key="used-graph",
    )
    yield row(
        "another run under a key",
        "key-reused",
        "template_run",
        name="known",
        parameters={"x": "b"},
        group="ran",
        idempotency_key="used-run",
        _words=(
            "template",
            "run",
            "known",
            "--param",
            "x=b",
            "--group",
            "ran",
            "--idempotency-key",
            "used-run",
        ),
    )
    yield row(
        "other growth under a key",
        "key-reused",
        "task_extend",
        task_id="held",
        token=1,
        successors=[{"key": "child", "capabilities": ["none-has-this"]}],
        idempotency_key="grown",
        _by="ann",
    )
    yield row("an empty key", "invalid-input", "task_submit", idempotency_key="", _words=None)


def access() -> Iterator[Row]:
    """What is well said by the wrong one."""
    yield row(
        "a viewer submits", "denied", "task_submit", _by="viewer", _words=("task", "submit", "x")
    )
    yield row("a worker submits", "denied", "task_submit", _by="ann", _words=("task", "submit"))
    yield row("a viewer claims", "denied", "task_claim", _by="viewer", _words=("task", "claim"))
    yield row("a worker cancels", "denied", "task_cancel", task_id="standing", _by="ann")
    yield row(
        "a viewer reads the audit log",
        "denied",
        "audit_list",
        _by="viewer",
        _words=("audit", "list"),
    )
    yield row("an operator reads the audit log", "denied", "audit_list", _by="operator")
    yield row(
        "an operator makes a backup",
        "denied",
        "backup_create",
        _by="operator",
        _words=("backup", "create"),
    )
    yield row(
        "an operator makes an admin",
        "denied",
        "token_create",
        name="x",
        role="admin",
        _by="operator",
        _words=("token", "create", "x", "admin"),
    )
    yield row(
        "a narrowed operator makes a token",
        "denied",
        "token_create",
        name="x",
        role="viewer",
        _by="red",
    )
    yield row(
        "an operator takes an admin's name",
        "already-exists",
        "token_create",
        name="admin",
        role="viewer",
        _by="operator",
    )
    yield row(
        "an operator revokes an admin's token",
        "not-found",
        "token_revoke",
        token_id="$viewer_token_id",
        _by="operator",
    )
    yield row(
        "a token for the clock", "invalid-input", "token_create", name="system", role="viewer"
    )
    yield row("a token for a user id", "invalid-input", "token_create", name="uid:0", role="viewer")
    yield row("a token for a root", "invalid-input", "token_create", name="x", role="root")
    yield row(
        "a token that lasts no time",
        "invalid-input",
        "token_create",
        name="x",
        role="viewer",
        expires_in_s=0,
    )
    yield row(
        "a token that sees by no label",
        "invalid-input",
        "token_create",
        name="x",
        role="viewer",
        scope={"labels": {"secret": ["x"]}},
    )
    for name in ("expired", "revoked", "malformed", "wrong secret", "long"):
        yield row(
            f"a token that is {name}", "unauthenticated", "whoami", _by=name, _words=("whoami",)
        )
    yield from _out_of_sight()


def _out_of_sight() -> Iterator[Row]:
    """Red asks about blue: nothing of it may be told apart from nothing at all."""
    for call in (
        "task_get",
        "task_history",
        "task_runs",
        "task_wait",
        "task_cancel",
        "task_retry",
        "task_delete",
    ):
        words = ("task", call.partition("_")[2], "$blue")
        yield row(
            f"red asks {call} of blue", "not-found", call, task_id="$blue", _by="red", _words=words
        )
        yield row(
            f"red asks {call} of blue's key",
            "not-found",
            call,
            task_id="blue",
            group="blue",
            _by="red",
            _words=(*words[:2], "blue", "--group", "blue"),
        )
    yield row(
        "red changes blue",
        "not-found",
        "task_update",
        task_id="$blue",
        changes={"title": "x"},
        _by="red",
    )
    yield row("red waits for blue", "not-found", "task_submit", depends_on=["$blue"], _by="red")
    yield row(
        "red completes blue",
        "not-found",
        "task_complete",
        task_id="$blue",
        token=1,
        _by="redworker",
    )
    yield row(
        "red renews blue", "not-found", "task_heartbeat", task_id="$blue", token=1, _by="redworker"
    )
    for call in ("group_get", "group_report", "group_cancel", "group_retry"):
        yield row(
            f"red asks {call} of blue",
            "not-found",
            call,
            group="blue",
            _by="red",
            _words=("group", call.partition("_")[2], "blue"),
        )
    yield row(
        "red makes blue urgent",
        "not-found",
        "group_prioritize",
        group="blue",
        priority="urgent",
        _by="red",
    )
    yield row("red labels blue", "denied", "task_submit", labels={"team": "blue"}, _by="red")
    yield row("red names a project", "denied", "task_submit", labels={"project": "x"}, _by="red")
    yield row(
        "red gives its task to blue",
        "denied",
        "task_update",
        task_id="$red",
        changes={"labels": {"team": "blue"}},
        _by="red",
    )
    for cascade in (False, True):
        yield row(
            f"red deletes what blue needs, {cascade}",
            "has-dependents",
            "task_delete",
            task_id="$red",
            cascade=cascade,
            _by="red",
        )

"""The table: what somebody careless or hostile may say, and the code of the answer.

Arguments are JSON as it is sent, so that they need not be JSON; `$name` stands for a thing of
`world.py`. One code holds for every door unless the row says otherwise, because a protocol's own
parser spoke first. A row whose `words` are given is said on the command line too. Here are wrong
values; hostile_acts.py has what is well said and not to be done, hostile_texts.py what something
reads on. test_protocols.py has what is no call at all.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from system import hostile_acts as acts
from system import hostile_texts as texts
from system.row import BAD_JSON, UNSAYABLE, Row, row, submit, written

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MB = 1024 * 1024
_DEEP = 100_000


def _sizes() -> Iterator[Row]:
    yield submit("a description of 300 kB", "too-large", description="x" * 300_000)
    # Past what one request may be; over HTTP, MCP says so without words.
    yield submit("a description of 10 MB", "too-large", description="x" * 10 * MB, _http="http 413")
    yield submit("10,001 dependencies", "too-large", depends_on=["x"] * 10_001)
    yield submit("1e6 dependencies", "too-large", depends_on=["x"] * 1_000_000, _http="http 413")
    yield submit("a gate of 10,001", "too-large", depends_on=[{"of": ["x"] * 10_001}])
    yield submit("a title of 1,001 letters", "too-large", title="x" * 1001)
    yield submit("a key of 201 letters", "too-large", key="x" * 201)
    yield submit("33 labels", "too-large", labels={f"l{n}": "x" for n in range(33)})
    yield submit("a label of 201 letters", "too-large", labels={"team": "x" * 201})
    yield submit("65 capabilities", "too-large", capabilities=["x"] * 65)
    yield submit("an input of 1.1 MB", "too-large", input="x" * 1_100_000)
    yield row("a graph of 10,001", "too-large", "graph_submit", tasks=[{}] * 10_001)
    yield row(
        "a graph of none",
        "invalid-input",
        "graph_submit",
        tasks=[],
        _words=("graph", "submit", "-"),
        _stdin=b'{"tasks": []}',
    )
    yield row("257 capabilities", "too-large", "task_claim", capabilities=["x"] * 257)
    yield row(
        "1e6 capabilities",
        "too-large",
        "task_claim",
        capabilities=["x"] * 1_000_000,
        _http="http 413",
    )
    yield row("65 groups", "too-large", "task_claim", groups=["x"] * 65)
    yield row(
        "a result of 1.1 MB",
        "too-large",
        "task_complete",
        task_id="held",
        token=1,
        result="x" * 1_100_000,
        _by="ann",
        _words=("task", "complete", "held", "--token", "1", "--result", "-"),
        _stdin=json.dumps("x" * 1_100_000).encode(),
    )
    yield row("65 subjects", "too-large", "event_wait", subjects=["x"] * 65)
    yield row(
        "a cursor of 2,001 letters",
        "too-large",
        "task_list",
        cursor="x" * 2001,
        _words=("task", "list", "--cursor", "x" * 2001),
    )
    yield row(
        "100,000 changes nobody knows",
        "invalid-input",
        "task_update",
        task_id="standing",
        changes={f"x{n}": 1 for n in range(100_000)},
    )


def _broken_json() -> Iterator[Row]:
    """Texts that are no JSON, or not the same JSON to every reader."""
    for name, text in (
        ("NaN", b"NaN"),
        ("Infinity", b"Infinity"),
        ("minus Infinity", b"-Infinity"),
        ("1e400", b"1e400"),
        ("an integer past all doubles", b"1" + b"0" * 400),
    ):
        yield written(
            f"{name} in the input", "invalid-input", "task_submit", b'{"input": [%s]}' % text
        )
        yield written(
            f"{name} as priority", "invalid-input", "task_submit", b'{"priority": %s}' % text
        )
    # The SDK reads what comes over HTTP with another parser, which lets these through to us.
    for name, given in (
        ("half a surrogate pair", rb'{"title": "\ud800"}'),
        ("half a pair in the input", rb'{"input": {"a": ["\ud800"]}}'),
        ("half a pair as a name in the input", rb'{"input": {"\udfff": 1}}'),
        ("half a pair as a field", rb'{"\udfff": 1}'),
        ("half a pair as a key", rb'{"key": "\udfff"}'),
        ("half a pair as a label", rb'{"labels": {"a": "\udfff"}}'),
        ("half a pair as a dependency", rb'{"depends_on": ["\udfff"]}'),
        ("the wrong half of a pair", rb'{"title": "\udc00\ud800"}'),
        ("a surrogate in UTF-8", b'{"title": "\xed\xa0\x80"}'),
    ):
        yield written(
            name, "invalid-input", "task_submit", given, mcp=BAD_JSON, http="invalid-input"
        )
    yield written(
        "half a pair as a task",
        "invalid-input",
        "task_cancel",
        rb'{"task_id": "\ud800"}',
        mcp=BAD_JSON,
        http="invalid-input",
        rest=UNSAYABLE,
    )
    yield written(
        "half a pair as a cursor",
        "invalid-input",
        "task_list",
        rb'{"cursor": "\ud800"}',
        mcp=BAD_JSON,
        http="invalid-input",
        rest=UNSAYABLE,
    )
    yield written(
        "half a pair as a result",
        "invalid-input",
        "task_complete",
        rb'{"task_id": "held", "token": 1, "result": "\ud800"}',
        by="ann",
        mcp=BAD_JSON,
        http="invalid-input",
    )
    for name, given in (
        ("an integer of 10,000 digits", b'{"input": %s}' % (b"9" * 10_000)),
        ("JSON 100,000 deep", b'{"input": %s%s}' % (b"[" * _DEEP, b"]" * _DEEP)),
        ("bytes that are no UTF-8", b'{"title": "\xff\xfe"}'),
        ("an overlong slash", b'{"title": "\xc0\xaf"}'),
        ("a byte order mark", b"\xef\xbb\xbf{}"),
        ("UTF-16", '{"title": "x"}'.encode("utf-16")),
        ("a comment", b'{"title": "x" /* y */}'),
        ("single quotes", b"{'title': 'x'}"),
        ("a comma too many", b'{"title": "x",}'),
        ("cut off", b'{"title": "x'),
        ("a tab in a string", b'{"title": "a\tb"}'),
    ):
        # What breaks inside a line of MCP breaks the line.
        yield written(name, "invalid-input", "task_submit", given, mcp=BAD_JSON)
    yield written(
        "JSON 65 deep", "invalid-input", "task_submit", b'{"input": %s%s}' % (b"[" * 65, b"]" * 65)
    )
    # The parser of MCP takes the last of them, as most do; REST refuses the ambiguity.
    yield written(
        "a key twice",
        "invalid-input",
        "task_submit",
        b'{"title": "a", "priority": 2000, "title": "b"}',
    )
    for name, given in (("a list", b"[]"), ("a text", b'"x"'), ("a number", b"5")):
        yield written(
            f"{name} instead of arguments", "invalid-input", "task_submit", given, mcp="rpc -32602"
        )


def _types() -> Iterator[Row]:
    """For each type of field, what other languages would let pass."""
    wrong: dict[str, Sequence[object]] = {
        "title": (5, True, None, [], {}),
        "description": (5, None),
        "key": (5, True, [], {}, ""),
        "group": (5, None, [], ""),
        "priority": (True, "5", 5.0, None, [], {}, "urgentest", "URGENT", -1001, 1001),
        "labels": (None, [], "x", {"a": 1}, {"a": None}, {"a": ["b"]}),
        "depends_on": (None, "x", {}, [5], [None], [[]], [{}], [{"task": 5}], [True]),
        "capabilities": (None, "x", [5], [""], ["a b"], ["../x"]),
        "timeout_s": (True, "5", 0, -1, 1e18, [], {}),
        "lease_s": (True, "5", 0, 0.5, 86_401, -1),
        "retry": (
            None,
            5,
            [],
            {"max_attempts": True},
            {"max_attempts": 1.5},
            {"max_attempts": 0},
            {"backoff_s": -1},
            {"forever": True},
        ),
        "on_unmet": (None, 1, "explode", ""),
        "max_expiries": (True, "1", 1.5, -1, 101),
        "not_before": (
            5,
            "5",
            True,
            "tomorrow",
            "2030-01-01",
            "2030-01-01T00:00:00",
            "2030-02-30T00:00:00Z",
            "0001-01-01T00:00:00+23:59",
            "9999-12-31T23:59:59.999999Z",
            "9999-12-31T23:59:59-23:59",
        ),
    }
    for field, values in wrong.items():
        for number, value in enumerate(values):
            # One of each is enough for the command line, which starts a process for it.
            silent = {"_words": None} if number or field == "group" else {}
            yield submit(f"{field}: {json.dumps(value)}", **{field: value}, **silent)
    tokens: Sequence[object] = (True, "1", 1.0, None, [], {}, 2**70, -(2**70))
    for value in tokens:
        yield row(
            f"token: {json.dumps(value)}",
            "invalid-input",
            "task_complete",
            task_id="held",
            token=value,
            _by="ann",
        )
    flags: Sequence[object] = ("true", 1, None, [])
    for value in flags:
        yield row(
            f"cascade: {json.dumps(value)}",
            "invalid-input",
            "task_cancel",
            task_id="standing",
            cascade=value,
        )
    for value in (1.5, -0.1, "0.5", True):
        yield row(
            f"fraction: {json.dumps(value)}",
            "invalid-input",
            "task_heartbeat",
            task_id="held",
            token=1,
            progress={"fraction": value},
            _by="ann",
        )
    ids: Sequence[object] = (5, None, [], {})
    for value in ids:
        yield row(
            f"task_id: {json.dumps(value)}",
            "invalid-input",
            "task_cancel",
            task_id=value,
            _rest=UNSAYABLE,
        )


def _names() -> Iterator[Row]:
    for field in ("__proto__", "constructor", "toString", "__class__", "hasOwnProperty", ""):
        yield submit(f"a field {field!r}", **{field: {"polluted": True}})
    for key in ("__proto__", "", "a b", "../x", "x" * 64, "\u202e", "é"):
        yield submit(f"a label {key[:12]!r}", labels={key: "x"})
    for name, text in (
        ("a zero byte", "\0"),
        ("a line feed", "\n"),
        ("an escape", "\x1b[2J"),
        ("an escape of eight bits", "\x9b2J"),
        ("a delete", "\x7f"),
    ):
        yield submit(f"a key with {name}", key=f"a{text}b")
        yield submit(f"a label with {name}", labels={"team": f"a{text}b"})
    yield submit("a key like an id", key="t_01k00000000000000000000000")
    for group in (
        "a/b",
        "../x",
        "..",
        ".",
        "-x",
        "x" * 65,
        "a b",
        "a\n",
        "%2e",
        "é",
        "__proto__",
        "' OR 1=1 --",
    ):
        yield submit(f"group {group[:12]!r}", group=group, _words=None)
        yield row(
            f"look at group {group[:12]!r}",
            "invalid-input",
            "group_get",
            group=group,
            # A slash takes the address apart, and two dots lead nowhere.
            _rest="not-found" if "/" in group else None,
            _words=("group", "get", "--", group),
        )
    for ref in (
        "../../etc/passwd",
        "t_/../x",
        "%2e%2e%2f",
        "' OR '1'='1",
        "1; DROP TABLE task",
        "t_00000000000000000000000000",
        "$admin_token",
        "\u202eabc",
        "💩",
        " ",
        "*",
        "%",
        "standing\u200b",
        "STANDING",
        "$expired_token_id",
        "$gone",
        "x" * 200,
    ):
        yield row(
            f"look at task {ref[:16]!r}",
            "not-found",
            "task_get",
            task_id=ref,
            _words=("task", "get", "--", ref),
            _cli="invalid-input" if "/" in ref else None,
        )
    yield row(
        "look at task ''",
        "invalid-input",
        "task_get",
        task_id="",
        _rest="not-found",
        _words=("task", "get", ""),
    )
    for template in ("../x", "a/b", "a b", ""):
        yield row(
            f"look at template {template!r}",
            "invalid-input",
            "template_get",
            name=template,
            _rest="not-found" if "/" in template or not template else None,
        )
    yield row("a template that is not there", "not-found", "template_get", name="unknown")
    yield row("a version that is not there", "not-found", "template_get", name="known", version=2)
    yield row("version 0", "invalid-input", "template_get", name="known", version=0)
    for call, field in (
        ("token_revoke", "token_id"),
        ("webhook_delete", "webhook_id"),
        ("delivery_retry", "delivery_id"),
        ("worker_remove", "worker"),
    ):
        yield row(f"{call} of a task", "not-found", call, **{field: "$standing"})
    for path in ("relative", "../x", "/tmp/\0", "/tmp/" + "x" * 255, "", "/" + "x/" * 2500):
        yield row(
            f"a backup to {path[:12]!r}",
            "invalid-input" if len(path) < 5000 else "too-large",
            "backup_create",
            path=path,
        )
    yield row("a backup to no directory", "not-found", "backup_create", path="/nowhere/at/all")
    yield row(
        "a backup over a file",
        "already-exists",
        "backup_create",
        path="/etc/passwd",
        _words=("backup", "create", "/etc/passwd"),
    )


def _lists() -> Iterator[Row]:
    for limit in (0, 201, -1, 2**70, True, "5x", 1.5):
        yield row(f"limit {limit!r}", "invalid-input", "task_list", limit=limit)
    yield row(
        "limit 0 of workers",
        "invalid-input",
        "worker_list",
        limit=0,
        _words=("worker", "list", "--limit", "0"),
    )
    yield row("a state nobody knows", "invalid-input", "task_list", state=["asleep"])
    yield row("a kind nobody could have", "invalid-input", "event_wait", kinds=["TASK.*"])
    yield row("a kind for all", "invalid-input", "event_wait", kinds=["*"])
    for name, cursor in (
        ("garbage", "!!!"),
        ("no base64", "ab$c"),
        ("of workers", "$worker_cursor"),
        ("of events", "$event_cursor"),
        ("a zero byte", "\0"),
        ("a huge number", "Wzk5OTk5OTk5OTk5OTk5OTk5OTk5OTld"),
        ("a negative number", "Wy0xXQ"),
        ("deep", "W" * 1999),
    ):
        yield row(
            f"a cursor: {name}",
            "cursor-invalid",
            "task_list",
            cursor=cursor,
            _words=None if "\0" in cursor else ("task", "list", "--cursor", cursor),
        )
    yield row(
        "a cursor of tasks for workers", "cursor-invalid", "worker_list", cursor="$task_cursor"
    )
    for name, cursor, code in (
        ("garbage", "!!!", "cursor-invalid"),
        ("of a list", "$task_cursor", "cursor-invalid"),
        ("of another store", "$cursor_of_another_store", "cursor-expired"),
        ("ahead of the journal", "$cursor_ahead", "cursor-invalid"),
    ):
        yield row(
            f"events after a cursor: {name}",
            code,
            "event_wait",
            after=cursor,
            _words=("event", "wait", "--after", cursor),
        )
    yield row("waiting for two hours", "invalid-input", "event_wait", timeout_s=7200)
    yield row("waiting backwards", "invalid-input", "event_wait", timeout_s=-1)
    yield row("figures of no time", "invalid-input", "metrics_get", window_s=0)
    yield row("figures of all time", "invalid-input", "metrics_get", window_s=1e18)
    yield row("figures of no group", "invalid-input", "metrics_get", group="../x")


PARTS: dict[str, tuple[Row, ...]] = {
    "sizes": tuple(_sizes()),
    "broken JSON": tuple(_broken_json()),
    "types": tuple(_types()),
    "names": tuple(_names()),
    "lists": tuple(_lists()),
    "graphs": tuple(acts.graphs()),
    "states": tuple(acts.states()),
    "access": tuple(acts.access()),
    "addresses": tuple(texts.outwards()),
    "templates": tuple(texts.templates()),
}

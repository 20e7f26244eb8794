from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

import cluster_samples
import host_samples
import run_samples
from answering import REFUSED, Asked, answering
from commands import SPOKEN, run
from microvm_orchestrator.cli import failure
from microvm_orchestrator.service.calls import Call
from microvm_orchestrator.service.service import parse
from microvm_orchestrator.service.table import BY_NAME, CALLS
from microvm_orchestrator.web.arguments import Layout

TREE = {"tasks": [{"key": "a"}, {"key": "b", "depends_on": ["a"]}]}
DECLARED = {
    "replicas": {"type": "integer"},
    "version": {"type": "string"},
    "dry": {"type": "boolean"},
    "hosts": {"type": "strings"},
}
TODO = {"name": "tasks.md", "text": "- build\n- test\n"}
TASK: dict[str, Any] = {"task_id": "build", "group": "g"}
HELD = {**TASK, "token": 3, "worker": "w"}
HELD_WORDS = ["build", "--group", "g", "--token", "3", "--worker", "w"]

# A command, and what its call has to receive.
SAMPLES: dict[str, tuple[list[str], dict[str, Any]]] = {
    **host_samples.SAMPLES,
    **run_samples.SAMPLES,
    **cluster_samples.SAMPLES,
    "task_submit": (
        [
            *("Build it", "--key", "build", "--group", "g", "--description", "say -- so"),
            *(
                "--input",
                '{"a": [1, null]}',
                "--depends-on",
                "setup",
                "--depends-on",
                "any:a,b:failure",
            ),
            *(
                "--on-unmet",
                "cancel",
                "--priority",
                "urgent",
                "--label",
                "team=a=b",
                "--label",
                "x=",
            ),
            *(
                "--capability",
                "node",
                "--capability",
                "gpu",
                "--role",
                "builder",
                "--timeout-s",
                "1.5",
            ),
            *("--lease-s", "30", "--retry", "3", "--on-expiry", "fail", "--max-expiries", "0"),
            *("--not-before", "2026-12-24T18:00:00Z", "--idempotency-key", "k"),
        ],
        {
            "title": "Build it",
            "key": "build",
            "group": "g",
            "description": "say -- so",
            "input": {"a": [1, None]},
            "depends_on": ["setup", {"of": ["a", {"task": "b", "on": "failure"}], "need": "any"}],
            "on_unmet": "cancel",
            "priority": "urgent",
            "labels": {"team": "a=b", "x": ""},
            "capabilities": ["node", "gpu"],
            "role": "builder",
            "timeout_s": 1.5,
            "lease_s": 30.0,
            "retry": {"max_attempts": 3},
            "on_expiry": "fail",
            "max_expiries": 0,
            "not_before": "2026-12-24T18:00:00Z",
            "idempotency_key": "k",
        },
    ),
    "graph_submit": (["@graph.toml", "--group", "g"], {**TREE, "group": "g"}),
    "task_get": (["build", "--group", "g"], TASK),
    "task_list": (
        [
            *("--state", "ready", "--state", "running", "--group", "g", "--label", "team=ä&b"),
            *(
                "--owner",
                "uid:0",
                "--worker",
                "w",
                "--text",
                "50 % [x]",
                "--limit",
                "5",
                "--cursor",
                "c",
            ),
        ],
        {
            "state": ["ready", "running"],
            "group": "g",
            "labels": {"team": "ä&b"},
            "owner": "uid:0",
            "worker": "w",
            "text": "50 % [x]",
            "limit": 5,
            "cursor": "c",
        },
    ),
    "task_wait": (["build", "--group", "g", "--timeout-s", "2"], {**TASK, "timeout_s": 2.0}),
    "task_history": (["build", "--group", "g", "--limit", "9"], {**TASK, "limit": 9}),
    "task_runs": (["build", "--group", "g", "--cursor", "c"], {**TASK, "cursor": "c"}),
    "task_cancel": (
        ["build", "--group", "g", "--reason", "no", "--cascade"],
        {**TASK, "reason": "no", "cascade": True},
    ),
    "task_retry": (["build", "--group", "g", "--upstream"], {**TASK, "upstream": True}),
    "task_update": (
        [
            *("build", "--group", "g", "--priority", "-5", "--title", "T", "--expect-version", "4"),
            *(
                "--changes",
                '{"role": null}',
                "--depends-on",
                "a?x.y>=80",
                "--retry",
                '{"factor": 3.0}',
            ),
        ],
        {
            **TASK,
            "expect_version": 4,
            "changes": {
                "role": None,
                "priority": -5,
                "title": "T",
                "depends_on": [
                    {"task": "a", "where": {"field": "x.y", "op": "ge", "value": 80}},
                ],
                "retry": {"factor": 3.0},
            },
        },
    ),
    "task_delete": (["build", "--group", "g", "--cascade"], {**TASK, "cascade": True}),
    "task_extend": (
        [*HELD_WORDS, "--children", '[{"key": "c"}]', "--successors", "@after.json"],
        {**HELD, "children": [{"key": "c"}], "successors": [{"key": "s", "before": ["z"]}]},
    ),
    "task_claim": (
        [
            *("--worker", "w", "--capability", "a", "--role", "r", "--group", "g", "--group", "h"),
            *("--count", "2", "--lease-s", "9", "--wait-s", "0.5"),
        ],
        {
            "worker": "w",
            "capabilities": ["a"],
            "roles": ["r"],
            "groups": ["g", "h"],
            "count": 2,
            "lease_s": 9.0,
            "wait_s": 0.5,
        },
    ),
    "task_heartbeat": (
        [*HELD_WORDS, "--fraction", "0.5", "--message", "half", "--lease-s", "60"],
        {**HELD, "progress": {"fraction": 0.5, "message": "half"}, "lease_s": 60.0},
    ),
    "task_complete": (
        [*HELD_WORDS, "--result", "@after.json"],
        {**HELD, "result": [{"key": "s", "before": ["z"]}]},
    ),
    "task_fail": (
        [*HELD_WORDS, "--message", "m", "--code", "c", "--detail", "[1]", "--no-retryable"],
        {**HELD, "message": "m", "code": "c", "detail": [1], "retryable": False},
    ),
    "task_release": (
        [*HELD_WORDS, "--reason", "r", "--delay-s", "5"],
        {**HELD, "reason": "r", "delay_s": 5.0},
    ),
    "group_list": (["--limit", "3"], {"limit": 3}),
    "group_get": (["g"], {"group": "g"}),
    "group_tasks": (["g", "--limit", "1000"], {"group": "g", "limit": 1000}),
    "group_report": (["g"], {"group": "g"}),
    "group_cancel": (
        ["g", "--label", "a=b", "--reason", "r"],
        {"group": "g", "labels": {"a": "b"}, "reason": "r"},
    ),
    "group_retry": (["g", "--label", "a=b"], {"group": "g", "labels": {"a": "b"}}),
    "group_prioritize": (
        ["g", "high", "--label", "a=b"],
        {"group": "g", "priority": "high", "labels": {"a": "b"}},
    ),
    "plan_tasks": (
        ["@tasks.md", "@notes.md", "--infer-files"],
        {"documents": [TODO, {"name": "notes.md", "text": ""}], "infer_files": True},
    ),
    "plan_submit": (
        [
            *("@tasks.md", "--group", "g", "--repo", "site", "--image", "node", "--kind", "agent"),
            *("--label", "a=b", "--priority", "high", "--capability", "gpu", "--role", "builder"),
            *("--infer-files", "--idempotency-key", "k"),
        ],
        {
            "documents": [TODO],
            "group": "g",
            "repo": "site",
            "image": "node",
            "kind": "agent",
            "labels": {"a": "b"},
            "priority": "high",
            "capabilities": ["gpu"],
            "role": "builder",
            "infer_files": True,
            "idempotency_key": "k",
        },
    ),
    "template_save": (["@graph.toml", "--name", "n"], {**TREE, "name": "n"}),
    "template_get": (["n", "--version", "2"], {"name": "n", "version": 2}),
    "template_list": ([], {}),
    "template_delete": (["n", "--version", "2"], {"name": "n", "version": 2}),
    "template_preview": (
        ["n", "--parameters", '{"version": "1"}', "--group", "g"],
        {"name": "n", "parameters": {"version": "1"}, "group": "g"},
    ),
    "template_run": (
        [
            *("n", "--version", "2", "--param", "replicas=3", "--param", "version=1.10"),
            *("--param", "dry=true", "--param", "hosts=a", "--param", "hosts=b=c"),
            *("--parameters", '{"more": 1}', "--group", "g", "--idempotency-key", "k"),
        ],
        {
            "name": "n",
            "version": 2,
            "parameters": {
                "more": 1,
                "replicas": 3,
                "version": "1.10",
                "dry": True,
                "hosts": ["a", "b=c"],
            },
            "group": "g",
            "idempotency_key": "k",
        },
    ),
    "worker_register": (
        ["--worker", "w", "--capability", "a", "--role", "r", "--label", "k=v", "--ttl-s", "9"],
        {"worker": "w", "capabilities": ["a"], "roles": ["r"], "labels": {"k": "v"}, "ttl_s": 9.0},
    ),
    "worker_heartbeat": (["--worker", "w"], {"worker": "w"}),
    "worker_get": (["w"], {"worker": "w"}),
    "worker_list": (["--limit", "1"], {"limit": 1}),
    "worker_drain": (["w", "--no-draining"], {"worker": "w", "draining": False}),
    "worker_remove": (["w"], {"worker": "w"}),
    "event_wait": (
        [
            *("--after", "now", "--kind", "task.*", "--group", "g", "--subject", "t_1"),
            *("--timeout-s", "0.5", "--limit", "7"),
        ],
        {
            "after": "now",
            "kinds": ["task.*"],
            "groups": ["g"],
            "subjects": ["t_1"],
            "timeout_s": 0.5,
            "limit": 7,
        },
    ),
    "audit_list": (
        [
            *("--actor", "a", "--action", "task_cancel", "--target", "t", "--outcome", "ok"),
            *("--since", "2026-11-21T00:00:00Z", "--limit", "2"),
        ],
        {
            "actor": "a",
            "action": "task_cancel",
            "target": "t",
            "outcome": "ok",
            "since": "2026-11-21T00:00:00Z",
            "limit": 2,
        },
    ),
    "webhook_create": (
        [
            *("https://ci.example/hook", "--kind", "task.done", "--group", "g", "--no-active"),
            *("--shape", "job", "--description", "d", "--secret-file", "@secret"),
            *("--idempotency-key", "k"),
        ],
        {
            "url": "https://ci.example/hook",
            "kinds": ["task.done"],
            "groups": ["g"],
            "shape": "job",
            "active": False,
            "description": "d",
            "secret": "0123456789abcdef",
            "idempotency_key": "k",
        },
    ),
    "webhook_get": (["whk_1"], {"webhook_id": "whk_1"}),
    "webhook_list": ([], {}),
    "webhook_update": (
        ["whk_1", "--url", "http://x", "--active"],
        {"webhook_id": "whk_1", "url": "http://x", "active": True},
    ),
    "webhook_delete": (["whk_1"], {"webhook_id": "whk_1"}),
    "webhook_test": (["whk_1"], {"webhook_id": "whk_1"}),
    "delivery_list": (
        ["--webhook-id", "whk_1", "--state", "dead"],
        {"webhook_id": "whk_1", "state": "dead"},
    ),
    "delivery_retry": (["dlv_1"], {"delivery_id": "dlv_1"}),
    "token_create": (
        [
            *("w", "worker", "--scope-label", "team=a", "--scope-label", "team=b", "--no-own"),
            *("--expires-in-s", "60", "--idempotency-key", "k"),
        ],
        {
            "name": "w",
            "role": "worker",
            "scope": {"labels": {"team": ["a", "b"]}, "own": False},
            "expires_in_s": 60.0,
            "idempotency_key": "k",
        },
    ),
    "token_list": ([], {}),
    "token_revoke": (["tok_1"], {"token_id": "tok_1"}),
    "credential_set": (
        ["work", "openai-api-key", "--value-file", "@secret"],
        {"name": "work", "kind": "openai-api-key", "value": "0123456789abcdef"},
    ),
    "credential_list": ([], {}),
    "credential_remove": (["work"], {"name": "work"}),
    "whoami": ([], {}),
    "metrics_get": (["--window-s", "60", "--group", "g"], {"window_s": 60.0, "group": "g"}),
    "doctor_run": ([], {}),
    "backup_create": (["/backup/x"], {"path": "/backup/x"}),
}
ONE_WORD = {"whoami", "metrics_get", "doctor_run"}
FILES = {
    "graph.toml": '[[tasks]]\nkey = "a"\n[[tasks]]\nkey = "b"\ndepends_on = ["a"]\n',
    "after.json": '[{"key": "s", "before": ["z"]}]',
    "secret": "0123456789abcdef\n",
    "tasks.md": TODO["text"],
    "notes.md": "",
    "trio.yaml": "cluster_name: trio\n",
}


def words_of(call: str, folder: Path) -> list[str]:
    noun, _, verb = call.partition("_")
    first = [noun] if call in ONE_WORD else [*SPOKEN.get(call, (noun, verb))]
    words = [*first, *SAMPLES[call][0]]
    # A file is named as it is where a file is meant, and after @ where JSON may stand too.
    found: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        name = word.removeprefix("@")
        if name == word or name not in FILES:
            found.append(word)
        else:
            mark = "@" if before in {"--successors", "--result"} else ""
            found.append(f"{mark}{folder / name}")
    return found


def received(call: Call, asked: Asked) -> object:
    """Read a request as the daemon does."""
    layout = Layout(call)
    parts = urlsplit(asked.target)
    pattern = re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", call.path)
    found = re.fullmatch(pattern, parts.path)
    assert found, f"{asked.target} is not at {call.path}"
    assert asked.method == call.method
    arguments = layout.from_path({name: unquote(text) for name, text in found.groupdict().items()})
    if layout.has_body:
        assert asked.headers["content-type"] == "application/json"
        arguments |= json.loads(asked.body)
    else:
        assert asked.body == b""
        arguments |= layout.from_query(parse_qsl(parts.query, keep_blank_values=True))
    return parse(call.request, arguments)


def test_there_is_a_sample_of_every_call() -> None:
    assert set(SAMPLES) == {call.name for call in CALLS}


@pytest.mark.parametrize("call", SAMPLES)
def test_a_command_asks_for_what_its_words_say(call: str, tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)

    def answer(asked: Asked) -> tuple[int, dict[str, Any]]:
        if asked.method == "GET" and call == "template_run":
            return 200, {"parameters": DECLARED}
        return REFUSED

    words = words_of(call, tmp_path)
    # What is behind it is for a program.
    at = words.index("--") if "--" in words else len(words)
    with answering(tmp_path / "socket", answer) as here:
        status = run([*words[:at], "--socket", str(here.socket), *words[at:]])
    assert status == failure.INVALID
    declared = BY_NAME[call]
    expected = parse(declared.request, SAMPLES[call][1])
    assert received(declared, here.asked[-1]) == expected

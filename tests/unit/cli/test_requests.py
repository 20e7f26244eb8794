from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from answering import REFUSED, Asked, answering
from commands import run
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
TASK: dict[str, Any] = {"task_id": "build", "group": "g"}
HELD = {**TASK, "token": 3, "worker": "w"}
HELD_WORDS = ["build", "--group", "g", "--token", "3", "--worker", "w"]

# A command, and what its call has to receive.
SAMPLES: dict[str, tuple[list[str], dict[str, Any]]] = {
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
    "machine_define": (
        [
            *("box", "--image", "node", "--memory-mib", "1024", "--vcpus", "2"),
            *("--disk-mib", "64", "--accel", "tcg", "--idempotency-key", "k"),
            *("--cache", "repo", "--network", "lan", "--network", "lab=10.9.0.7"),
            *("--max-pids", "100", "--max-disk-operations-s", "50"),
            *("--max-disk-bytes-s", "1048576"),
        ],
        {
            "name": "box",
            "image": "node",
            "memory_mib": 1024,
            "vcpus": 2,
            "disk_mib": 64,
            "accel": "tcg",
            "cache": "repo",
            "networks": ["lan", "lab=10.9.0.7"],
            "max_pids": 100,
            "max_disk_operations_s": 50,
            "max_disk_bytes_s": 1048576,
            "idempotency_key": "k",
        },
    ),
    "machine_run": (
        [
            *("--deterministic", "7", "--file", "empty=/dev/null", "--stdin", "/dev/null"),
            *("--image", "node", "--memory-mib", "256", "--timeout-s", "60", "--no-queue"),
            *("--output-cap", "9", "--wait-s", "0", "--script", "cat empty"),
        ],
        {
            "deterministic": 7,
            "script": "cat empty",
            "stdin_base64": "",
            "files_base64": {"empty": ""},
            "image": "node",
            "memory_mib": 256,
            "timeout_s": 60.0,
            "queue": False,
            "output_cap": 9,
            "wait_s": 0.0,
        },
    ),
    "machine_get": (["box"], {"machine": "box"}),
    "machine_list": (
        ["--state", "running", "--state", "paused", "--limit", "2", "--cursor", "c"],
        {"state": ["running", "paused"], "limit": 2, "cursor": "c"},
    ),
    "machine_start": (
        ["box", "--no-queue", "--wait-s", "0"],
        {"machine": "box", "queue": False, "wait_s": 0.0},
    ),
    "machine_stop": (
        ["box", "--grace-s", "1.5", "--wait-s", "2"],
        {"machine": "box", "grace_s": 1.5, "wait_s": 2.0},
    ),
    "machine_kill": (["box"], {"machine": "box"}),
    "machine_pause": (["box"], {"machine": "box"}),
    "machine_resume": (["box"], {"machine": "box"}),
    "machine_delete": (["box"], {"machine": "box"}),
    "machine_usage": (["box"], {"machine": "box"}),
    "machine_console": (
        ["box", "--offset", "0", "--limit", "9", "--timeout-s", "1"],
        {"machine": "box", "offset": 0, "limit": 9, "timeout_s": 1.0},
    ),
    "machine_branch": (
        ["s_1", "--count", "4", "--name", "try", "--wait-s", "0"],
        {"source": "s_1", "count": 4, "name": "try", "wait_s": 0.0},
    ),
    "machine_exec": (
        [
            *("box", "--env", "A=b=c", "--cwd", "/src", "--user", "1000:1000"),
            *("--timeout-s", "9", "--output-cap", "10", "--wait-s", "0", "--exec-id", "build"),
            *("make", "all", ""),
        ],
        {
            "machine": "box",
            "argv": ["make", "all", ""],
            "env": {"A": "b=c"},
            "cwd": "/src",
            "user": "1000:1000",
            "timeout_s": 9.0,
            "output_cap": 10,
            "wait_s": 0.0,
            "exec_id": "build",
        },
    ),
    "exec_wait": (["x_1", "--timeout-s", "3"], {"exec_id": "x_1", "timeout_s": 3.0}),
    "exec_output": (
        ["x_1", "--offset", "4", "--limit", "5", "--timeout-s", "1"],
        {"exec_id": "x_1", "offset": 4, "limit": 5, "timeout_s": 1.0},
    ),
    "exec_input": (
        ["x_1", "--data", "yes", "--end"],
        {"exec_id": "x_1", "data": "yes", "end": True},
    ),
    "exec_signal": (["x_1", "INT"], {"exec_id": "x_1", "signal": "INT"}),
    "exec_list": (
        ["--machine", "box", "--state", "lost", "--limit", "2", "--cursor", "c"],
        {"machine": "box", "state": "lost", "limit": 2, "cursor": "c"},
    ),
    "file_put": (
        ["box", "/a", "--content", "x", "--mode", "0600", "--parents", "--user", "dev"],
        {
            "machine": "box",
            "path": "/a",
            "content": "x",
            "mode": "0600",
            "parents": True,
            "user": "dev",
        },
    ),
    "file_get": (["box", "/a", "--max-size", "9"], {"machine": "box", "path": "/a", "max_size": 9}),
    "snapshot_create": (["box", "--wait-s", "0"], {"machine": "box", "wait_s": 0.0}),
    "snapshot_get": (["s_1"], {"snapshot_id": "s_1"}),
    "snapshot_list": (
        ["--machine", "box", "--limit", "2", "--cursor", "c"],
        {"machine": "box", "limit": 2, "cursor": "c"},
    ),
    "snapshot_verify": (["s_1", "--wait-s", "0"], {"snapshot_id": "s_1", "wait_s": 0.0}),
    "snapshot_delete": (["s_1"], {"snapshot_id": "s_1"}),
    "image_build": (
        [
            *("--name", "x", "--with", "nodejs,npm", "--with", "jq"),
            *("--claude", "1.2.3", "--wait-s", "0"),
        ],
        {"name": "x", "packages": ["nodejs", "npm", "jq"], "claude": "1.2.3", "wait_s": 0.0},
    ),
    "image_add": (
        [
            *("slot", "/srv/runner", "--ssh-user", "root"),
            *("--ssh-host-key", "ssh-ed25519 AAAA", "--wait-s", "0"),
        ],
        {
            "name": "slot",
            "runner": "/srv/runner",
            "ssh_user": "root",
            "ssh_host_key": "ssh-ed25519 AAAA",
            "wait_s": 0.0,
        },
    ),
    "image_list": ([], {}),
    "image_get": (["x"], {"image": "x"}),
    "pool_list": ([], {}),
    "slot_list": ([], {}),
    "forward_add": (
        ["box", "80", "--host", "127.0.0.1:81", "--direction", "to_host"],
        {"machine": "box", "guest": "80", "host": "127.0.0.1:81", "direction": "to_host"},
    ),
    "forward_list": (["--machine", "box"], {"machine": "box"}),
    "forward_remove": (["f_1"], {"forward_id": "f_1"}),
    "network_create": (
        ["lan", "--prefix", "10.9.0.0/24", "--prefix", "fd09::/64"],
        {"name": "lan", "prefixes": ["10.9.0.0/24", "fd09::/64"]},
    ),
    "network_get": (["lan"], {"network": "lan"}),
    "network_list": ([], {}),
    "network_remove": (["lan"], {"network": "lan"}),
    "cache_list": (["--domain", "repo"], {"domain": "repo"}),
    "cache_remove": (["repo@ann", "--number", "2"], {"domain": "repo@ann", "number": 2}),
    "image_verify": (["x"], {"image": "x"}),
    "image_remove": (["x"], {"image": "x"}),
    "operation_get": (["op_1"], {"operation_id": "op_1"}),
    "operation_wait": (
        ["op_1", "--timeout-s", "3"],
        {"operation_id": "op_1", "timeout_s": 3.0},
    ),
    "operation_list": (
        [
            *("--state", "running", "--kind", "image_build", "--target", "x"),
            *("--limit", "2", "--cursor", "c"),
        ],
        {"state": "running", "kind": "image_build", "target": "x", "limit": 2, "cursor": "c"},
    ),
    "operation_cancel": (["op_1"], {"operation_id": "op_1"}),
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
            *("--description", "d", "--secret-file", "@secret", "--idempotency-key", "k"),
        ],
        {
            "url": "https://ci.example/hook",
            "kinds": ["task.done"],
            "groups": ["g"],
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
}


def words_of(call: str, folder: Path) -> list[str]:
    noun, _, verb = call.partition("_")
    first = [noun] if call in ONE_WORD else [noun, verb]
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

    with answering(tmp_path / "socket", answer) as here:
        status = run([*words_of(call, tmp_path), "--socket", str(here.socket)])
    assert status == failure.INVALID
    declared = BY_NAME[call]
    expected = parse(declared.request, SAMPLES[call][1])
    assert received(declared, here.asked[-1]) == expected

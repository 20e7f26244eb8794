"""Commands about runs, and what each asks the daemon for.

`unit/cli/test_requests.py` runs them beside its own, and says what the parts of a sample are.
"""

from __future__ import annotations

from typing import Any

# Artifacts that are trees.
TREE, OTHER_TREE = "0f" * 32, f"sha256:{'a5' * 32}"

SAMPLES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "run_start": (
        [
            *("--repo", "site", "--prompt", "do it", "--script", "true", "--title", "T"),
            *("--interpreter", "bash", "--interpreter", "-e", "--key", "k", "--group", "g"),
            *("--depends-on", "a", "--priority", "high", "--label", "a=b", "--base", "main"),
            *("--into", "next", "--uncommitted", "--merge", "squash", "--rest", "commit"),
            *("--artifact", "dist/", "--artifact", "**/*.xml"),
            *("--check", "make test"),
            *("--driver", "codex", "--model", "m", "--system-prompt", "be brief"),
            *("--max-turns", "9", "--mcp-servers", '{"x": {}}', "--answer-schema", "{}"),
            *("--wall-s", "90", "--cpu-s", "45.5", "--tokens", "1000", "--cost-usd", "0.5"),
            *("--egress", "a.org", "--credential", "work"),
            *("--file", "lib=artifact:build/dist/lib.a"),
            *("--file", "empty=/dev/null", "--env", "A=1", "--image", "node"),
            *("--memory-mib", "512", "--vcpus", "2", "--disk-mib", "64", "--timeout-s", "60"),
            *("--devshell", "never", "--keep-machine", "--idempotency-key", "i"),
            *("--", "make", "-k"),
        ],
        {
            "repo": "site",
            "prompt": "do it",
            "script": "true",
            "argv": ["make", "-k"],
            "interpreter": ["bash", "-e"],
            "title": "T",
            "key": "k",
            "group": "g",
            "depends_on": ["a"],
            "priority": "high",
            "labels": {"a": "b"},
            "base": "main",
            "into": "next",
            "uncommitted": True,
            "merge": "squash",
            "check": "make test",
            "rest": "commit",
            "artifacts": ["dist/", "**/*.xml"],
            "driver": "codex",
            "model": "m",
            "system_prompt": "be brief",
            "max_turns": 9,
            "mcp_servers": {"x": {}},
            "answer_schema": {},
            "wall_s": 90.0,
            "cpu_s": 45.5,
            "tokens": 1000,
            "cost_usd": 0.5,
            "egress": ["a.org"],
            "credentials": ["work"],
            "files": [
                {"path": "lib", "artifact": "build/dist/lib.a"},
                {"path": "empty", "base64": ""},
            ],
            "env": {"A": "1"},
            "image": "node",
            "memory_mib": 512,
            "vcpus": 2,
            "disk_mib": 64,
            "timeout_s": 60.0,
            "devshell": "never",
            "keep_machine": True,
            "idempotency_key": "i",
        },
    ),
    "task_resume": (
        [
            *("build", "--group", "g", "--wall-s", "120", "--cpu-s", "60.5"),
            *("--tokens", "2000", "--cost-usd", "1.5"),
        ],
        {
            "task_id": "build",
            "group": "g",
            "wall_s": 120.0,
            "cpu_s": 60.5,
            "tokens": 2000,
            "cost_usd": 1.5,
        },
    ),
    "run_approve": (
        ["build", "--group", "g", "--message", "fine"],
        {"task_id": "build", "group": "g", "message": "fine"},
    ),
    "run_reject": (
        ["build", "--group", "g", "--message", "no"],
        {"task_id": "build", "group": "g", "message": "no"},
    ),
    "run_merge": (["build", "--group", "g"], {"task_id": "build", "group": "g"}),
    "merge_resolve": (
        [
            *("build", "--group", "g", "--prompt", "keep both", "--script", "true"),
            *("--driver", "codex", "--model", "m", "--max-turns", "9", "--tokens", "1000"),
            *("--cost-usd", "0.5", "--egress", "a.org", "--image", "node"),
            *("--memory-mib", "512", "--timeout-s", "60", "--idempotency-key", "i"),
            *("--", "make", "-k"),
        ],
        {
            "task_id": "build",
            "group": "g",
            "prompt": "keep both",
            "script": "true",
            "argv": ["make", "-k"],
            "driver": "codex",
            "model": "m",
            "max_turns": 9,
            "tokens": 1000,
            "cost_usd": 0.5,
            "egress": ["a.org"],
            "image": "node",
            "memory_mib": 512,
            "timeout_s": 60.0,
            "idempotency_key": "i",
        },
    ),
    "run_get": (["build", "--group", "g"], {"task_id": "build", "group": "g"}),
    "run_list": (
        ["--state", "over", "--limit", "5", "--cursor", "c"],
        {"state": "over", "limit": 5, "cursor": "c"},
    ),
    "run_output": (
        ["build", "--group", "g", "--offset", "7", "--limit", "9", "--timeout-s", "0.5"],
        {"task_id": "build", "group": "g", "offset": 7, "limit": 9, "timeout_s": 0.5},
    ),
    "artifact_list": (
        ["build", "--group", "g", "--attempt", "2"],
        {"task_id": "build", "group": "g", "attempt": 2},
    ),
    "artifact_get": (
        ["build", "a.log", "--group", "g", "--attempt", "2", "--offset", "7", "--limit", "9"],
        {
            "task_id": "build",
            "artifact": "a.log",
            "group": "g",
            "attempt": 2,
            "offset": 7,
            "limit": 9,
        },
    ),
    "artifact_register": (
        [
            *("/srv/driver", "--build-type", "deb", "--kernel-version", "6.1.0-37-amd64"),
            *("--test-framework-path", "tests", "--metadata", '{"n": 1}', "--wait-s", "0"),
        ],
        {
            "path": "/srv/driver",
            "build_type": "deb",
            "kernel_version": "6.1.0-37-amd64",
            "test_framework_path": "tests",
            "metadata": {"n": 1},
            "wait_s": 0.0,
        },
    ),
    "artifact_trees": (["--limit", "2", "--cursor", "c"], {"limit": 2, "cursor": "c"}),
    "artifact_show": (
        [TREE, "--offset", "7", "--limit", "9"],
        {"artifact_id": TREE, "offset": 7, "limit": 9},
    ),
    "artifact_diff": ([TREE, OTHER_TREE], {"artifact_id": TREE, "other": OTHER_TREE}),
    "artifact_remove": ([TREE], {"artifact_id": TREE}),
    "run_diff": (
        ["build", "--group", "g", "--limit", "9"],
        {"task_id": "build", "group": "g", "limit": 9},
    ),
}

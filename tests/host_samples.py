"""Commands about machines, images, networks and repositories, and what each asks the daemon for.

`unit/cli/test_requests.py` runs them beside its own, and says what the parts of a sample are.
"""

from __future__ import annotations

from typing import Any

# What a repository's runs have where their tasks say nothing.
SETTINGS: dict[str, Any] = {
    "branch": "main",
    "image": "node",
    "memory_mib": 512,
    "vcpus": 2,
    "disk_mib": 64,
    "timeout_s": 60.0,
    "driver": "codex",
    "model": "m",
    "merge": "squash",
    "check": "make test",
    "checkout": "leave",
    "devshell": "never",
    "rest": "commit",
    "egress": ["a.org", "*.b.org"],
}

SAMPLES: dict[str, tuple[list[str], dict[str, Any]]] = {
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
    "kernel_log_mark": (["box"], {"machine": "box"}),
    "kernel_log_collect": (
        ["box", "--since", "m", "--level", "warn+", "--limit", "9"],
        {"machine": "box", "since": "m", "level": "warn+", "limit": 9},
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
    "repo_add": (
        [
            *("/srv/site", "--alias", "site", "--branch", "main", "--image", "node"),
            *("--memory-mib", "512", "--vcpus", "2", "--disk-mib", "64", "--timeout-s", "60"),
            *("--driver", "codex", "--model", "m", "--merge", "squash", "--checkout", "leave"),
            *("--check", "make test"),
            *(
                "--devshell",
                "never",
                "--rest",
                "commit",
                "--egress",
                "a.org",
                "--egress",
                "*.b.org",
            ),
        ],
        {"path": "/srv/site", "alias": "site", **SETTINGS},
    ),
    "repo_update": (
        [
            *("site", "--alias", "web", "--path", "/srv/web", "--branch", "main"),
            *("--image", "node", "--memory-mib", "512", "--vcpus", "2", "--disk-mib", "64"),
            *("--timeout-s", "60", "--driver", "codex", "--model", "m", "--merge", "squash"),
            *("--checkout", "leave", "--devshell", "never", "--rest", "commit"),
            *("--check", "make test"),
            *("--egress", "a.org", "--egress", "*.b.org", "--unset", "image", "--unset", "vcpus"),
        ],
        {
            "repo": "site",
            "alias": "web",
            "path": "/srv/web",
            **SETTINGS,
            "unset": ["image", "vcpus"],
        },
    ),
    "repo_get": (["site"], {"repo": "site"}),
    "repo_list": (["--limit", "5", "--cursor", "c"], {"limit": 5, "cursor": "c"}),
    "repo_remove": (["site", "--drop-unmerged"], {"repo": "site", "drop_unmerged": True}),
}

"""Commands about clusters and their nodes, and what each asks the daemon for.

`unit/cli/test_requests.py` runs them beside its own, and says what the parts of a sample are.
"""

from __future__ import annotations

from typing import Any

TREE = "0f" * 32

SAMPLES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "cluster_define": (["--file", "@trio.yaml"], {"topology": "cluster_name: trio\n"}),
    "cluster_schema": ([], {}),
    "cluster_list": (["--limit", "2", "--cursor", "c"], {"limit": 2, "cursor": "c"}),
    "cluster_status": (["trio"], {"cluster": "trio"}),
    "cluster_handle": (["trio", "--key"], {"cluster": "trio", "key": True}),
    "kernel_log_events": (["trio", "--off"], {"cluster": "trio", "off": True}),
    "cluster_start": (["trio", "--wait-s", "0"], {"cluster": "trio", "wait_s": 0.0}),
    "cluster_stop": (
        ["trio", "--mode", "destroy", "--deadline-s", "5", "--wait-s", "0"],
        {"cluster": "trio", "mode": "destroy", "deadline_s": 5.0, "wait_s": 0.0},
    ),
    "cluster_destroy": (
        ["trio", "--delete-disks", "--wait-s", "0"],
        {"cluster": "trio", "delete_disks": True, "wait_s": 0.0},
    ),
    "cluster_snapshot_create": (
        ["trio", "clean", "--no-memory", "--wait-s", "0"],
        {"cluster": "trio", "snapshot": "clean", "memory": False, "wait_s": 0.0},
    ),
    "cluster_snapshot_list": (["trio"], {"cluster": "trio"}),
    "cluster_snapshot_revert": (
        ["trio", "baseline", "--wait-s", "0"],
        {"cluster": "trio", "snapshot": "baseline", "wait_s": 0.0},
    ),
    "cluster_snapshot_delete": (["trio", "clean"], {"cluster": "trio", "snapshot": "clean"}),
    "cluster_snapshot_branch": (
        ["trio", "clean", "copy", "--wait-s", "0"],
        {"cluster": "trio", "snapshot": "clean", "name": "copy", "wait_s": 0.0},
    ),
    "node_exec": (
        [
            *("trio", "n1", "--stdin", "/dev/null", "--env", "A=1", "--cwd", "/", "--user", "dev"),
            *("--timeout-s", "9", "--output-cap", "10", "--exec-id", "x", "--", "ls", "-l"),
        ],
        {
            "cluster": "trio",
            "node": "n1",
            "argv": ["ls", "-l"],
            "stdin": "",
            "env": {"A": "1"},
            "cwd": "/",
            "user": "dev",
            "timeout_s": 9.0,
            "output_cap": 10,
            "exec_id": "x",
        },
    ),
    "node_exec_all": (
        [
            *("trio", "--node", "n1", "--node", "n2", "--script", "true", "--env", "A=1"),
            *("--cwd", "/", "--user", "dev", "--timeout-s", "9", "--output-cap", "10", "--any"),
        ],
        {
            "cluster": "trio",
            "nodes": ["n1", "n2"],
            "script": "true",
            "env": {"A": "1"},
            "cwd": "/",
            "user": "dev",
            "timeout_s": 9.0,
            "output_cap": 10,
            "require_all": False,
        },
    ),
    "node_crash": (
        ["trio", "n1", "--no-restart", "--wait-s", "0"],
        {"cluster": "trio", "node": "n1", "restart": False, "wait_s": 0.0},
    ),
    "cluster_artifact_sync": (
        ["trio", TREE, "--node", "n1", "--dest-base", "/srv/a", "--force", "--wait-s", "0"],
        {
            "cluster": "trio",
            "artifact_id": TREE,
            "nodes": ["n1"],
            "dest_base": "/srv/a",
            "force": True,
            "wait_s": 0.0,
        },
    ),
    "cluster_artifact_install": (
        [
            *("trio", TREE, "--node", "n1", "--node", "n2", "--dest-base", "/srv/a", "--load"),
            *("--mode", "modprobe_path", "--timeout-s", "9", "--wait-s", "0"),
        ],
        {
            "cluster": "trio",
            "artifact_id": TREE,
            "nodes": ["n1", "n2"],
            "dest_base": "/srv/a",
            "mode": "modprobe_path",
            "load": True,
            "timeout_s": 9.0,
            "wait_s": 0.0,
        },
    ),
    "node_source_sync": (
        ["trio", "n1", "/srv/driver", "/srv/there", "--wait-s", "0"],
        {
            "cluster": "trio",
            "node": "n1",
            "local_path": "/srv/driver",
            "remote_path": "/srv/there",
            "wait_s": 0.0,
        },
    ),
    "node_source_build": (
        [
            *("trio", "n1", "/srv/there", "make all", "--binary", "out/x.ko", "--env", "A=1"),
            *("--timeout-s", "9", "--wait-s", "0"),
        ],
        {
            "cluster": "trio",
            "node": "n1",
            "path": "/srv/there",
            "command": "make all",
            "binary": "out/x.ko",
            "env": {"A": "1"},
            "timeout_s": 9.0,
            "wait_s": 0.0,
        },
    ),
}

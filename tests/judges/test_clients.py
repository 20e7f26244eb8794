"""Clients other people wrote, against our front door: they list, they call, they connect."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from judges.host import host
from judges.tools import CLAUDE, NODE_TOOLS, PYTHON_TOOLS, judged
from microvm_orchestrator.service.table import BY_NAME

if TYPE_CHECKING:
    from judges.tools import Verdict

pytestmark = pytest.mark.anyio

COMMAND = Path(sys.executable).with_name("microvm-orchestrator")
# No account, no telemetry, no updates: Claude Code then talks to nobody but us.
ALONE = {
    "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    "DISABLE_AUTOUPDATER": "1",
    "DISABLE_TELEMETRY": "1",
    "DISABLE_ERROR_REPORTING": "1",
}


async def inspected(url: str, *arguments: str) -> Verdict:
    return await judged(
        [str(NODE_TOOLS / "mcp-inspector"), "--cli", url, "--transport", "http", *arguments]
    )


@pytest.mark.parametrize("profile", ["", "/profiles/orchestrator-server"])
async def test_every_schema_is_portable_by_the_inspectors_strict_lint(
    tmp_path: Path, profile: str
) -> None:
    async with host(tmp_path, fixtures=False) as ours:
        verdict = await inspected(ours.url + profile, "--method", "tools/list", "--strict")

    assert verdict.status == 0, verdict.complained
    assert "Warning" not in verdict.complained
    names = [tool["name"] for tool in json.loads(verdict.said)["tools"]]
    assert profile or names == list(BY_NAME)


async def test_the_inspector_calls_a_tool_and_sees_a_refusal_as_one(tmp_path: Path) -> None:
    call = ("--method", "tools/call", "--tool-name", "task_get", "--tool-arg")
    async with host(tmp_path, fixtures=False) as ours:
        found = await inspected(ours.url, *call, "task_id=a")
        missing = await inspected(ours.url, *call, "task_id=nowhere")

    assert json.loads(found.said)["structuredContent"]["state"] == "ready"
    # Its exit status for a result that is an error.
    assert missing.status == 5
    assert "not-found: " in missing.said


async def test_fastmcps_client_lists_and_calls(tmp_path: Path) -> None:
    fastmcp = str(PYTHON_TOOLS / "fastmcp")
    async with host(tmp_path, fixtures=False) as ours:
        listed = await judged([fastmcp, "list", ours.url, "--json"])
        called = await judged([fastmcp, "call", ours.url, "task_get", "task_id=a", "--json"])

    assert {tool["name"] for tool in json.loads(listed.said)["tools"]} == set(BY_NAME)
    assert json.loads(called.said)["structured_content"]["key"] == "a"


async def test_claude_code_connects_through_the_bridge(tmp_path: Path) -> None:
    env = {**ALONE, "CLAUDE_CONFIG_DIR": str(tmp_path / "claude"), "HOME": str(tmp_path)}
    env["TMPDIR"] = str(tmp_path)  # it leaves a folder there
    async with host(tmp_path, fixtures=False) as ours:
        bridge = [str(COMMAND), "connect", "--socket", str(ours.socket)]
        added = await judged(
            [str(CLAUDE), "mcp", "add", "orchestrator", "--", *bridge], env=env, cwd=tmp_path
        )
        listed = await judged([str(CLAUDE), "mcp", "list"], env=env, cwd=tmp_path)

    assert added.status == 0, added.complained
    (line,) = [line for line in listed.said.splitlines() if line.startswith("orchestrator:")]
    assert line.endswith("✔ Connected"), listed.said

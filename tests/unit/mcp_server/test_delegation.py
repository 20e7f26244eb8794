"""What the profile `delegation` promises before there is a machine; the rest is a system test's."""

from __future__ import annotations

import base64
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import PATIENCE_S, house
from mcp_peer import ALICE, Peer, connected
from microvm_orchestrator.cli.connect import SETTINGS
from microvm_orchestrator.mcp_server.profiles import manifest as manifests
from microvm_orchestrator.mcp_server.profiles.manifest import JobManifest
from microvm_orchestrator.mcp_server.server import McpFrontEnd
from microvm_orchestrator.model.run import RunSpec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

PROFILE = "delegation"
JOB: dict[str, Any] = {"task": "true", "agentType": "script"}


@dataclass
class Client:
    """A client of that program: gives what a tool returned, or the sentence it was refused with."""

    peer: Peer

    async def __call__(self, tool: str, **arguments: object) -> Any:
        result = await self.peer.call(tool, **arguments)
        (block,) = result["content"]
        return block["text"] if result["isError"] else json.loads(block["text"])

    async def ended(self, job: str) -> dict[str, Any]:
        with anyio.fail_after(PATIENCE_S):
            while (told := await self("get_job_status", job_id=job))["status"] not in {
                "success",
                "failed",
                "timeout",
            }:
                pass  # a poll is all that this client has
        return told


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Client]:
    async with place(tmp_path) as client:
        yield client


@asynccontextmanager
async def place(path: Path) -> AsyncGenerator[Client]:
    async with house(path) as kept:
        front = McpFrontEnd(kept.service)
        async with front.running(), connected(front, ALICE, PROFILE) as peer:
            yield Client(peer)


async def test_the_five_tools_have_their_names_and_parameters(client: Client) -> None:
    tools = (await client.peer.ask("tools/list"))["tools"]
    parameters = {
        tool["name"]: (
            set(tool["inputSchema"].get("properties", {})),
            set(tool["inputSchema"].get("required", [])),
        )
        for tool in tools
    }
    assert parameters == {
        "submit_job": ({"manifest"}, {"manifest"}),
        "get_job_status": ({"job_id"}, {"job_id"}),
        "get_job_result": ({"job_id"}, {"job_id"}),
        "cancel_job": ({"job_id"}, {"job_id"}),
        "list_jobs": ({"status"}, set()),
    }


async def test_nobody_knows_a_job_that_was_never_submitted(client: Client) -> None:
    assert await client("list_jobs") == []
    for tool in ("get_job_status", "get_job_result", "cancel_job"):
        assert await client(tool, job_id="2f1b0c6e-0000-4000-8000-000000000000") == "Job not found"


async def test_a_job_whose_machine_cannot_be_made_has_failed_and_says_why(client: Client) -> None:
    job = (await client("submit_job", manifest=JOB))["job_id"]
    told = await client.ended(job)
    assert told["status"] == "failed"
    assert told["error"].startswith("Provisioning failed: ")
    result = await client("get_job_result", job_id=job)
    assert (result["status"], result["error"]) == ("failed", told["error"])
    [listed] = await client("list_jobs", status="failed")
    assert (listed["job_id"], listed["task"]) == (job, "true")
    assert await client("list_jobs", status="success") == []
    assert await client("cancel_job", job_id=job) == "Job already completed"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"task": ""}, "task: "),
    ({"task": None}, "task: "),
    ({"agentType": "other"}, "agentType: "),
    ({"resources": {"cpu": 0}}, "resources.cpu: "),
    ({"resources": {"cpu": 33}}, "resources.cpu: "),
    ({"resources": {"memory": "2GB"}}, "resources.memory: "),
    ({"resources": {"disk": "1.5G"}}, "resources.disk: "),
    ({"timeout": 0}, "timeout: "),
    ({"timeout": 86_401}, "timeout: "),
    ({"files": [{"path": "a", "content": "no base64!"}]}, "files.0.content: "),
    ({"files": [{"path": "a"}]}, "files.0.content: "),
    ({"lifecycle": "for ever"}, "lifecycle: "),
    ({"secrets": ["a"]}, "no credential a"),
    ({"env": {"a=b": "c"}}, "env.a=b"),
]


async def test_a_manifest_that_is_not_as_it_should_be_is_refused(client: Client) -> None:
    for wrong, told in WRONG:
        refusal = await client("submit_job", manifest={**JOB, **wrong})
        assert refusal.startswith(f"Invalid manifest: {told}"), refusal
    assert await client("list_jobs") == []


async def test_without_a_manifest_there_is_no_job(client: Client) -> None:
    assert (await client("submit_job")).startswith("Invalid manifest: ")


async def test_an_unknown_tool_is_an_unknown_method(client: Client) -> None:
    refusal = await client.peer.refused("tools/call", name="stream_job_output", arguments={})
    assert refusal == {"code": -32601, "message": "Unknown tool: stream_job_output"}


def run_of(settings: dict[str, str] | None = None, **more: Any) -> RunSpec:
    manifest = JobManifest.model_validate({**JOB, **more})
    told = manifests.run_of("the-job", manifest, manifests.defaults_of(settings or {}))
    return RunSpec.model_validate(told)


def test_a_job_has_the_resources_that_its_manifest_or_that_programs_variables_name() -> None:
    usual = run_of()
    assert (usual.vcpus, usual.memory_mib, usual.disk_mib) == (2, 2048, 10_240)
    assert (usual.timeout_s, usual.silence_s, usual.image) == (3600, 120, None)
    settings = {
        "CALLBACK_PORT": "9000",
        "DEFAULT_VM_TEMPLATE": "node",
        "DEFAULT_TIMEOUT": "60",
        "DEFAULT_CPU": "1",
        "DEFAULT_MEMORY": "512M",
        "DEFAULT_DISK": "1G",
        "HEARTBEAT_THRESHOLD_SECONDS": "30",
    }
    set_ = run_of(settings)
    assert (set_.vcpus, set_.memory_mib, set_.disk_mib) == (1, 512, 1024)
    assert (set_.timeout_s, set_.silence_s, set_.image) == (60, 30, "node")
    assert set_.callbacks is not None
    assert (set_.callbacks.job_id, set_.callbacks.port) == ("the-job", 9000)
    named = run_of(
        settings,
        resources={"cpu": 3.5, "memory": "100000K", "disk": "2G"},
        timeout=5,
        vmTemplate="other",
        lifecycle="persistent",
    )
    assert (named.vcpus, named.memory_mib, named.disk_mib) == (4, 98, 2048)
    assert (named.timeout_s, named.image, named.keep_machine) == (5, "other", True)


def test_what_a_job_is_to_do_travels_as_data() -> None:
    odd = 'x"; touch F; echo "$(id)`id`\'\n\u00e9\U0001f600'
    script = run_of(task=odd)
    assert (script.kind, script.script) == ("script", odd)
    claude = run_of(task=odd, agentType="claude", agent={"claudeModel": "opus"})
    assert (claude.kind, claude.prompt, claude.agent.model) == ("agent", odd, "opus")
    custom = run_of(task=odd, agentType="custom", agent={"command": "cc -o x x.c"})
    assert (custom.kind, custom.script) == ("script", "cc -o x x.c")
    told, code = run_of(
        task=odd, files=[{"path": "code.py", "content": base64.b64encode(b"1").decode()}]
    ).files
    assert told.path == "/opt/job-runner/manifest.json"
    assert json.loads(base64.b64decode(told.base64 or ""))["task"] == odd
    assert (code.path, code.base64) == ("/workspace/code.py", "MQ==")


def test_the_bridge_passes_on_the_variables_that_mean_something_to_the_profile() -> None:
    assert SETTINGS[PROFILE] == manifests.VARIABLES

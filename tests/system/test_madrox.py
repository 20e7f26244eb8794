"""A client of madrox that knows what its README says, and nothing else: a URL, tools, variables.

The address is that of the command that stands for that program. What its usage examples do is done
here with the real Claude Code in machines, against a scripted model.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from claude_image import KEY, MEMORY_MIB, NAME
from judges.tools import CLAUDE
from machines import LONG_S, ROOT
from microvm_orchestrator.cli.client import Client
from model_api import say, turn, use
from system.agents import let_in
from system.living import PROGRAM, Stage, living

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from claude_image import Model
    from system.world import World

EXAMPLES = ROOT / "docs/how-to/examples/madrox_readme.py"
STOP_S = 20.0
# A tool waits three minutes for an answer.
ANSWER_S = 1800.0
JSON = {"content-type": "application/json"}
needs_claude = pytest.mark.skipif(
    not CLAUDE.exists(), reason="Claude Code is not installed: make judges"
)


@dataclass(frozen=True, slots=True)
class Madrox:
    """That program, as far as a client can tell."""

    url: str

    def request(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """Give the status of an answer, and what it says."""
        data = None if body is None else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, told = self.exchange(method, path, data, (JSON if data else {}) | named)
        return status, json.loads(told)

    def exchange(
        self, method: str, path: str, data: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        address = urlsplit(self.url)
        connection = HTTPConnection(address.hostname or "", address.port, timeout=ANSWER_S)
        try:
            connection.request(method, path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def use(self, tool: str, **arguments: object) -> Any:
        status, told = self.request(
            "POST", "/tools/execute", {"tool": tool, "arguments": arguments}
        )
        assert status == 200, told
        return told

    def done(self, tool: str, **arguments: object) -> dict[str, Any]:
        told = self.use(tool, **arguments)
        assert told["success"], told
        return told

    def spawned(self, name: str, role: str = "general", **more: object) -> str:
        return str(self.done("spawn_claude", name=name, role=role, **more)["instance_id"])


def example(served: Madrox, name: str) -> list[str]:
    """Run an example of the guide; the lines that it prints."""
    words = [sys.executable, str(EXAMPLES), name]
    told = {**os.environ, "MADROX_URL": served.url}
    ran = subprocess.run(words, env=told, capture_output=True, timeout=ANSWER_S, check=False)
    assert ran.returncode == 0, ran
    return ran.stdout.decode().splitlines()


@contextmanager
def madrox(socket: Path, **environment: str) -> Generator[Madrox]:
    """Run the command until the block ends, with its variables."""
    words = [PROGRAM, "madrox", "--socket", str(socket)]
    told = {**os.environ, "ORCHESTRATOR_PORT": "0", "LOG_LEVEL": "ERROR", **environment}
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=told) as process:
        assert process.stdout is not None
        try:
            yield Madrox(process.stdout.readline().decode().strip())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(STOP_S) == 0


def test_its_addresses_answer_as_that_program_did_and_let_no_page_in(world: World) -> None:
    client = Client(world.daemon.socket)
    with madrox(world.daemon.socket, ANTHROPIC_API_KEY=KEY, MAX_INSTANCES="1") as served:
        kept = [each["name"] for each in client.call("credential_list", {}).value["items"]]
        assert "madrox" in kept
        status, root = served.request("GET", "/")
        assert (status, root["name"]) == (200, "Claude Conversational Orchestrator")
        assert served.request("GET", "/health")[1]["status"] == "healthy"
        tools = served.request("GET", "/tools")[1]["tools"]
        assert [each["name"] for each in tools] == root["tools"]
        assert {"name", "description", "inputSchema"} == set(tools[0])
        instance = served.spawned("React Developer", "frontend_developer")
        refused = served.use("spawn_claude", name="One too many")
        assert "MAX_INSTANCES is 1" in refused["error"]
        everything = served.request("GET", "/instances")[1]
        assert instance in everything["instances"]
        status, told = served.request("GET", f"/instances/{instance}")
        assert (status, told["name"], told["state"]) == (200, "React Developer", "idle")
        well = served.request("POST", f"/instances/{instance}/health")[1]
        assert (well["healthy"], well["uptime_seconds"] > 0) == (True, True)
        assert served.request("GET", f"/instances/{instance}/live_status")[0] == 200
        terminal = served.request("GET", f"/instances/{instance}/terminal?lines=5")[1]
        assert terminal == {"instance_id": instance, "content": ""}
        for method, path, expected in (
            ("GET", "/instances/nobody", 404),
            ("POST", "/instances/nobody/health", 404),
            ("DELETE", "/instances", 405),
        ):
            assert served.request(method, path)[0] == expected
        assert served.request("POST", "/tools/execute", {"tool": "no_such"})[0] == 404
        assert served.request("POST", "/tools/execute", [])[0] == 422
        # What a page of somebody else can make a browser send.
        spawn = {"tool": "spawn_claude", "arguments": {"name": "x"}}
        for headers, expected in (
            ({"origin": "https://evil.example"}, 403),
            ({"host": "evil.example"}, 421),
            ({"content_type": "text/plain"}, 415),
            ({"authorization": "Bearer mo_x_y"}, 401),
        ):
            assert served.request("POST", "/tools/execute", spawn, **headers)[0] == expected
        assert served.request("GET", "/instances")[1]["active_instances"] == 1
        # The tools over MCP, by the address of its README and by the bare one.
        for path in ("/mcp", "/"):
            hello = {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "initialize",
                "params": {
                    "protocolVersion": "2025-03-26",
                    "capabilities": {},
                    "clientInfo": {"name": "x", "version": "0"},
                },
            }
            accepted = {**JSON, "accept": "application/json, text/event-stream"}
            status, said = served.exchange("POST", path, json.dumps(hello).encode(), accepted)
            assert (status, b"Claude Conversational Orchestrator" in said) == (200, True)
        # A client that asks there for events gets no page that ends at once.
        assert served.exchange("GET", "/", None, {"accept": "text/event-stream"})[0] == 400
        home = client.call("agent_get", {"agent": instance}).value["agent"]["home"]
        assert home["credentials"] == ["madrox"]
        ended = served.use("terminate_instance", instance_id=instance)
        assert (ended["success"], ended["status"]) == (True, "terminated")
    client.call("credential_remove", {"name": "madrox"})


def test_variables_that_mean_nothing_are_refused(world: World) -> None:
    words = [PROGRAM, "madrox", "--socket", str(world.daemon.socket)]
    for name, value in (("ORCHESTRATOR_PORT", "http"), ("LOG_LEVEL", "LOUD")):
        told = {**os.environ, name: value}
        ran = subprocess.run(words, env=told, capture_output=True, timeout=LONG_S, check=False)
        assert (ran.returncode, name.encode() in ran.stderr) == (2, True), ran


# With real machines


@pytest.fixture
def manager(hosts: Stage, tmp_path: Path) -> Iterator[Madrox]:
    """That program in front of real machines; whoever lives at the end is ended."""
    try:
        with madrox(hosts.daemon.socket, WORKSPACE_DIR=str(tmp_path / "w")) as served:
            yield served
    finally:
        for each in hosts.ask("agent_list", limit=200)["items"]:
            if each["state"] not in {"ended", "failed"}:
                hosts.ask("agent_end", agent=each["agent_id"], force=True, cascade=True)
            hosts.ask("agent_delete", agent=each["agent_id"])


@pytest.fixture(scope="module")
def hosts(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A daemon whose usual machine has Claude Code in it, as its users set it up once."""
    machines = {"default_image": NAME, "default_memory_mib": MEMORY_MIB}
    folder = tmp_path_factory.mktemp("madrox") / "s"
    with living(folder, egress=model.settings, machines=machines) as stage:
        let_in(stage)
        yield stage


@needs_claude
def test_the_first_example_of_its_readme_works_as_it_stands(manager: Madrox, model: Model) -> None:
    task = "Create a responsive navigation component with dropdown menus"
    model.scripts[task] = [say("export const Navigation = () => null;")]
    instance, said = example(manager, "first")
    assert said == "export const Navigation = () => null;"
    assert "You are a React expert" in json.dumps(model.api.conversation[-1].body["system"])
    output = manager.done("get_instance_output", instance_id=instance)["output"]
    assert [each["type"] for each in output] == ["user", "response"]
    status = manager.done("get_instance_status", instance_id=instance)["status"]
    assert (status["state"], status["request_count"] > 0) == ("idle", True)
    assert status["total_tokens_used"] > 0
    manager.done("terminate_instance", instance_id=instance)
    assert manager.request("GET", f"/instances/{instance}")[1]["state"] == "terminated"


@pytest.mark.long
@needs_claude
def test_the_second_example_of_its_readme_coordinates_three(manager: Madrox, model: Model) -> None:
    model.scripts["Build a real-time chat application"] = [say("My part is done.")] * 3
    told = json.loads("".join(example(manager, "second")))
    workers = told["participant_ids"]
    assert told["status"] == "completed", told
    assert {told["results"][each]["response"] for each in workers} == {"My part is done."}
    assert told["result"] == "My part is done."
    everybody = [told["coordinator_id"], *workers]
    ended = manager.use("terminate_multiple_instances", instance_ids=everybody)
    assert ended == {"terminated": everybody, "failed": []}


@pytest.mark.long
@needs_claude
def test_the_third_example_of_its_readme_holds_its_limits(
    manager: Madrox, hosts: Stage, model: Model
) -> None:
    model.scripts["Spend."] = [say("Spent.")]
    instance, *used = example(manager, "third")
    assert used == ["Tokens used: 0", "Cost: $0.0000"]
    manager.done("terminate_instance", instance_id=instance)
    instance = manager.spawned(
        "Limited Instance", max_total_tokens=1000, max_cost=10.0, timeout_minutes=30
    )
    manager.done(
        "send_to_instance", instance_id=instance, message="Spend.", timeout_seconds=ANSWER_S
    )
    deadline = time.monotonic() + ANSWER_S
    status = manager.done("get_instance_status", instance_id=instance)["status"]
    while status["state"] != "terminated":
        assert time.monotonic() < deadline, status
        time.sleep(0.2)
        status = manager.done("get_instance_status", instance_id=instance)["status"]
    assert status["total_tokens_used"] >= 1000
    assert f"{status['total_cost']:.4f}" > "0.0000"
    assert status["resource_limits"] == {
        "max_total_tokens": 1000,
        "max_cost": 10.0,
        "timeout_minutes": 30.0,
    }
    assert "of 1000 tokens" in status["state_reason"], status
    more = manager.use("send_to_instance", instance_id=instance, message="Spend.")
    assert (more["success"], "ended" in more["error"]) == (False, True), more
    lead, helper = [manager.spawned(name) for name in ("Lead", "Helper")]
    with madrox(hosts.daemon.socket, MAX_TOTAL_COST="0.0000001") as poor:
        told = poor.use("spawn_claude", name="One more")
        assert "MAX_TOTAL_COST is $1e-07" in told["error"]
        given = {"coordinator_id": lead, "participant_ids": [helper], "task_description": "x"}
        told = poor.use("coordinate_instances", **given)
        assert "MAX_TOTAL_COST is $1e-07" in told["error"]


@pytest.mark.long
@needs_claude
def test_a_family_is_told_something_interrupted_and_its_files_fetched(
    manager: Madrox, model: Model, tmp_path: Path
) -> None:
    gate = model.gate()
    model.scripts["Write it down."] = [
        use("Write", file_path="/workspace/out/notes.txt", content="Noted.\n"),
        say("It is written."),
    ]
    model.scripts["Think for long."] = [replace(turn(say("Well...")), pause=gate.hold)]
    lead = manager.spawned("Lead", "architect")
    child = manager.spawned("Child", parent_instance_id=lead)
    tree = manager.use("get_instance_tree").splitlines()
    assert [line.strip().split(" ")[0] for line in tree] == ["Lead", "Child"]
    told = manager.use(
        "broadcast_to_children",
        parent_id=lead,
        message="Write it down.",
        wait_for_responses=True,
        timeout_seconds=ANSWER_S,
    )
    [result] = told["results"]
    assert result["response"]["response"] == "It is written."
    assert manager.use("list_instance_files", instance_id=child) == ["out/notes.txt"]
    kept = manager.use("retrieve_instance_file", instance_id=child, filename="out/notes.txt")
    assert kept["path"] == str(tmp_path / "w" / child / "out" / "notes.txt")
    assert (tmp_path / "w" / child / "out" / "notes.txt").read_text() == "Noted.\n"
    live = manager.use("get_live_instance_status", instance_id=child)
    assert live["tools_breakdown"] == {"Write": 1}
    manager.done(
        "send_to_instance",
        instance_id=child,
        message="Think for long.",
        wait_for_response=False,
    )
    gate.reached()
    # It works, so it does not say that it is idle, and is not ended by the way.
    status = manager.done("get_instance_status", instance_id=child)["status"]
    assert status["state"] == "busy"
    refused = manager.use("terminate_instance", instance_id=child)
    assert (refused["success"], refused["status"]) == (False, "busy")
    broken = manager.use("interrupt_instance", instance_id=child)
    assert (broken["success"], broken["confirmed"]) == (True, True)
    gate.open()
    manager.done("terminate_instance", instance_id=lead, force=True)
    assert manager.request("GET", f"/instances/{child}")[1]["state"] == "terminated"

"""The profile `madrox`: its tools and their results, on machines that are none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from calling import VIEWER
from machines import fake_program
from madrox_peer import PROFILE, Client, place
from mcp_peer import connected
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.records import SYSTEM

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

pytestmark = pytest.mark.anyio

# She sees what is hers.
CAROL = Principal("carol", Role.OPERATOR, scope=Scope(everything=False, own=True))
_SPAWN = (
    "name model bypass_isolation parent_instance_id initial_prompt mcp_servers use_worktree "
    "git_repo wait_for_response timeout_seconds max_total_tokens max_cost timeout_minutes"
)
# Each with its parameters, and those that it has to be given.
TOOLS: dict[str, tuple[str, str]] = {
    "spawn_claude": (f"{_SPAWN} role system_prompt wait_for_ready", "name"),
    "spawn_codex": (f"{_SPAWN} role system_prompt sandbox_mode profile", "name"),
    "spawn_multiple_instances": ("instances", "instances"),
    "spawn_team_from_template": (
        "template_name task_description supervisor_role parent_instance_id",
        "template_name",
    ),
    "coordinate_instances": (
        "coordinator_id participant_ids task_description coordination_type",
        "coordinator_id participant_ids task_description",
    ),
    "get_job_status": ("job_id wait_for_completion max_wait", "job_id"),
    "send_to_instance": (
        "instance_id message wait_for_response timeout_seconds priority",
        "instance_id message",
    ),
    "send_to_multiple_instances": (
        "instance_ids message wait_for_responses timeout_seconds",
        "instance_ids message",
    ),
    "broadcast_to_children": (
        "parent_id message wait_for_responses timeout_seconds",
        "parent_id message",
    ),
    "get_instance_output": ("instance_id limit since", "instance_id"),
    "get_multiple_instance_outputs": ("instance_ids limit since", "instance_ids"),
    "get_instance_status": ("instance_id", ""),
    "get_live_instance_status": ("instance_id", "instance_id"),
    "get_instance_tree": ("", ""),
    "get_children": ("parent_id", "parent_id"),
    "get_peers": ("instance_id", "instance_id"),
    "get_main_instance_id": ("", ""),
    "interrupt_instance": ("instance_id", "instance_id"),
    "interrupt_multiple_instances": ("instance_ids", "instance_ids"),
    "suspend_instance": ("instance_id", "instance_id"),
    "resume_instance": ("instance_id name model", "instance_id"),
    "list_persisted_instances": ("", ""),
    "terminate_instance": ("instance_id force", "instance_id"),
    "terminate_multiple_instances": ("instance_ids force", "instance_ids"),
    "list_instance_files": ("instance_id", "instance_id"),
    "list_multiple_instance_files": ("instance_ids", "instance_ids"),
    "retrieve_instance_file": ("instance_id filename destination_path", "instance_id filename"),
    "retrieve_multiple_instance_files": ("retrievals", "retrievals"),
    "reply_to_caller": (
        "instance_id reply_message correlation_id",
        "instance_id reply_message",
    ),
    "get_pending_replies": ("instance_id wait_timeout", "instance_id"),
    "get_tmux_pane_content": ("instance_id lines", "instance_id"),
}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncGenerator[Client]:
    async with place(tmp_path) as client:
        yield client


async def test_each_tool_has_its_name_and_its_parameters(client: Client) -> None:
    listed = (await client.peer.ask("tools/list"))["tools"]
    told = {
        tool["name"]: (
            set(tool["inputSchema"].get("properties", {})),
            set(tool["inputSchema"].get("required", [])),
        )
        for tool in listed
    }
    assert told == {
        name: (set(given.split()), set(needed.split())) for name, (given, needed) in TOOLS.items()
    }
    answer = await client.peer.refused("tools/call", name="spawn_grok", arguments={})
    assert answer["message"] == "Unknown tool: spawn_grok"


async def test_an_instance_is_spawned_looked_at_and_terminated(client: Client) -> None:
    told = await client(
        "spawn_claude",
        name="React Developer",
        role="frontend_developer",
        system_prompt="You are a React expert.",
        max_total_tokens=50_000,
        max_cost=10,
        timeout_minutes=30,
    )
    instance = told.pop("instance_id")
    assert told == {
        "success": True,
        "status": "spawned",
        "name": "React Developer",
        "instance_type": "claude",
        "model": None,
        "role": "frontend_developer",
        "message": "Successfully spawned Claude instance 'React Developer' with role "
        "'frontend_developer'",
    }
    status = (await client("get_instance_status", instance_id=instance))["status"]
    assert status["id"] == status["instance_id"] == instance
    assert (status["name"], status["role"], status["state"]) == (
        *("React Developer", "frontend_developer"),
        "idle",
    )
    assert (status["total_tokens_used"], status["total_cost"]) == (0, 0.0)
    assert (status["use_worktree"], status["git_repo"]) == (False, None)
    assert status["resource_limits"] == {
        "max_total_tokens": 50_000,
        "max_cost": 10.0,
        "timeout_minutes": 30.0,
    }
    figures = ("health_score", "success_rate", "error_count", "errors", "response_times")
    told = {name: status.pop(name) for name in figures}
    none = {"count": 0, "last_s": None, "median_s": None, "p95_s": None}
    assert tuple(told.values()) == (100, None, 0, {}, none)
    everything = (await client("get_instance_status"))["status"]
    assert set(everything) == {
        *("instances", "total_instances", "active_instances", "terminated_instances"),
        *("total_tokens_used", "total_cost"),
    }
    assert everything["instances"] == {instance: status}
    assert (everything["total_instances"], everything["active_instances"]) == (1, 1)
    # That program ended whoever reached a limit.
    agent = (await client.kept.ask("agent_get", agent=instance))["agent"]
    assert agent["budget"]["at_limit"] == "end"
    ended = await client("terminate_instance", instance_id=instance)
    assert ended == {
        "success": True,
        "instance_id": instance,
        "status": "terminated",
        "message": f"Successfully terminated instance {instance}",
    }
    everything = (await client("get_instance_status"))["status"]
    assert (everything["active_instances"], everything["terminated_instances"]) == (0, 1)
    assert (await client("list_persisted_instances")) == {"instances": [], "count": 0}


async def test_names_may_be_any_words_and_the_same_twice(client: Client) -> None:
    first, second, third = [await client.spawned(name) for name in ("A b!", "A b!", "日本")]
    agents = [await client.kept.ask("agent_get", agent=each) for each in (first, second, third)]
    assert [each["agent"]["name"] for each in agents] == ["A-b", "A-b-2", "instance"]
    assert [each["agent"]["title"] for each in agents] == ["A b!", "A b!", "日本"]


async def test_a_role_that_is_not_known_is_a_general_one_and_says_so(client: Client) -> None:
    told = await client("spawn_claude", name="x", role="technical_lead")
    assert (told["success"], told["role"]) == (True, "general")
    assert "technical_lead" in told["warning"]


async def test_what_is_said_and_answered_is_told_with_its_own_times(client: Client) -> None:
    instance = await client.spawned("x")
    # There is no such program on these machines.
    told = await client("send_to_instance", instance_id=instance, message="one")
    assert (told["success"], told["status"]) == (False, "failed")
    assert told["response"]["instance_id"] == instance
    assert set(told["response"]) == {
        *("instance_id", "message_id", "response", "error", "timestamp", "tokens_used"),
        *("estimated_tokens", "response_time", "protocol"),
    }
    assert told["error"] == told["response"]["error"]
    assert told["message"] == f"Failed to send message: {told['error']}"
    later = await client(
        "send_to_instance", instance_id=instance, message="two", wait_for_response=False
    )
    assert (later["success"], later["status"], later["response"]) == (True, "sent", None)
    assert later["message"] == "Message sent (no response requested)"
    await client.kept.ask("agent_wait", message_id=later["message_id"], timeout_s=20.0)
    output = await client("get_instance_output", instance_id=instance)
    assert (output["success"], output["count"]) == (True, 4)
    assert [(each["type"], each["content"]) for each in output["output"]] == [
        *(("user", "one"), ("response", ""), ("user", "two"), ("response", ""))
    ]
    assert [each["message_index"] for each in output["output"]] == [0, 1, 2, 3]
    status = (await client("get_instance_status", instance_id=instance))["status"]
    assert status["last_activity"] == output["output"][3]["timestamp"]
    assert (status["success_rate"], status["error_count"]) == (0.0, 2)
    # Each has a time of its own, so `since` gives some of them.
    since = output["output"][1]["timestamp"]
    some = await client("get_instance_output", instance_id=instance, since=since, limit=1)
    assert [each["message_index"] for each in some["output"]] == [3]
    some = await client("get_instance_output", instance_id=instance, since=since)
    assert [each["message_index"] for each in some["output"]] == [2, 3]
    wrong = await client("get_instance_output", instance_id=instance, since="yesterday")
    assert wrong["message"].startswith("Failed to get output: since: yesterday is no time")
    many = await client("get_multiple_instance_outputs", instance_ids=[instance, "nobody"])
    assert many["outputs"] == [{"instance_id": instance, "output": output["output"]}]
    assert many["errors"] == [{"instance_id": "nobody", "error": "Instance nobody not found"}]


async def test_what_an_instance_does_is_seen(client: Client) -> None:
    instance = await client.spawned("x")
    idle = await client("get_live_instance_status", instance_id=instance)
    assert (idle["state"], idle["current_tool"], idle["tools_executed"]) == ("idle", None, 0)
    assert await client("get_tmux_pane_content", instance_id=instance) == ""
    await client("send_to_instance", instance_id=instance, message="Make it.")
    await client.says(instance)
    live = await client("get_live_instance_status", instance_id=instance)
    assert (live["tools_executed"], live["tools_breakdown"]) == (2, {"Write": 1, "Bash": 1})
    assert (live["name"], live["last_output"], live["execution_time"] > 0) == ("x", "Made.", True)
    pane = await client("get_tmux_pane_content", instance_id=instance)
    assert pane.splitlines() == [
        *("> Make it.", "[Write: /workspace/a]", "[Bash: make]", "Made.", "= failed")
    ]
    last = await client("get_tmux_pane_content", instance_id=instance, lines=2)
    assert last.splitlines() == ["Made.", "= failed"]


def _name(told: dict[str, Any]) -> str:
    return str(told["name"])


async def test_families_are_shown_told_and_ended_together(client: Client) -> None:
    lead = await client.spawned("Lead")
    spawned = await client(
        "spawn_multiple_instances",
        instances=[
            {"name": "One", "parent_instance_id": lead},
            {"name": "Two", "parent_instance_id": lead, "role": "architect"},
            {"name": "Three", "nonsense": 1},
            {"name": "Four", "instance_type": "grok"},
            {"name": "Five", "type": "codex", "role": "backend_developer"},
        ],
    )
    assert [each["name"] for each in spawned["spawned"]] == ["One", "Two", "Five"]
    assert [each["config"]["name"] for each in spawned["errors"]] == ["Three", "Four"]
    one, two, five = [each["instance_id"] for each in spawned["spawned"]]
    status = (await client("get_instance_status", instance_id=five))["status"]
    assert (status["instance_type"], status["role"]) == ("codex", "backend_developer")
    await client("terminate_instance", instance_id=five)
    # They were spawned at once, and stand in the order in which they came to be.
    children = await client("get_children", parent_id=lead)
    assert sorted(children, key=_name) == [
        {"id": one, "name": "One", "role": "general", "state": "idle", "instance_type": "claude"},
        {"id": two, "name": "Two", "role": "architect", "state": "idle", "instance_type": "claude"},
    ]
    assert [each["id"] for each in await client("get_peers", instance_id=one)] == [two]
    uppermost, *below = (await client("get_instance_tree")).splitlines()
    assert uppermost == f"Lead ({lead}) [idle] (claude)"
    assert sorted(below) == [
        f"  One ({one}) [idle] (claude)",
        f"  Two ({two}) [idle] (claude)",
    ]
    told = await client("broadcast_to_children", parent_id=lead, message="Hello.")
    assert told["children_count"] == 2
    assert sorted((each["child_name"], each["status"]) for each in told["results"]) == [
        *(("One", "sent"), ("Two", "sent"))
    ]
    sent = await client(
        "send_to_multiple_instances",
        instance_ids=[one, two, "nobody"],
        message="And now?",
        wait_for_responses=True,
    )
    assert [each["instance_id"] for each in sent["errors"]] == [one, two, "nobody"]
    assert sent["errors"][2]["error"] == "Instance nobody not found"
    # Two independent instances are nobody's children.
    stranger = await client.spawned("Stranger")
    status = (await client("get_instance_status", instance_id=stranger))["status"]
    assert status["parent_instance_id"] is None
    refused = await client("terminate_instance", instance_id=lead)
    assert (refused["success"], refused["status"]) == (False, "idle")
    assert "try with force=true" in refused["message"]
    ended = await client("terminate_multiple_instances", instance_ids=[lead, "x"], force=True)
    assert (ended["terminated"], [each["instance_id"] for each in ended["failed"]]) == (
        [lead],
        ["x"],
    )
    assert [each["id"] for each in (await client("list_persisted_instances"))["instances"]] == [
        stranger
    ]


async def test_a_coordination_is_carried_through_and_its_job_says_what_came_of_it(
    client: Client,
) -> None:
    lead, one, two = [await client.spawned(name) for name in ("lead", "one", "two")]
    told = await client(
        "coordinate_instances",
        coordinator_id=lead,
        participant_ids=[one, two],
        task_description="Build it.",
        coordination_type="parallel",
    )
    job = told.pop("task_id")
    assert told == {
        "success": True,
        "status": "started",
        "coordinator_id": lead,
        "participant_ids": [one, two],
        "coordination_type": "parallel",
        "message": f"Started coordination task {job}",
    }
    done = await client("get_job_status", job_id=job)
    assert (done["task_id"], done["description"]) == (job, "Build it.")
    # There is no such program on these machines: nobody can answer, and nobody says they did.
    assert (done["status"], bool(done["error"])) == ("failed", True)
    assert set(done["results"]) == {one, two}
    assert {each["status"] for each in done["results"].values()} == {"failed"}
    assert {step["agent_id"] for step in done["steps"]} >= {one, two}
    assert done["completed_at"] >= done["started_at"]
    assert await client("get_job_status", job_id="nobody") is None
    twice = await client(
        "coordinate_instances",
        coordinator_id=lead,
        participant_ids=[lead],
        task_description="x",
    )
    assert twice["message"].startswith("Failed to start coordination: ")


async def test_a_team_is_spawned_whole_or_not_at_all(tmp_path: Path) -> None:
    async with place(tmp_path, {"MAX_INSTANCES": "5"}) as client:
        told = await client.refusal(
            "spawn_team_from_template", template_name="software_engineering_team"
        )
        assert "MAX_INSTANCES is 5" in told
        told = await client.refusal("spawn_team_from_template", template_name="none_such")
        assert told.startswith("not-found: ")
        told = await client(
            "spawn_team_from_template", template_name="data_pipeline_team", supervisor_role=None
        )
        assert (told["status"], len(told["members"])) == ("spawned", 5), told
        assert told["instance_ids"][0] == told["supervisor_id"]
        children = await client("get_children", parent_id=told["supervisor_id"])
        assert [each["id"] for each in children] == told["instance_ids"][1:]


async def test_an_instance_is_suspended_and_resumed_and_one_in_no_turn_not_interrupted(
    client: Client,
) -> None:
    instance = await client.spawned("x")
    assert await client("suspend_instance", instance_id=instance) == {
        "instance_id": instance,
        "status": "suspended",
        "success": True,
    }
    status = (await client("get_instance_status"))["status"]
    assert (status["active_instances"], status["total_instances"]) == (0, 1)
    resumed = await client("resume_instance", instance_id=instance)
    assert (resumed["success"], resumed["status"]) == (True, "idle")
    told = await client("interrupt_instance", instance_id=instance)
    assert (told["success"], told["confirmed"]) == (False, False)
    many = await client("interrupt_multiple_instances", instance_ids=[instance, "x"])
    assert (many["interrupted"], len(many["failed"])) == ([], 2)


async def test_files_are_of_the_workspace_alone(client: Client) -> None:
    instance = await client.spawned("x")
    refusals = [
        await client.refusal("retrieve_instance_file", instance_id=instance, filename=name)
        for name in ("../etc/passwd", "/etc/passwd", "a/../../x")
    ]
    assert all("invalid-input" in each for each in refusals), refusals
    told = await client.refusal(
        *("retrieve_instance_file",), instance_id=instance, filename="a", destination_path="/tmp/x"
    )
    assert "destination_path" in told
    many = await client(
        "retrieve_multiple_instance_files",
        retrievals=[{"instance_id": "nobody", "filename": "a"}],
    )
    assert many == {
        "retrieved": [],
        "errors": [
            {"instance_id": "nobody", "filename": "a", "error": "Instance nobody not found"}
        ],
    }
    listed = await client("list_multiple_instance_files", instance_ids=["nobody"])
    assert listed == {
        "listings": [],
        "errors": [{"instance_id": "nobody", "error": "Instance nobody not found"}],
    }


async def test_nobody_is_an_instance_because_it_says_so(client: Client) -> None:
    instance = await client.spawned("x")
    assert await client("get_main_instance_id") is None
    told = await client.refusal("reply_to_caller", instance_id=instance, reply_message="I am x.")
    assert told.startswith(f"denied: you are alice, and not instance {instance}")
    lines = (await client.kept.ask("audit_list", limit=50))["items"]
    assert ("reply_to_caller", instance, "denied") in [
        (each["action"], each["target"], each["outcome"]) for each in lines
    ]


async def test_answers_to_an_instance_are_read_once(client: Client) -> None:
    lead, worker = [await client.spawned(name) for name in ("lead", "worker")]
    assert await client("get_pending_replies", instance_id=lead) == []
    agents = client.kept.service.host.agents
    asker = await agents.get(lead, SYSTEM)
    said = await agents.send(worker, "How far are you?", SYSTEM, sender=asker)
    [reply] = await client("get_pending_replies", instance_id=lead, wait_timeout=20)
    assert set(reply) == {*("sender_id", "reply_message", "correlation_id", "timestamp", "error")}
    assert (reply["sender_id"], reply["correlation_id"]) == (worker, said.message_id)
    assert await client("get_pending_replies", instance_id=lead) == []
    async with connected(client.front, CAROL, PROFILE) as peer:
        other = Client(peer, client.kept, client.front)
        assert "not found" in await other.refusal("get_pending_replies", instance_id=lead)


async def test_an_answer_to_what_a_client_said_to_a_family_is_among_its_replies(
    client: Client,
) -> None:
    lead = await client.spawned("lead")
    child = await client.spawned("child", parent_instance_id=lead)
    stranger = await client.spawned("stranger")
    await client("broadcast_to_children", parent_id=lead, message="How far are you?")
    [reply] = await client("get_pending_replies", instance_id=lead, wait_timeout=20)
    assert reply["sender_id"] == child
    await client("send_to_instance", instance_id=lead, message="And you?")
    [reply] = await client("get_pending_replies", instance_id=lead)
    assert reply["sender_id"] == lead
    assert await client("get_pending_replies", instance_id=stranger) == []


async def test_one_of_several_that_does_not_come_up_is_no_success(
    client: Client, tmp_path: Path
) -> None:
    fake_program(tmp_path).unlink()
    told = await client("spawn_multiple_instances", instances=[{"name": "One"}])
    assert told["spawned"] == []
    [failed] = told["errors"]
    assert (failed["config"], bool(failed["error"])) == ({"name": "One"}, True)
    status = (await client("get_instance_status", instance_id=failed["instance_id"]))["status"]
    assert status["state"] == "error"


async def test_servers_are_named_as_that_program_named_them(client: Client) -> None:
    servers = {"files": {"transport": "http", "url": "http://localhost:8002/mcp"}}
    for given in (servers, json.dumps(servers)):
        instance = await client.spawned("x", mcp_servers=given)
        agent = (await client.kept.ask("agent_get", agent=instance))["agent"]
        assert agent["character"]["mcp_servers"] == {
            "files": {"type": "http", "url": "http://localhost:8002/mcp"}
        }


async def test_limits_of_the_environment_hold(tmp_path: Path) -> None:
    environment = {
        "MAX_INSTANCES": "2",
        "MAX_TOKENS_PER_INSTANCE": "100",
        "MAX_TOTAL_COST": "5.5",
        "INSTANCE_TIMEOUT_MINUTES": "1.5",
    }
    minutes = {"timeout_minutes": 1.5}
    async with place(tmp_path, environment) as client:
        first = await client.spawned("x")
        status = (await client("get_instance_status", instance_id=first))["status"]
        assert status["resource_limits"] == {"max_total_tokens": 100, "max_cost": 5.5, **minutes}
        second = await client.spawned("y", max_total_tokens=7, max_cost=1.5)
        status = (await client("get_instance_status", instance_id=second))["status"]
        assert status["resource_limits"] == {"max_total_tokens": 7, "max_cost": 1.5, **minutes}
        refused = await client("spawn_claude", name="z")
        assert refused["message"].startswith(
            "Failed to spawn Claude instance: 2 instances are active, and MAX_INSTANCES is 2"
        )
        # One that is suspended or over is none too many.
        await client("suspend_instance", instance_id=first)
        await client("terminate_instance", instance_id=second)
        assert await client.spawned("z")
        assert await client.spawned("u")
    broken = tmp_path / "broken"
    broken.mkdir()
    async with place(broken, {"MAX_INSTANCES": "many"}) as client:
        assert "MAX_INSTANCES" in (await client("spawn_claude", name="x"))["error"]


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("spawn_claude", {}, "name: "),
    ("spawn_claude", {"name": ""}, "name: "),
    ("spawn_claude", {"name": "x", "max_cost": 0}, "max_cost: "),
    ("spawn_claude", {"name": "x", "max_tokens": 5}, "max_tokens: "),
    ("spawn_claude", {"name": "x", "mcp_servers": "{"}, "mcp_servers is no JSON"),
    ("spawn_claude", {"name": "x", "mcp_servers": "[]"}, "mcp_servers is no JSON object"),
    ("spawn_claude", {"name": "x", "mcp_servers": {"a; rm": {}}}, "mcp_servers."),
    ("spawn_claude", {"name": "x", "use_worktree": True}, "use_worktree needs git_repo"),
    ("spawn_claude", {"name": "x", "use_worktree": True, "git_repo": "none"}, "no repo"),
    ("spawn_claude", {"name": "x", "parent_instance_id": "nobody"}, "no agent nobody"),
    ("spawn_codex", {"name": "x", "profile": "p"}, "profile: "),
    ("send_to_instance", {"instance_id": "nobody", "message": "x"}, "Instance nobody not found"),
    ("send_to_instance", {"instance_id": "x", "message": ""}, "message: "),
    ("get_instance_output", {"instance_id": "nobody"}, "Instance nobody not found"),
    ("get_instance_status", {"instance_id": "nobody"}, "Instance nobody not found"),
    ("terminate_instance", {"instance_id": "nobody"}, "Instance nobody not found"),
]


async def test_what_is_refused_says_why_in_its_wrapper(client: Client) -> None:
    for tool, arguments, why in WRONG:
        told = await client(tool, **arguments)
        assert set(told) == {"success", "error", "message"}
        assert told["success"] is False
        assert told["error"].startswith(why), told
        assert told["message"].endswith(told["error"])
    assert (await client("get_instance_status"))["status"]["total_instances"] == 0


async def test_one_sees_and_ends_only_what_it_may(client: Client) -> None:
    instance = await client.spawned("x")
    async with connected(client.front, CAROL, PROFILE) as peer:
        other = Client(peer, client.kept, client.front)
        assert (await other("get_instance_status"))["status"]["total_instances"] == 0
        deeds = {"terminate_instance": {"force": True}, "send_to_instance": {"message": "x"}}
        for tool, more in deeds.items():
            told = await other(tool, instance_id=instance, **more)
            assert told["error"] == f"Instance {instance} not found"
    async with connected(client.front, VIEWER, PROFILE) as peer:
        told = await Client(peer, client.kept, client.front)("spawn_claude", name="y")
        assert "needs the role operator" in told["error"]

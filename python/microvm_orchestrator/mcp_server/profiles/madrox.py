"""The profile `madrox`: the tools of that program, of its README and of its later version.

Names, parameters and results are that program's; its five tools and the status come in the wrapper
that its REST gave them (`success`, `message`, `error`), others as they are. What it got wrong is
the service's to get right, and a refusal is never called a success. Below, a module for each of its
subjects translates; beside it, the web serves the same tools as plain REST.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from mcp.types import CallToolRequestParams, CallToolResult, TextContent

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.answers import crash_result, error_result
from microvm_orchestrator.mcp_server.callers import caller_of, settings_of
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.mcp_server.profiles.madrox_files import Files
from microvm_orchestrator.mcp_server.profiles.madrox_instances import Instances
from microvm_orchestrator.mcp_server.profiles.madrox_talk import Talk
from microvm_orchestrator.mcp_server.profiles.madrox_teams import Teams
from microvm_orchestrator.mcp_server.profiles.offers import Offer, Offers
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.schemas import request_schema
from microvm_orchestrator.service.service import parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.mcp_server.callers import Context
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

# As that program introduced itself.
NAME = "Claude Conversational Orchestrator"
VERSION = "1.0.0"

_Answer = Callable[["Caller", words.Environment, Any], Awaitable[Any]]
# What comes in a wrapper, and how a refusal of it begins.
_WRAPPED = {
    "spawn_claude": "Failed to spawn Claude instance",
    "spawn_codex": "Failed to spawn Codex instance",
    "send_to_instance": "Failed to send message",
    "get_instance_output": "Failed to get output",
    "get_instance_status": "Failed to fetch instance status",
    "coordinate_instances": "Failed to start coordination",
    "terminate_instance": "Failed to terminate instance",
}


def _tools(service: Service, instances: Instances) -> dict[str, Offer[_Answer]]:
    talk, files = Talk(service, instances), Files(service, instances)
    teams = Teams(service, instances)
    return {
        "spawn_claude": Offer(
            "Spawn a Claude instance with a role, in a machine of its own.",
            words.SpawnClaude,
            instances.claude,
        ),
        "spawn_codex": Offer(
            "Spawn a Codex instance, in a machine of its own.", words.SpawnCodex, instances.codex
        ),
        "spawn_multiple_instances": Offer(
            "Spawn several instances at once.", words.SpawnMany, instances.several
        ),
        "spawn_team_from_template": Offer(
            "Spawn a supervisor with a team: software_engineering_team, research_analysis_team, "
            "security_audit_team, data_pipeline_team or one of this host's own.",
            words.SpawnTeam,
            teams.spawn,
        ),
        "send_to_instance": Offer(
            "Say something to an instance, and wait for its response.", words.Send, talk.send
        ),
        "send_to_multiple_instances": Offer(
            "Say the same to several instances at once.", words.SendMany, talk.send_to_several
        ),
        "broadcast_to_children": Offer(
            "Say the same to all children of an instance.", words.Broadcast, talk.broadcast
        ),
        "get_instance_output": Offer(
            "Read what was said to an instance and what it answered.", words.Output, talk.output
        ),
        "get_multiple_instance_outputs": Offer(
            "Read the same of several instances.", words.OutputOfMany, talk.output_of_several
        ),
        "get_instance_status": Offer(
            "Look at an instance, or at all of them: state, tokens, cost, limits.",
            words.AnyOne,
            instances.status,
        ),
        "get_live_instance_status": Offer(
            "See what an instance does at this moment.", words.One, talk.live
        ),
        "get_instance_tree": Offer(
            "Show who belongs to whom, as text.", words.Nothing, instances.tree
        ),
        "get_children": Offer(
            "List the children of an instance.", words.Parent, instances.children
        ),
        "get_peers": Offer("List the instances with the same parent.", words.One, instances.peers),
        "get_main_instance_id": Offer(
            "Tell which instance you are; null for who is none.", words.Nothing, instances.main
        ),
        "interrupt_instance": Offer(
            "Break off the turn that an instance is in; it knows what was said.",
            words.One,
            instances.interrupt,
        ),
        "interrupt_multiple_instances": Offer(
            "Break off the turns of several instances.", words.Many, instances.interrupt_several
        ),
        "suspend_instance": Offer(
            "Stop the machine of an instance until the next message.", words.One, instances.suspend
        ),
        "resume_instance": Offer(
            "Start the machine of a suspended instance again.", words.Resume, instances.resume
        ),
        "list_persisted_instances": Offer(
            "List the instances that outlive this server: all that were not terminated.",
            words.Nothing,
            instances.persisted,
        ),
        "coordinate_instances": Offer(
            "Have several instances work on a task: sequential, parallel, "
            "consensus or hierarchical; get_job_status has what came of it.",
            words.Coordinate,
            teams.coordinate,
        ),
        "get_job_status": Offer(
            "Look at a coordination, once it is over; null for one that nobody knows.",
            words.Job,
            teams.job,
        ),
        "terminate_instance": Offer(
            "End an instance with its machine; what was said is kept.",
            words.Terminate,
            instances.terminate,
        ),
        "terminate_multiple_instances": Offer(
            "End several instances.", words.TerminateMany, instances.terminate_several
        ),
        "list_instance_files": Offer(
            "List the files in the workspace of an instance.", words.One, files.listed
        ),
        "list_multiple_instance_files": Offer(
            "List the files of several instances.", words.Many, files.listed_of_several
        ),
        "retrieve_instance_file": Offer(
            "Fetch a file from the workspace of an instance.", words.Retrieve, files.retrieve
        ),
        "retrieve_multiple_instance_files": Offer(
            "Fetch files of several instances.", words.RetrieveMany, files.retrieve_several
        ),
        "reply_to_caller": Offer("Answer whoever asked, as an instance.", words.Reply, talk.reply),
        "get_pending_replies": Offer(
            "Read the answers to what an instance said to others, those that came since you did.",
            words.Replies,
            talk.replies,
        ),
        "get_tmux_pane_content": Offer(
            "Read the last lines of what an instance was told, and what its program said and did; "
            "there is no terminal.",
            words.Pane,
            talk.pane,
        ),
    }


class MadroxTools:
    """Those tools, for whichever way they are asked."""

    def __init__(self, service: Service) -> None:
        self.instances = Instances(service)
        self._offered = _tools(service, self.instances)
        self._tools = Offers(self._offered)
        self.listed = self._tools.listed

    def described(self) -> list[dict[str, Any]]:
        """Describe each tool, as a list of tools does."""
        return [
            {
                "name": name,
                "description": offer.description,
                "inputSchema": request_schema(offer.request),
            }
            for name, offer in self._offered.items()
        ]

    async def execute(
        self, caller: Caller, settings: Mapping[str, str], tool: str, arguments: object
    ) -> Any:
        """Use a tool; one that comes in a wrapper says in there why it was refused.

        Raises: NotFound for a tool that there is none of; what others are refused with.
        """
        if tool not in self._offered:
            raise errors.NotFound(f"Unknown tool: {tool[:100]}")
        offered = self._offered[tool]
        try:
            asked = parse(offered.request, _object(arguments))
            return await offered.answer(caller, words.environment_of(settings), asked)
        except errors.OrchestratorError as error:
            if tool not in _WRAPPED:
                raise
            why = words.why(error)
            return {"success": False, "error": why, "message": f"{_WRAPPED[tool]}: {why}"}

    async def call(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        self._tools.find(params.name)
        try:
            told = await self.execute(
                caller_of(ctx), settings_of(ctx), params.name, params.arguments or {}
            )
        except errors.OrchestratorError as error:
            return error_result(error)
        except Exception as error:  # noqa: BLE001 - the converting edge: a bug must not end the connection
            return crash_result(params.name, error)
        text = told if isinstance(told, str) else json.dumps(told, ensure_ascii=False, indent=2)
        told_all = cast("dict[str, Any]", told) if isinstance(told, dict) else {"result": told}
        return CallToolResult(
            content=[TextContent(type="text", text=text)],
            structured_content=told_all,
            is_error=told_all.get("success") is False,
        )


def _object(arguments: object) -> dict[str, object]:
    """Raises: InvalidInput."""
    if not isinstance(arguments, dict):
        raise errors.InvalidInput("`arguments` is an object")
    return cast("dict[str, object]", arguments)


class MadroxServer(QuietServer):
    """The protocol server of the profile."""

    def __init__(self, service: Service) -> None:
        self.tools = MadroxTools(service)
        super().__init__(
            NAME,
            version=VERSION,
            title="Madrox",
            on_list_tools=self.tools.listed,
            on_call_tool=self.tools.call,
        )

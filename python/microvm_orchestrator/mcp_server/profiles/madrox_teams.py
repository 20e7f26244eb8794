"""Teams and coordinations of the profile `madrox`: several instances that work on one task.

There a coordination sent a message to each at the most. Here it is carried through, and its job has
what each answered. Above is the profile; below, the calls of teams.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.model.coordination import CoordinationState, StepState
from microvm_orchestrator.model.team import Team
from microvm_orchestrator.model.values import rfc3339
from microvm_orchestrator.service.waiting import until
from microvm_orchestrator.store.base import Match

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.profiles.madrox_instances import Instances, Told
    from microvm_orchestrator.mcp_server.profiles.madrox_words import Environment
    from microvm_orchestrator.model.coordination import Coordination, Step
    from microvm_orchestrator.model.operation import Operation
    from microvm_orchestrator.model.team import TeamTemplate
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.coordinations import CoordinationAnswer
    from microvm_orchestrator.service.service import Service

# Machines of a whole team come up one beside the other; who waits longer asks for its tree.
_TEAM_S = 300.0
_STATUSES = {CoordinationState.SUCCEEDED: "completed"}


class Teams:
    """The teams and jobs of one daemon."""

    def __init__(self, service: Service, instances: Instances) -> None:
        self._service = service
        self._instances = instances

    async def spawn(self, caller: Caller, here: Environment, asked: words.SpawnTeam) -> Told:
        given = {"name": asked.template_name}
        template = cast("TeamTemplate", await self._service.invoke(caller, "team_get", given))
        if asked.supervisor_role not in {None, template.lead.role}:
            raise errors.InvalidInput(
                f"the supervisor of {template.name} is its {template.lead.role}",
                hint="a template of your own can have another: see team_list",
            )
        wish: Told = {
            "template": template.name,
            "task": asked.task_description,
            "parent": asked.parent_instance_id,
            "wait_s": _TEAM_S,
            "credentials": here.credentials,
            **words.limits(None, here.max_tokens, here.timeout_minutes),
        }
        await self._instances.refuse_more(caller, here, wish, 1 + len(template.members))
        wish = {name: value for name, value in wish.items() if value is not None}
        ran = cast("Operation", await self._service.invoke(caller, "team_spawn", wish))
        if not ran.finished:
            said = f"its machines are being started by operation {ran.operation_id}"
            return {"success": True, "status": "starting", "message": said}
        if ran.error is not None:
            said = f"Failed to spawn team {template.name}: {ran.error.message}"
            return {"success": False, "error": ran.error.message, "message": said}
        team = Team.model_validate(ran.result)
        members = [words.brief(each) for each in (team.lead, *team.members)]
        return {
            "success": True,
            "status": "spawned",
            "template_name": template.name,
            "supervisor_id": team.lead.agent_id,
            "instance_ids": [each["id"] for each in members],
            "members": members,
            "message_id": team.message_id,
            "message": f"Spawned team {template.name} with {len(members)} instances",
        }

    async def coordinate(self, caller: Caller, here: Environment, asked: words.Coordinate) -> Told:
        await self._instances.cost_left(caller, here)
        coordinator = await self._instances.one(caller, asked.coordinator_id)
        participants = [await self._instances.one(caller, each) for each in asked.participant_ids]
        ids = [each.agent_id for each in participants]
        wish = {
            "coordinator": coordinator.agent_id,
            "participants": ids,
            "task": asked.task_description,
            "kind": asked.coordination_type,
            "wait_s": 0.0,
        }
        begun = cast("Operation", await self._service.invoke(caller, "team_coordinate", wish))
        return {
            "success": True,
            "task_id": begun.target,
            "status": "started",
            "coordinator_id": coordinator.agent_id,
            "participant_ids": ids,
            "coordination_type": asked.coordination_type,
            "message": f"Started coordination task {begun.target}",
        }

    async def job(self, caller: Caller, _here: Environment, asked: words.Job) -> Told | None:
        async def look() -> CoordinationAnswer:
            given = {"coordination_id": asked.job_id}
            found = await self._service.invoke(caller, "coordination_get", given)
            return cast("CoordinationAnswer", found)

        try:
            wait_s = asked.max_wait if asked.wait_for_completion else 0.0
            found = await until(
                self._service,
                caller,
                Match(subjects=(asked.job_id,)),
                wait_s,
                look=look,
                over=lambda seen: seen.coordination.ended,
                said=lambda seen: str(seen.coordination.state),
            )
        except errors.NotFound:
            return None
        return _told(found.coordination, found.steps)


def _told(job: Coordination, steps: list[Step]) -> Told:
    ids = [each.agent_id for each in job.participants]
    told: dict[str, Any] = {
        "task_id": job.coordination_id,
        "description": job.task,
        "coordinator_id": job.coordinator.agent_id,
        "participant_ids": ids,
        "coordination_type": str(job.rules.kind),
        "status": _STATUSES.get(job.state, str(job.state)),
        "started_at": rfc3339(job.created_at),
        "steps": [step.model_dump(mode="json") for step in steps],
        # Of each the last that it was asked.
        "results": {step.agent_id: _result(step) for step in steps if step.agent_id in ids},
        "result": job.result,
        "outcome": job.outcome,
    }
    if job.ended_at is not None:
        told["completed_at"] = rfc3339(job.ended_at)
    if job.state is CoordinationState.FAILED:
        told["error"] = job.reason
    return told


def _result(step: Step) -> Told:
    return {
        "instance_id": step.agent_id,
        "message_id": step.message_id,
        "status": "completed" if step.state is StepState.ANSWERED else str(step.state),
        "response": step.answer,
        "vote": None if step.vote is None else str(step.vote.vote),
        "error": None if step.error is None else step.error.message,
    }

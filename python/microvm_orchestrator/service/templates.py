"""Templates: save a graph with holes once, under a name and a version; run it with values.

A version is never changed and its number never given again: deleting one empties it. So the
numbers of a name have no gaps, and its newest is found by a few look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

from microvm_orchestrator import errors
from microvm_orchestrator.model import template as templates
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.names import DEFAULT_GROUP
from microvm_orchestrator.model.parameter import KEPT, Parameter
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.task import TaskSpec
from microvm_orchestrator.model.template import Template
from microvm_orchestrator.model.values import Json, Line, Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.idempotency import id_for
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor, parse
from microvm_orchestrator.service.tasks import (
    GraphAnswer,
    IdempotencyKey,
    SubmittedAs,
    grouped,
    submit,
)
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from microvm_orchestrator.store.base import Store

KIND = "template"
# The names there are, so that a list need not read every version of each.
NAMES = "template-name"
MAX_VERSION = 999_999
# Savers of one name who meet take the next number; more than so many at once is no accident.
_MAX_RIVALS = 50

Version = Annotated[int, Field(strict=True, ge=1, le=MAX_VERSION)]


class _Kept(BaseModel):
    """A version as it is stored; without a template it was deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    saved_by: str
    template: Template | None


class SaveTemplate(Template, Request):
    """A new version of a template."""

    name: Name


class NamedTemplate(Request):
    """One version of a template."""

    name: Name
    version: Version | None = Field(default=None, description="by default the newest")


class FilledTemplate(NamedTemplate):
    """A template with values for its parameters."""

    parameters: Annotated[dict[str, Json], Field(max_length=100)] = Field(
        default={}, description="a value for each parameter that has no default"
    )
    group: Name | None = Field(
        default=None, description="by default a new one if the template has a prefix for it"
    )


class RunTemplate(FilledTemplate):
    """A template to make tasks of."""

    idempotency_key: IdempotencyKey | None = Field(
        default=None, description="a repeated request with the same key makes nothing twice"
    )


class DeleteTemplate(Request):
    """A template, or one version of it, to delete."""

    name: Name
    version: Version | None = Field(default=None, description="by default all of them")


class TemplateBrief(Answer):
    """A template in a list."""

    name: str
    version: int
    description: Line
    parameters: dict[str, Parameter]
    task_count: int
    saved_by: str
    saved_at: Moment


class TemplateInfo(TemplateBrief):
    """One version of a template."""

    tasks: list[dict[str, Json]]
    group_prefix: str | None


class TemplateSaved(Answer):
    """The version that holds what was saved."""

    name: str
    version: int
    created: bool = Field(description="false: the newest version says the same already")


class TemplateList(PageOf[TemplateBrief]):
    """Templates by name, each with its newest version."""


class TemplateDeleted(Answer):
    """The versions that are gone."""

    name: str
    versions: list[int]


class TemplatePreview(Answer):
    """The tasks a run would submit."""

    template: str
    group: str | None = Field(description="null: a new one for each run")
    tasks: list[TaskSpec]


class TemplateRun(GraphAnswer):
    """What a run submitted."""

    template: str


class _Tasks(Request):
    tasks: list[TaskSpec]


@dataclass(frozen=True, slots=True)
class _Version:
    """A version that was not deleted."""

    name: str
    number: int
    template: Template
    saved_by: str
    saved_at: float

    @property
    def label(self) -> str:
        return f"{self.name}@{self.number}"

    def brief(self) -> TemplateBrief:
        return TemplateBrief(
            name=self.name,
            version=self.number,
            description=self.template.description,
            parameters=self.template.parameters,
            task_count=len(self.template.tasks),
            saved_by=self.saved_by,
            saved_at=moment(self.saved_at),
        )


@declare("template_save", "POST /v1/templates", role=Role.OPERATOR, idempotent=True)
async def save(service: Service, caller: Caller, request: SaveTemplate) -> TemplateSaved:
    """Save a template as a new version.

    Its tasks are those of `graph_submit` with holes for parameters. Saving what the newest version
    says already makes no new one. What can be known to fail whatever values are given is refused.
    """
    template = Template.model_validate(request.model_dump(exclude={"name"}))
    templates.check(template)
    by = actor(caller, "template_save")
    body = _Kept(saved_by=by.name, template=template).model_dump(mode="json")
    for _ in range(_MAX_RIVALS):
        number = await _newest(service.store, request.name, by)
        newest = await _version(service.store, request.name, number, by)
        if newest is not None and newest.template == template:
            return TemplateSaved(name=request.name, version=number, created=False)
        if number == MAX_VERSION:
            raise errors.TooLarge(f"template {request.name} has {MAX_VERSION} versions")
        if number == 0:
            await _enlist(service.store, request.name, by)
        try:
            await service.store.save(
                Record(KIND, _id(request.name, number + 1), body), by, expect=0
            )
        except errors.AlreadyExists:
            continue
        return TemplateSaved(name=request.name, version=number + 1, created=True)
    raise errors.Conflict(f"too many save template {request.name} at once", hint="try again")


@declare("template_get", "GET /v1/templates/{name}", role=Role.VIEWER, effect=Effect.READ)
async def get(service: Service, caller: Caller, request: NamedTemplate) -> TemplateInfo:
    """Show one version of a template, by default the newest."""
    found = await _find(service.store, request, actor(caller, "template_get"))
    return TemplateInfo(
        **dict(found.brief()), tasks=found.template.tasks, group_prefix=found.template.group_prefix
    )


@declare("template_list", "GET /v1/templates", role=Role.VIEWER, effect=Effect.READ)
async def list_(service: Service, caller: Caller, request: ListRequest) -> TemplateList:
    """List the templates by name, each with its newest version and what it takes."""
    by = actor(caller, "template_list")

    async def brief(name: Record) -> TemplateBrief | None:
        try:
            found = await _find(service.store, NamedTemplate(name=name.id), by)
        except errors.NotFound:
            return None
        return found.brief()

    items, cursor = await page_of(service.store, NAMES, request, by, brief)
    return TemplateList(items=items, next_cursor=cursor)


@declare(
    "template_delete",
    "DELETE /v1/templates/{name}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    idempotent=True,
)
async def delete(service: Service, caller: Caller, request: DeleteTemplate) -> TemplateDeleted:
    """Delete a template, or one version of it.

    Tasks made from it stay as they are. A number that was deleted is not used again.
    """
    by = actor(caller, "template_delete")
    empty = _Kept(saved_by=by.name, template=None).model_dump(mode="json")
    gone: list[int] = []
    for record in await every_record(service.store, KIND, by, f"{request.name}@"):
        number = int(record.id.rpartition("@")[2])
        kept = _Kept.model_validate(record.body, context=KEPT)
        if kept.template is not None and request.version in {None, number}:
            await service.store.save(Record(KIND, record.id, empty), by, expect=record.version)
            gone.append(number)
    if not gone:
        raise _missing(request.name, request.version)
    return TemplateDeleted(name=request.name, versions=gone)


@declare(
    "template_preview",
    "POST /v1/templates/{name}/preview",
    role=Role.VIEWER,
    effect=Effect.READ,
)
async def preview(service: Service, caller: Caller, request: FilledTemplate) -> TemplatePreview:
    """Show the tasks that a run with these values would submit, and submit nothing."""
    found = await _find(service.store, request, actor(caller, "template_preview"))
    group = request.group or (None if found.template.group_prefix else DEFAULT_GROUP)
    return TemplatePreview(template=found.label, group=group, tasks=_filled(found, request))


@declare("template_run", "POST /v1/templates/{name}/run", role=Role.OPERATOR)
async def run(service: Service, caller: Caller, request: RunTemplate) -> TemplateRun:
    """Submit the tasks of a template, with values put in, all of them or none."""
    by = actor(caller, "template_run")
    found = await _find(service.store, request, by)
    prefix = found.template.group_prefix
    new = id_for(prefix, by.name, request.idempotency_key) if prefix else DEFAULT_GROUP
    group = request.group or new
    specs = tuple(grouped(spec, group) for spec in _filled(found, request))
    done = await submit(
        service, caller, "template_run", specs, request.idempotency_key, template=found.label
    )
    return TemplateRun(
        template=found.label,
        group=group,
        tasks=[
            SubmittedAs(task_id=task.task_id, key=task.key, group=task.group, state=task.state)
            for task in done.tasks
        ],
        replayed=done.replayed,
    )


async def _find(store: Store, asked: NamedTemplate, by: Actor) -> _Version:
    """The version asked for, or the newest that was not deleted. Raises: NotFound."""
    if asked.version is not None:
        found = await _version(store, asked.name, asked.version, by)
    else:
        number = await _newest(store, asked.name, by)
        found = None
        while number and (found := await _version(store, asked.name, number, by)) is None:
            number -= 1
    if found is None:
        raise _missing(asked.name, asked.version)
    return found


async def _version(store: Store, name: str, number: int, by: Actor) -> _Version | None:
    record = await store.query(RecordById(KIND, _id(name, number)), by)
    if record is None:
        return None
    kept = _Kept.model_validate(record.body, context=KEPT)
    if kept.template is None:
        return None
    return _Version(name, number, kept.template, kept.saved_by, record.created_at)


async def _newest(store: Store, name: str, by: Actor) -> int:
    """The greatest number given so far, 0 for none: twice as far until past it, then halving."""

    async def given(number: int) -> bool:
        return await store.query(RecordById(KIND, _id(name, number)), by) is not None

    past = 1
    while await given(past):
        past *= 2
    known = past // 2
    while past - known > 1:
        middle = (known + past) // 2
        if await given(middle):
            known = middle
        else:
            past = middle
    return known


async def _enlist(store: Store, name: str, by: Actor) -> None:
    if await store.query(RecordById(NAMES, name), by) is None:
        # Somebody may do the same at this moment; what is written is the same too.
        await store.save(Record(NAMES, name, {}), by)


def _id(name: str, number: int) -> str:
    return f"{name}@{number:06d}"


def _missing(name: str, version: int | None) -> errors.NotFound:
    told = name if version is None else f"{name}@{version}"
    return errors.NotFound(f"no template {told}", hint="template_list shows the templates")


def _filled(found: _Version, request: FilledTemplate) -> list[TaskSpec]:
    values = templates.arguments(found.template, request.parameters)
    return parse(_Tasks, {"tasks": templates.fill(found.template, values)}).tasks


CALLS: tuple[Call, ...] = (save, get, list_, delete, preview, run)

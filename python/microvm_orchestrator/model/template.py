r"""Templates: a task or a whole graph of them with holes, and how values are put in.

Values are data. A string may hold `{{name}}`, and a whole value may be `{"$param": "name"}`, which
keeps the parameter's type; `\{{` writes `{{`. What was put in is not looked at again, names of
object members are left alone, and nothing is ever evaluated. Above sits service/templates.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.model.parameter import NAME, Parameter, ParameterName, ParameterType
from microvm_orchestrator.model.task import Gate, TaskSpec
from microvm_orchestrator.model.values import MAX_GRAPH, Json, Line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MARK = "$param"
# What a template and its values may grow into: four times the largest request by default.
MAX_FILLED = 16 * 1024 * 1024
_PROBLEMS_TOLD = 8

_HOLE = re.compile(rf"\\\{{\{{|\{{\{{\s*({NAME})\s*\}}\}}|\{{\{{")

Blank = Annotated[dict[str, Json], Field(min_length=1)]


class Template(BaseModel):
    """What a template says, without its name and version."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Line = ""
    parameters: Annotated[dict[ParameterName, Parameter], Field(max_length=100)] = {}
    tasks: Annotated[list[Blank], Field(min_length=1, max_length=MAX_GRAPH)] = Field(
        description="tasks as `graph_submit` takes them, without a group; any string may hold "
        '`{{name}}`, any whole value may be {"$param": "name"}, `\\{{` writes `{{`'
    )
    group_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")] | None = (
        Field(default=None, description="each run without a group gets a new one that begins so")
    )


def arguments(template: Template, given: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What each parameter comes to.

    Raises: TemplateInvalid, with all that is wrong.
    """
    problems = [
        f"no parameter is named {name}" for name in given if name not in template.parameters
    ]
    values: dict[str, JsonValue] = {}
    for name, parameter in template.parameters.items():
        if name not in given:
            if parameter.needed:
                problems.append(f"{name} needs a value")
            values[name] = parameter.default
            continue
        try:
            values[name] = parameter.fit(given[name])
        except ValueError as error:
            problems.append(f"{name} {error}")
    if problems:
        raise _invalid(problems)
    return values


def fill(template: Template, values: Mapping[str, JsonValue]) -> list[dict[str, JsonValue]]:
    """The template's tasks with the values put in.

    Raises: TooLarge when they would grow past what a request may be.
    """
    filler = _Filler({name: _Value.of(value) for name, value in values.items()}, MAX_FILLED)
    return [filler.members(task) for task in template.tasks]


@dataclass(frozen=True, slots=True)
class _Value:
    """An argument, as itself and as text."""

    value: JsonValue
    text: str

    @classmethod
    def of(cls, value: JsonValue) -> _Value:
        return cls(
            value, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )


@dataclass(slots=True)
class _Filler:
    values: Mapping[str, _Value]
    # Characters that may still be put in: a small template can name a large value often.
    room: int

    def members(self, value: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
        return {name: self.fill(inner) for name, inner in value.items()}

    def fill(self, value: JsonValue) -> JsonValue:
        match value:
            case str():
                return _HOLE.sub(self._text, value)
            case list():
                return [self.fill(inner) for inner in value]
            case dict():
                return self._taken(str(value[MARK])).value if MARK in value else self.members(value)
            case _:
                return value

    def _text(self, hole: re.Match[str]) -> str:
        return "{{" if hole[1] is None else self._taken(hole[1]).text

    def _taken(self, name: str) -> _Value:
        taken = self.values[name]
        self.room -= len(taken.text)
        if self.room < 0:
            raise errors.TooLarge(f"the template's tasks come to more than {MAX_FILLED} bytes")
        return taken


# What is wrong with a template


def check(template: Template) -> None:
    """Refuse a template that cannot work, whatever is put in.

    Raises: TemplateInvalid, CycleFound, TooLarge.
    """
    mentions = [
        {field: set(_mentions(value)) for field, value in task.items()} for task in template.tasks
    ]
    used = {hole for task in mentions for holes in task.values() for hole in holes}
    problems = [*_hole_problems(template, used)]
    if problems:
        raise _invalid(problems)
    # What callers must give is not known yet: a field made of it can be judged only when they have.
    needed = {name for name, parameter in template.parameters.items() if parameter.needed}
    open_fields = [
        {field for field, holes in task.items() if needed & {hole.name for hole in holes}}
        for task in mentions
    ]
    values = {
        name: parameter.sample(name) if parameter.needed else parameter.default
        for name, parameter in template.parameters.items()
    }
    filled = fill(template, values)
    specs: list[TaskSpec] = []
    for number, (task, fields) in enumerate(zip(filled, open_fields, strict=True)):
        try:
            specs.append(TaskSpec.model_validate(task))
        except ValidationError as error:
            problems += _spec_problems(number, error, fields)
    if problems:
        raise _invalid(problems)
    if len(specs) == len(filled) and not any(
        {"key", "depends_on"} & fields for fields in open_fields
    ):
        _check_graph(specs)


@dataclass(frozen=True, slots=True)
class _Hole:
    name: str
    # Within a longer string, where a list cannot stand.
    in_text: bool


def _mentions(value: JsonValue) -> Iterator[_Hole]:
    match value:
        case str():
            for hole in _HOLE.finditer(value):
                if hole[1] is not None:
                    yield _Hole(hole[1], in_text=True)
                elif hole[0] == "{{":
                    told = value[hole.start() : hole.start() + 40]
                    raise errors.TemplateInvalid(
                        f"{told!r} is no {{{{name}}}}", hint="write \\{{ where {{ is meant"
                    )
        case list():
            for inner in value:
                yield from _mentions(inner)
        case dict() if MARK in value:
            name = value[MARK]
            if len(value) != 1 or not isinstance(name, str):
                raise errors.TemplateInvalid(f'{MARK} stands alone, as in {{"{MARK}": "name"}}')
            yield _Hole(name, in_text=False)
        case dict():
            for name, inner in value.items():
                if (hole := _HOLE.search(name)) and hole[1] is not None:
                    raise errors.TemplateInvalid(f"{name!r} names a member: only values take holes")
                yield from _mentions(inner)
        case _:
            pass


def _hole_problems(template: Template, used: set[_Hole]) -> Iterator[str]:
    names = {hole.name for hole in used}
    yield from (
        f"no parameter is named {name}" for name in sorted(names - set(template.parameters))
    )
    yield from (
        f"parameter {name} is not used" for name in template.parameters if name not in names
    )
    lists = {
        name
        for name, parameter in template.parameters.items()
        if parameter.type is ParameterType.STRINGS
    }
    yield from (
        f'{name} is a list: only {{"{MARK}": "{name}"}} can take it'
        for name in sorted(lists & {hole.name for hole in used if hole.in_text})
    )


def _spec_problems(number: int, error: ValidationError, open_fields: set[str]) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_context=False, include_input=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        if field not in open_fields:
            where = ".".join(str(step) for step in ("tasks", number, *problem["loc"]))
            yield f"{where}: {problem['msg']}"


def _check_graph(specs: list[TaskSpec]) -> None:
    keys = Counter(spec.key for spec in specs if spec.key is not None)
    if problems := [
        f"{count} tasks have the key {key}" for key, count in keys.items() if count > 1
    ]:
        raise _invalid(problems)
    # A key that is not among them may name a task that the group already has.
    graph = {spec.key: _upstreams(spec) & keys.keys() for spec in specs if spec.key is not None}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring: list[str] = error.args[1]
        raise errors.CycleFound(
            f"dependencies would create a cycle: {' -> '.join(ring)}"
        ) from error


def _upstreams(spec: TaskSpec) -> set[str]:
    edges = (
        edge
        for item in spec.depends_on
        for edge in (item.edges if isinstance(item, Gate) else [item])
    )
    return {edge if isinstance(edge, str) else edge.task for edge in edges}


def _invalid(problems: list[str]) -> errors.TemplateInvalid:
    more = f" (and {len(problems) - _PROBLEMS_TOLD} more)" if len(problems) > _PROBLEMS_TOLD else ""
    return errors.TemplateInvalid("; ".join(problems[:_PROBLEMS_TOLD]) + more)

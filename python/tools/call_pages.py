"""The pages of REST and of the MCP tools, read off the table of calls."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
from typing import TYPE_CHECKING

from page import Schema, anchor, given, references, table, taken
from pydantic.json_schema import models_json_schema

from microvm_orchestrator import service
from microvm_orchestrator.service.calls import Call, Effect

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

EFFECTS = {Effect.READ: "reads", Effect.WRITE: "writes", Effect.DESTROY: "destroys"}


def read_calls() -> list[Call]:
    """Collect the calls that the modules of the service declare, noun by noun."""
    modules = sorted(module.name for module in pkgutil.iter_modules(service.__path__))
    found: dict[str, Call] = {}
    for name in modules:
        module = importlib.import_module(f"{service.__name__}.{name}")
        declared = (thing for thing in vars(module).values() if isinstance(thing, Call))
        found |= {call.name: call for call in declared}
    return sorted(found.values(), key=lambda call: call.noun)


def rest_page() -> Iterator[str]:
    yield "# REST\n"
    yield (
        "Each route is a call; the call's fields and its answer are those of the MCP tool of the "
        "same name. A name in braces is a part of the path. GET and DELETE take the other fields "
        "in the query: a list is its key repeated (`state=ready&state=running`), a mapping is "
        "`labels[team]=red`. The other methods take a JSON object. Errors are "
        "`application/problem+json` with a [code](errors.md). The daemon serves this page as "
        "OpenAPI 3.1 at `/openapi.json`.\n"
    )
    for noun, calls in itertools.groupby(read_calls(), key=lambda call: call.noun):
        yield f"## {noun}\n"
        yield from table(
            ("route", "call", "what", "role", "effect"),
            (
                (
                    f"`{call.method} {call.path}`",
                    f"[`{call.name}`](mcp-tools.md#{anchor(call.name)})",
                    call.title,
                    call.role.value,
                    EFFECTS[call.effect],
                )
                for call in calls
            ),
        )


def tools_page() -> Iterator[str]:
    calls = read_calls()
    schemas, definitions = _schemas(calls)
    yield "# MCP tools\n"
    yield (
        "Each tool answers with structured content; an error is a [code](errors.md), its cause and "
        "the next step. The same calls are routes of [REST](rest.md).\n"
    )
    for noun, group in itertools.groupby(calls, key=lambda call: call.noun):
        yield f"## {noun}\n"
        for call in group:
            yield from _tool(call, schemas, definitions)
    yield "## Types\n"
    for name in sorted(set(references(list(definitions.values())))):
        schema = definitions[name]
        if "properties" in schema:
            yield f"### {name}\n"
            if description := schema.get("description"):
                yield f"{description}\n"
            yield from taken(schema, definitions)


Keyed = tuple["type[BaseModel]", "JsonSchemaMode"]


def _models(call: Call) -> tuple[Keyed, Keyed]:
    return (call.request, "validation"), (call.answer, "serialization")


def _schemas(calls: Iterable[Call]) -> tuple[dict[Keyed, str], dict[str, Schema]]:
    """Give the name of the definition of every request and answer, and all definitions."""
    wanted = list(dict.fromkeys(itertools.chain.from_iterable(map(_models, calls))))
    keyed, found = models_json_schema(wanted)
    names = {key: keyed[key]["$ref"].rpartition("/")[2] for key in wanted}
    return names, found.get("$defs", {})


def _tool(call: Call, schemas: dict[Keyed, str], definitions: dict[str, Schema]) -> Iterator[str]:
    request, answer = (definitions[schemas[key]] for key in _models(call))
    hints = [f"needs the role {call.role}", EFFECTS[call.effect]]
    hints += ["idempotent"] if call.idempotent else []
    hints += ["may wait"] if call.waits else []
    yield f"### {call.name}\n"
    yield f"{call.description}\n"
    yield f"{', '.join(hints).capitalize()}.\n"
    if request.get("properties"):
        yield "Takes:\n"
        yield from taken(request, definitions)
    yield "Gives:\n"
    yield from given(answer, definitions)

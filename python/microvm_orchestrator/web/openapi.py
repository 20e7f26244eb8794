"""The OpenAPI 3.1 document of the REST front end, read off the same table as its routes.

Above sits app.py, which serves it; below, the layout of arguments. Made once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.web.arguments import IDEMPOTENCY_FIELD, IDEMPOTENCY_HEADER, Layout
from microvm_orchestrator.web.problems import PROTOCOL, STATUSES, Problem, title_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaMode

    from microvm_orchestrator.service.calls import Call

Document = dict[str, Any]

_INTRODUCTION = """\
Every call of the daemon over HTTP. The same calls, by the same names, are its MCP tools.

On the unix socket the kernel says who asks and a token is needed only to be somebody else; over
the network every request needs one. GET and DELETE take their arguments in the query: a list is
its key repeated (`state=ready&state=running`), a mapping is `labels[team]=red`. The other methods
take a JSON object. What is refused is answered as `application/problem+json`.
"""
# Refusals of HTTP itself that an operation can meet.
_OF_EVERY_OPERATION = {405}
_OF_A_BODY = {415}


def document(calls: Iterable[Call], others: Mapping[str, Document]) -> Document:
    """Describe `calls`, and `others`: paths that are no calls, already described."""
    layouts = [Layout(call) for call in calls]
    schemas = _Schemas(layouts)
    paths: dict[str, Document] = {}
    for layout in layouts:
        operation = _operation(layout, schemas)
        paths.setdefault(layout.call.path, {})[layout.call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "microvm-orchestrator",
            "version": __version__,
            "description": _INTRODUCTION,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"bearer": []}],
        "tags": [{"name": noun} for noun in dict.fromkeys(each.call.noun for each in layouts)],
        "paths": paths | dict(others),
        "components": {
            "schemas": schemas.definitions,
            "responses": _problems(),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token made by `token_create`; on the unix socket optional.",
                }
            },
        },
    }


class _Schemas:
    """The schemas of all models, with names that tell apart what is taken and what is given."""

    def __init__(self, layouts: list[Layout]) -> None:
        wanted: list[tuple[type[BaseModel], JsonSchemaMode]] = [(Problem, "serialization")]
        for layout in layouts:
            wanted.append((layout.call.request, "validation"))
            wanted.append((layout.call.answer, "serialization"))
        self._references, found = models_json_schema(
            list(dict.fromkeys(wanted)), ref_template="#/components/schemas/{model}"
        )
        self.definitions: Document = found["$defs"]

    def taken(self, model: type[BaseModel]) -> Document:
        reference: str = self._references[model, "validation"]["$ref"]
        return self.definitions[reference.rpartition("/")[2]]

    def given(self, model: type[BaseModel]) -> Document:
        return dict(self._references[model, "serialization"])


def _operation(layout: Layout, schemas: _Schemas) -> Document:
    call = layout.call
    schema = schemas.taken(call.request)
    operation: Document = {
        "operationId": call.name,
        "tags": [call.noun],
        "summary": call.title,
        "description": f"{call.description}\n\nNeeds the role `{call.role}`.",
        "parameters": parameters(layout, schema),
        "responses": {
            "200": {
                "description": "the answer",
                "content": {"application/json": {"schema": schemas.given(call.answer)}},
            }
        }
        | responses(with_body=layout.has_body),
    }
    if layout.has_body:
        body = _without(schema, layout.in_path)
        operation["requestBody"] = {
            "required": bool(body.get("required")),
            "content": {"application/json": {"schema": body}},
        }
    return operation


def parameters(layout: Layout, schema: Document) -> list[Document]:
    """Describe what an operation takes outside a body."""
    found: list[Document] = []
    for name, field in schema.get("properties", {}).items():
        if name in layout.in_path:
            found.append(_parameter(name, "path", field, required=True))
        elif not layout.has_body:
            required = name in schema.get("required", ())
            found.append(_parameter(name, "query", field, required=required))
    if layout.takes_key:
        field = schema["properties"][IDEMPOTENCY_FIELD]
        header = _parameter(IDEMPOTENCY_HEADER, "header", field, required=False)
        found.append(header | {"description": f"another place for `{IDEMPOTENCY_FIELD}`"})
    return found


def _parameter(name: str, place: str, field: Document, *, required: bool) -> Document:
    schema = _as_text(field)
    found: Document = {"name": name, "in": place, "required": required, "schema": schema}
    if description := schema.pop("description", None):
        found["description"] = description
    if schema.get("type") == "object":
        found |= {"style": "deepObject", "explode": True}
    return found


def _as_text(field: Document) -> Document:
    """Leave out null, which no text can be: the field is simply not sent."""
    schema = {key: value for key, value in field.items() if key not in {"title", "default"}}
    branches = [one for one in schema.pop("anyOf", []) if one != {"type": "null"}]
    match branches:
        case []:
            pass
        case [only]:
            schema = only | schema
        case several:
            schema["anyOf"] = several
    return schema


def _without(schema: Document, names: tuple[str, ...]) -> Document:
    properties = {key: value for key, value in schema["properties"].items() if key not in names}
    found = schema | {"properties": properties}
    if required := [name for name in schema.get("required", ()) if name not in names]:
        return found | {"required": required}
    found.pop("required", None)
    return found


def responses(*, with_body: bool) -> Document:
    """Refer to every refusal an operation can answer with."""
    statuses = (
        set(STATUSES.values()) | _OF_EVERY_OPERATION | (_OF_A_BODY if with_body else set[int]())
    )
    return {
        str(status): {"$ref": f"#/components/responses/{status}"} for status in sorted(statuses)
    }


def _problems() -> Document:
    titles = {status: title for status, (_, title) in PROTOCOL.items()}
    for kind, status in STATUSES.items():
        if issubclass(kind, errors.OrchestratorError):
            titles[status] = title_of(kind)
    titles[500] = "Something inside failed"
    return {
        str(status): {
            "description": title,
            "content": {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            },
        }
        for status, title in sorted(titles.items())
    }

"""JSON Schemas of the calls, spelt so that every client and model provider can read them.

Clients lint tool schemas for portability: a schema that constrains nothing and a `type` with
several names are what they trip over. Titles made from field names say nothing a name does not and
cost a model's attention in each session, so there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic.json_schema import GenerateJsonSchema

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

_ANY_JSON = [{"type": name} for name in ("object", "array", "string", "number", "boolean", "null")]


class _PortableSchema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - none should
        return False

    def any_schema(self, schema: core_schema.AnySchema) -> JsonSchemaValue:  # noqa: ARG002  # pydantic names it
        return {"anyOf": list(_ANY_JSON)}


# Limits and defaults tell a caller what to send. An answer is what it is, and one that names its
# fields as the only ones could never be given another without breaking strict clients.
_OF_NO_USE_IN_ANSWERS = frozenset(
    {
        "additionalProperties",
        "default",
        "maxItems",
        "maxLength",
        "maximum",
        "minItems",
        "minLength",
        "minimum",
        "pattern",
    }
)


def request_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Give the schema of what a call takes, with all its limits."""
    return _without_titles(
        model.model_json_schema(schema_generator=_PortableSchema, mode="validation")
    )


def answer_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Give the schema of what a call gives: its fields and their types."""
    return _slim(
        _without_titles(
            model.model_json_schema(schema_generator=_PortableSchema, mode="serialization")
        )
    )


def _without_titles(schema: dict[str, Any]) -> dict[str, Any]:
    """Take out the names of classes, which were written for readers of the code."""
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
    return schema


def _slim(schema: dict[str, Any]) -> dict[str, Any]:
    slim: dict[str, Any] = {}
    for key, value in schema.items():
        match key, value:
            case (("properties" | "$defs"), dict()):
                named = cast("dict[str, dict[str, Any]]", value)
                slim[key] = {name: _slim(part) for name, part in named.items()}
            case (("items" | "additionalProperties"), dict()):
                slim[key] = _slim(cast("dict[str, Any]", value))
            case (("anyOf" | "oneOf" | "allOf"), list()):
                slim[key] = [_slim(part) for part in cast("list[dict[str, Any]]", value)]
            case _:
                if key not in _OF_NO_USE_IN_ANSWERS:
                    slim[key] = value
    return slim

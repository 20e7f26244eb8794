"""JSON Schemas of the calls, spelt so that every client and model provider can read them.

Clients lint tool schemas for portability: a schema that constrains nothing and a `type` with
several names are what they trip over. Titles made from field names say nothing a name does not and
cost a model's attention in each session, so there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import GenerateJsonSchema

if TYPE_CHECKING:
    from typing import Literal

    from pydantic import BaseModel
    from pydantic.json_schema import JsonSchemaValue
    from pydantic_core import core_schema

_ANY_JSON = [{"type": name} for name in ("object", "array", "string", "number", "boolean", "null")]


class _PortableSchema(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - none should
        return False

    def any_schema(self, schema: core_schema.AnySchema) -> JsonSchemaValue:  # noqa: ARG002
        return {"anyOf": list(_ANY_JSON)}


def schema_of(
    model: type[BaseModel], mode: Literal["validation", "serialization"]
) -> dict[str, Any]:
    """Give the schema of what a call takes (`validation`) or gives (`serialization`)."""
    schema = model.model_json_schema(schema_generator=_PortableSchema, mode=mode)
    _drop_class_words(schema)
    for part in schema.get("$defs", {}).values():
        _drop_class_words(part)
    return schema


def _drop_class_words(schema: dict[str, Any]) -> None:
    """Take out what was written for readers of the code: a class's name."""
    schema.pop("title", None)

"""The pieces of a reference page: tables, and what a JSON schema takes in words."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Schema = dict[str, Any]


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    lines = [_cells(row) for row in rows]
    if lines:
        yield "\n".join([_cells(head), _cells(("---",) * len(head)), *lines]) + "\n"


def _cells(row: tuple[str, ...]) -> str:
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in row) + " |"


def paragraph(thing: object) -> str:
    """Return the first paragraph of a docstring."""
    return (inspect.getdoc(thing) or "").partition("\n\n")[0]


def anchor(name: str) -> str:
    return name.lower()


def referred(schema: Schema) -> str:
    """Return the name of the definition a schema refers to."""
    return schema["$ref"].rpartition("/")[2]


def type_of(schema: Schema, definitions: dict[str, Schema]) -> str:
    """Say in words what a JSON schema takes; an object with fields is a link to its own table."""
    if "$ref" in schema:
        name = referred(schema)
        inner = definitions[name]
        return (
            f"[{name}](#{anchor(name)})" if "properties" in inner else type_of(inner, definitions)
        )
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(type_of(each, definitions) for each in schema[key]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "null":
            return "none"
        case "array":
            return f"list of {type_of(schema.get('items', {}), definitions)}"
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            return f"mapping to {type_of(schema['additionalProperties'], definitions)}"
        case None:
            return "any JSON"
        case kind:
            return schema.get("format", kind) + _limits(schema)


def _limits(schema: Schema) -> str:
    words = {
        "minimum": "at least {}",
        "exclusiveMinimum": "more than {}",
        "maximum": "at most {}",
        "maxLength": "at most {} characters",
    }
    found = [
        text.format(f"{schema[key]:,}".removesuffix(".0"))
        for key, text in words.items()
        if key in schema
    ]
    return f" ({', '.join(found)})" if found else ""


def taken(schema: Schema, definitions: dict[str, Schema]) -> Iterator[str]:
    """Show what is taken: the fields of an object, and what they are when they are left out."""
    required = schema.get("required", ())
    rows = (
        (
            f"`{name}`",
            type_of(field, definitions),
            "required" if name in required else _default(field),
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    )
    yield from table(("field", "type", "default", "meaning"), rows)


def given(schema: Schema, definitions: dict[str, Schema]) -> Iterator[str]:
    """Show what is given: every field is always there."""
    rows = (
        (f"`{name}`", type_of(field, definitions), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    )
    yield from table(("field", "type", "meaning"), rows)


def _default(field: Schema) -> str:
    value = field.get("default")
    return "" if value is None else f"`{json.dumps(value)}`"


def references(schema: object) -> Iterator[str]:
    """Name every definition that a schema refers to, however deep."""
    if isinstance(schema, dict):
        found = cast("Schema", schema)
        if "$ref" in found:
            yield referred(found)
        schema = list(found.values())
    if isinstance(schema, list):
        for inner in cast("list[object]", schema):
            yield from references(inner)

"""Where the arguments of a call stand in an HTTP request, and how text becomes a value.

Path and query carry only text; each piece is read as the type its field has in the JSON schema of
the request, and what does not read so goes on as text, so that the service says what is wrong.
The same description is what the OpenAPI document is made of. Above sit api.py and openapi.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from microvm_orchestrator.service.calls import Call

Schema = dict[str, Any]

# Methods whose arguments stand in the query; the others carry a JSON body.
QUERY_METHODS = frozenset({"GET", "DELETE"})
IDEMPOTENCY_FIELD = "idempotency_key"
IDEMPOTENCY_HEADER = "idempotency-key"

_PARAMETER = re.compile(r"{(\w+)}")
# `labels[team]=red`: what OpenAPI calls deepObject.
_MEMBER = re.compile(r"([^\[\]]+)\[([^\[\]]*)\]")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True)
class Layout:
    """One call's fields, by the place where a request carries them."""

    call: Call

    @cached_property
    def in_path(self) -> tuple[str, ...]:
        return tuple(_PARAMETER.findall(self.call.path))

    @property
    def has_body(self) -> bool:
        return self.call.method not in QUERY_METHODS

    @cached_property
    def schema(self) -> Schema:
        return self.call.request.model_json_schema()

    @cached_property
    def fields(self) -> Mapping[str, Schema]:
        return self.schema.get("properties", {})

    @property
    def takes_key(self) -> bool:
        return IDEMPOTENCY_FIELD in self.fields

    def from_path(self, found: Mapping[str, str]) -> dict[str, object]:
        return {name: self._value(name, text) for name, text in found.items()}

    def from_query(self, pairs: Iterable[tuple[str, str]]) -> dict[str, object]:
        """Read a query: a list is its key repeated, a mapping is `field[key]=value`."""
        found: dict[str, object] = {}
        for key, text in pairs:
            member = _MEMBER.fullmatch(key)
            if member:
                name, inner = member.groups()
                self._add_member(found, name, inner, text)
            else:
                self._add(found, key, text)
        return found

    def _add(self, found: dict[str, object], name: str, text: str) -> None:
        items = self._kind(name, "array")
        if items is not None:
            values = cast("list[object]", found.setdefault(name, []))
            values.append(self._read(items.get("items", {}), text))
        elif self._kind(name, "object") is not None:
            raise errors.InvalidInput(f"{name} is written {name}[key]=value")
        elif name in found:
            raise errors.InvalidInput(f"{name[:80]} is given twice")
        else:
            found[name] = self._value(name, text)

    def _add_member(self, found: dict[str, object], name: str, key: str, text: str) -> None:
        table = self._kind(name, "object")
        if table is None:
            raise errors.InvalidInput(f"{name[:80]} takes no [{key[:80]}]")
        values = cast("dict[str, object]", found.setdefault(name, {}))
        inner = next(self._branches(_members(table)))
        if inner.get("type") == "array":
            several = cast("list[object]", values.setdefault(key, []))
            several.append(self._read(inner.get("items", {}), text))
        elif key in values:
            raise errors.InvalidInput(f"{name[:80]}[{key[:80]}] is given twice")
        else:
            values[key] = self._read(inner, text)

    def _value(self, name: str, text: str) -> object:
        return self._read(self.fields.get(name, {}), text)

    def _kind(self, name: str, kind: str) -> Schema | None:
        branches = self._branches(self.fields.get(name, {}))
        return next((branch for branch in branches if branch.get("type") == kind), None)

    def _read(self, schema: Schema, text: str) -> object:
        for branch in self._branches(schema):
            value = _fit(branch, text)
            if value is not None:
                return value
        return text

    def _branches(self, schema: Schema) -> Iterator[Schema]:
        """Yield the alternatives of a schema in their order, references followed."""
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            yield from self._branches(self.schema["$defs"][name])
        elif "anyOf" in schema or "oneOf" in schema:
            several: list[Schema] = schema.get("anyOf") or schema["oneOf"]
            for branch in several:
                yield from self._branches(branch)
        else:
            yield schema


def _members(table: Schema) -> Schema:
    """Return the schema of a mapping's values; keys with a pattern stand apart from the rest."""
    patterns = table.get("patternProperties")
    if patterns:
        return next(iter(patterns.values()))
    rest: Schema | bool = table.get("additionalProperties", False)
    return {} if isinstance(rest, bool) else rest


def _fit(schema: Schema, text: str) -> object | None:
    """Read `text` as the type of one alternative, or as None where it is none."""
    if "const" in schema or "enum" in schema:
        values = schema.get("enum") or [schema["const"]]
        return next((value for value in values if str(value) == text), None)
    match schema.get("type"):
        case "integer" if _INTEGER.fullmatch(text):
            return int(text)
        case "number" if _NUMBER.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        case "boolean" if text in {"true", "false"}:
            return text == "true"
        case "string":
            return text
        case _:
            return None

"""The settings as the NixOS module reads them, and the page of its options.

The module makes an option of each setting in `python/nix/module/settings.json`, which is written
from the code. The options themselves are known to Nix alone: `tests/nix/rendered/options.json` is
what it told of them, and a test asks it again wherever there is one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from page import table

from microvm_orchestrator.config import SETTINGS, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from page import Schema

ROOT = Path(__file__).parents[2]
SETTINGS_FILE = ROOT / "python/nix/module/settings.json"
OPTIONS_FILE = ROOT / "tests/nix/rendered/options.json"
PREFIX = "services.microvm-orchestrator."
# What of a schema an option of Nix can check.
_CHECKED = ("minimum", "exclusiveMinimum", "maximum", "description")


def settings_text() -> str:
    """Tell of every setting its key and what it takes, the references of the schema resolved."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]

    def found(key: str) -> Schema:
        at: Schema = schema
        for name in key.split("."):
            at = _resolved(at, definitions)["properties"][name]
        return at

    told = [{"key": key, **_simple(found(key), definitions, words=True)} for key in SETTINGS]
    return json.dumps(told, indent=2) + "\n"


def _resolved(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    if "$ref" not in schema:
        return schema
    # What stands beside a reference says more of it, as a description does.
    beside = {name: value for name, value in schema.items() if name != "$ref"}
    return {**definitions[schema["$ref"].rpartition("/")[2]], **beside}


def _simple(schema: Schema, definitions: dict[str, Schema], *, words: bool = False) -> Schema:
    """Keep what the module understands. A null is what an option has that nobody has set.

    TOML has no null: with `words`, a number that may be missing is so by the word `none`.
    """
    schema = _resolved(schema, definitions)
    kept: Schema = {name: _whole(schema[name]) for name in _CHECKED if name in schema}
    if "anyOf" in schema:
        kinds = [_simple(each, definitions) for each in schema["anyOf"] if each != {"type": "null"}]
        if words and kinds[0].get("type") in {"integer", "number"}:
            kinds.append({"enum": ["none"]})
        return {**kinds[0], **kept} if len(kinds) == 1 else {**kept, "anyOf": kinds}
    if "enum" in schema:
        return {**kept, "enum": schema["enum"]}
    kept["type"] = schema["type"]
    if "items" in schema:
        kept["items"] = _simple(schema["items"], definitions)
    if "properties" in schema:
        fields = cast("dict[str, Schema]", schema["properties"])
        kept["properties"] = {name: _simple(each, definitions) for name, each in fields.items()}
        kept["required"] = schema.get("required", [])
    elif schema["type"] == "object":
        # Where a name has to look like something, the daemon says so.
        named = schema.get("patternProperties", {"": schema.get("additionalProperties")})
        [values] = named.values()
        kept["additionalProperties"] = _simple(values, definitions)
    return kept


def _whole(value: object) -> object:
    """Nix shows 1.0 as 1.000000."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def options_page() -> Iterator[str]:
    yield "# Options of the NixOS module\n"
    yield (
        "What can be set below `services.microvm-orchestrator`. How to begin: "
        "[run it on NixOS](../how-to/run-on-nixos.md). The options below `settings` are the "
        "daemon's own settings, each under its key: [settings](config.md).\n"
    )
    options = cast("dict[str, dict[str, Any]]", json.loads(OPTIONS_FILE.read_text()))
    for name, option in options.items():
        yield f"## `{name.removeprefix(PREFIX)}`\n"
        yield f"{option['description'].strip()}\n"
        rows = [("type", option["type"])]
        rows += [(word, _code(option[word])) for word in ("default", "example") if option[word]]
        yield from table(("", ""), rows)


def _code(text: str) -> str:
    return f"`{' '.join(text.split())}`"

"""Write docs/reference from the code, or check that it says what the code says.

    python python/tools/reference.py            write the pages
    python python/tools/reference.py --check    fail and name the pages that are stale

Each page is a function here that reads the real objects: the tree of errors, the settings, the
table of calls, the commands. The settings are written for the NixOS module too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from call_pages import rest_page, tools_page
from cli_page import cli_page
from nixos_options import SETTINGS_FILE, options_page, settings_text
from page import paragraph, table, type_of

from microvm_orchestrator import errors, places
from microvm_orchestrator.config import SETTINGS, Section, Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pydantic.fields import FieldInfo

PAGES = Path(__file__).parents[2] / "docs" / "reference"
NOTE = "<!-- Written by `make docs` from the code; change it there. -->\n"


def errors_page() -> Iterator[str]:
    yield "# Error codes\n"
    yield (
        "Every error carries a stable code, a sentence that names the object and the limit, and "
        "often a hint: the next step. The code is the same over MCP, REST and the command line.\n"
    )
    yield from table(("code", "is a", "meaning"), error_rows(errors.OrchestratorError))


def error_rows(kind: type[errors.OrchestratorError]) -> Iterator[tuple[str, ...]]:
    for child in kind.__subclasses__():
        above = "" if kind is errors.OrchestratorError else f"`{kind.code}`"
        yield f"`{child.code}`", above, paragraph(child)
        yield from error_rows(child)


def config_page() -> Iterator[str]:
    yield "# Settings\n"
    yield (
        "From weakest to strongest: the default, the TOML file, the environment, the flags of "
        "`serve`. An unknown key is an error. How to set one: "
        "[configure the daemon](../how-to/configure.md).\n"
    )
    yield from section("", Settings)
    yield "## Where things lie\n"
    name = places.NAME
    state = ("`$STATE_DIRECTORY`", f"`{places.SYSTEM_STATE}`", f"`$XDG_STATE_HOME/{name}`")
    run = (
        "`$RUNTIME_DIRECTORY/socket`",
        f"`{places.SYSTEM_SOCKET}`",
        f"`$XDG_RUNTIME_DIR/{name}/socket`",
    )
    head = ("key", "as a service", "as root", "as a user")
    yield from table(head, [("`state_dir`", *state), ("`socket.path`", *run)])


def section(name: str, model: type[Section]) -> Iterator[str]:
    prefix = f"{name}." if name else ""
    rows: list[tuple[str, ...]] = []
    inner: list[tuple[str, type[Section]]] = []
    schema = model.model_json_schema()
    for field_name, field in model.model_fields.items():
        key = prefix + field_name
        if key in SETTINGS:
            kind = type_of(schema["properties"][field_name], schema.get("$defs", {}))
            rows.append((f"`{key}`", kind, default_of(key, field), field.description or ""))
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            inner.append((key, field.annotation))
    if name:
        yield f"## `[{name}]`\n"
        yield f"{paragraph(model)}\n"
    yield from table(("key", "type", "default", "meaning"), rows)
    for key, below in inner:
        yield from section(key, below)


def default_of(key: str, field: FieldInfo) -> str:
    if field.is_required():
        return "[see below](#where-things-lie)"
    value: Any = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    if key.endswith("mode"):
        return f"`0o{value:o}`"
    return f"`{list(value) if isinstance(value, tuple) else value}`"  # pyright: ignore[reportUnknownArgumentType] - shown, not used


WRITERS: dict[str, Callable[[], Iterator[str]]] = {
    "cli.md": cli_page,
    "config.md": config_page,
    "errors.md": errors_page,
    "mcp-tools.md": tools_page,
    "nixos-options.md": options_page,
    "rest.md": rest_page,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=paragraph(sys.modules[__name__]))
    parser.add_argument("--check", action="store_true", help="write nothing; fail when stale")
    check = bool(parser.parse_args().check)
    pages = {PAGES / name: NOTE + "\n" + "\n".join(write()) for name, write in WRITERS.items()}
    # No page, but read off the code likewise.
    pages[SETTINGS_FILE] = settings_text()
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text() != text]
    stale += sorted(set(PAGES.glob("*")) - set(pages))
    if check and stale:
        names = ", ".join(path.name for path in stale)
        print(f"docs/reference is stale: {names}; run `make docs`", file=sys.stderr)
        return 1
    if not check:
        PAGES.mkdir(parents=True, exist_ok=True)
        for path in stale:
            path.unlink(missing_ok=True)
        for path, text in pages.items():
            path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

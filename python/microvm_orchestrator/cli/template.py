"""`template`: graphs with holes, saved once and run with values."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import (
    Cursor,
    IdempotencyKey,
    Limit,
    complete_group,
    complete_template,
)

app = typer.Typer(help="Templates: graphs with holes, saved under a name and a version.")

BRIEF = ("name", "version", "task_count", "parameters", "description", "saved_at")
PLANNED = ("key", "title", "depends_on", "priority", "labels", "input")

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="The template.", autocompletion=complete_template, show_default=False
    ),
]
Version = Annotated[
    int | None,
    typer.Option("--version", metavar="N", help="Which version; by default the newest."),
]
Params = Annotated[
    list[str] | None,
    typer.Option(
        "--param",
        metavar="NAME=VALUE",
        help="A value for a parameter; may be repeated. It is read as the type the template "
        "declares; a list of strings is the option repeated.",
    ),
]
Parameters = Annotated[
    str | None,
    typer.Option("--parameters", metavar="JSON|@FILE|-", help="All values at once, as an object."),
]
RunGroup = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        help="The group of its tasks; by default a new one if the template has a prefix for it.",
        autocompletion=complete_group,
    ),
]


@command(
    app, "save", example="template save release.toml\ntemplate save nightly.json --name nightly"
)
def save(
    here: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="TOML if its name ends so, else JSON; - is JSON on standard input. An object "
            "with `tasks`, and maybe `name`, `description`, `parameters`, `group_prefix`.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="The template's name, if not the file's."),
    ] = None,
) -> None:
    """Save a template as a new version.

    Its tasks are those of a graph with holes: `{{name}}` in any text, {"$param": "name"} for a
    whole value. Saving what the newest version says already makes no new one.
    """
    given = values.fields(file)
    here.tell("template_save", given if name is None else {**given, "name": name})


@command(app, "get", example="template get release --version 3 --json")
def get(here: Session, name: Name, version: Version = None) -> None:
    """Show one version of a template, by default the newest."""
    here.tell("template_get", {"name": name, "version": version}, _show)


def _show(answer: dict[str, Any]) -> None:
    output.record({**answer, "parameters": None, "tasks": None})
    for title, columns, rows in (
        ("parameters", _DECLARED, [{"name": n, **p} for n, p in answer["parameters"].items()]),
        ("tasks", PLANNED, answer["tasks"]),
    ):
        if rows:
            output.line(f"\n{title}")
            output.table(columns, rows)


_DECLARED = ("name", "type", "default", "choices", "description")


@command(app, "list", example="template list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List the templates by name, each with its newest version and what it takes."""

    def show(answer: dict[str, Any]) -> None:
        items = [{**item, "parameters": list(item["parameters"])} for item in answer["items"]]
        output.page({**answer, "items": items}, BRIEF, "no templates")

    here.tell("template_list", {"limit": limit, "cursor": cursor}, show)


@command(app, "delete", example="template delete release --version 2")
def delete(
    here: Session,
    name: Name,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", help="Only this version; by default all of them."),
    ] = None,
) -> None:
    """Delete a template, or one version of it. Tasks made from it stay as they are."""
    here.tell("template_delete", {"name": name, "version": version})


@command(app, "preview", example="template preview release --param version=1.10")
def preview(
    here: Session,
    name: Name,
    version: Version = None,
    params: Params = None,
    parameters: Parameters = None,
    group: RunGroup = None,
) -> None:
    """Show the tasks that a run with these values would submit, and submit nothing."""
    given = _filled(here, name, version, params, parameters)

    def show(answer: dict[str, Any]) -> None:
        output.record({"template": answer["template"], "group": answer["group"] or "a new one"})
        output.table(PLANNED, answer["tasks"])

    here.tell("template_preview", {**given, "group": group}, show)


@command(
    app,
    "run",
    example="template run release --param version=1.10 --param replicas=3 --idempotency-key v1.10",
)
def run(
    here: Session,
    name: Name,
    version: Version = None,
    params: Params = None,
    parameters: Parameters = None,
    group: RunGroup = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Submit the tasks of a template, with values put in, all of them or none."""
    given = _filled(here, name, version, params, parameters)
    more = {"group": group, "idempotency_key": idempotency_key}
    here.tell("template_run", {**given, **more})


def _filled(
    here: Session,
    name: str,
    version: int | None,
    params: list[str] | None,
    parameters: str | None,
) -> dict[str, Any]:
    """Put the values together; the template is looked at where words need their types."""
    chosen: Any = values.json_value(parameters, "--parameters")
    given: dict[str, Any] = {"name": name, "version": version, "parameters": chosen}
    if params:
        declared = here.client.call("template_get", {"name": name, "version": version}).value
        words = values.parameters(params, declared["parameters"])
        given["parameters"] = values.merged(chosen or {}, words)
    return given

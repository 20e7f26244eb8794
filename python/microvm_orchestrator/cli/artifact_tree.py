"""`artifact register` and the like: trees that are brought to the nodes of clusters."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.artifact import app
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import Cursor, Limit
from microvm_orchestrator.cli.repo import path_of
from microvm_orchestrator.cli.values import json_value

_BRIEF = ("artifact_id", "build_type", "kernel_version", "files", "size", "source_path")
_FILE = ("path", "size", "executable", "digest")

TreeRef = Annotated[
    str,
    typer.Argument(metavar="ARTIFACT", help="The artifact's digest.", show_default=False),
]


@command(
    app,
    "register",
    example="artifact register ~/src/driver\n"
    "artifact register ~/src/driver/debs --build-type deb --metadata '{\"ticket\": 7}'",
)
def register(
    here: Session,
    path: Annotated[
        str,
        typer.Argument(metavar="FOLDER", help="A folder of the daemon's host.", show_default=False),
    ],
    build_type: Annotated[
        str | None,
        typer.Option(
            "--build-type",
            metavar="raw_tree|make_install|rpm|deb",
            help="How it is installed where nothing is said; raw_tree by default.",
        ),
    ] = None,
    kernel_version: Annotated[
        str | None,
        typer.Option(
            "--kernel-version",
            metavar="RELEASE",
            help="What its modules are for; by default what include/generated/utsrelease.h says.",
        ),
    ] = None,
    test_framework_path: Annotated[
        str | None,
        typer.Option("--test-framework-path", metavar="PATH", help="Where its tests are."),
    ] = None,
    metadata: Annotated[
        str | None, typer.Option("--metadata", metavar="JSON", help="Of your own, kept as it is.")
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Take a folder in as an artifact, to be brought to nodes of clusters.

    Its name is the digest of what is in it; all of it is kept, whatever becomes of the folder.
    """
    given = {
        "path": path_of(path),
        "build_type": build_type,
        "kernel_version": kernel_version,
        "test_framework_path": test_framework_path,
        "metadata": json_value(metadata, "--metadata"),
    }
    return follow(here, "artifact_register", given, wait_s, _show)


def _show(tree: dict[str, Any]) -> None:
    counted = {name: len(tree[name]) for name in ("modules", "userspace_bins", "left_out")}
    output.record({**tree, **counted})
    for each in tree["left_out"]:
        say(f"left out: {each['name']}: {each['reason']}")


@command(app, "trees", example="artifact trees")
def trees(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List the artifacts that were registered."""
    given = {"limit": limit, "cursor": cursor}
    nothing = "none; `artifact register` takes a folder in"
    here.tell("artifact_trees", given, lambda answer: output.page(answer, _BRIEF, nothing))


@command(app, "show", example=f"artifact show {'0f' * 32}")
def show(
    here: Session,
    artifact_id: TreeRef,
    offset: Annotated[
        int | None, typer.Option("--offset", metavar="N", help="How many files to pass over.")
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", metavar="N", help="How many files to list; 200 by default."),
    ] = None,
) -> None:
    """Look at an artifact that was registered, and at its files."""
    given = {"artifact_id": artifact_id, "offset": offset, "limit": limit}
    here.tell("artifact_show", given, _show_files)


def _show_files(answer: dict[str, Any]) -> None:
    _show(answer["artifact"])
    output.table(_FILE, answer["files"])
    if answer["next"] is not None:
        say(f"more files: --offset {answer['next']}")


@command(app, "diff", example=f"artifact diff {'0f' * 32} {'a5' * 32}")
def diff(
    here: Session,
    artifact_id: TreeRef,
    other: Annotated[
        str,
        typer.Argument(
            metavar="OTHER", help="The one that it is compared with.", show_default=False
        ),
    ],
) -> None:
    """Compare two artifacts as they were registered."""
    here.tell("artifact_diff", {"artifact_id": artifact_id, "other": other}, _show_diff)


def _show_diff(answer: dict[str, Any]) -> None:
    for sign, name in (("-", "removed"), ("+", "added"), ("M", "changed")):
        for path in answer[name]:
            output.line(f"{sign} {path}")
    for commit in answer["git_log"] or ():
        output.line(commit)
    if answer["truncated"]:
        say("more differs than is shown")


@command(app, "remove", example=f"artifact remove {'0f' * 32}")
def remove(here: Session, artifact_id: TreeRef) -> None:
    """Forget an artifact that was registered; what nodes have of it they keep."""
    here.tell("artifact_remove", {"artifact_id": artifact_id})

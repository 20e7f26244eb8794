"""`file`: small files in machines; `machine cp` copies large ones and folders."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine import MachineRef
from microvm_orchestrator.cli.values import octets_at

app = typer.Typer(help="Small files in machines; `machine cp` copies large ones and folders.")

GuestPath = Annotated[
    str,
    typer.Argument(metavar="PATH", help="An absolute path in the machine.", show_default=False),
]
Content = Annotated[str | None, typer.Option("--content", metavar="TEXT", help="What it holds.")]
ContentBase64 = Annotated[
    str | None, typer.Option("--content-base64", metavar="BASE64", help="The same, in base64.")
]
Mode = Annotated[
    str | None,
    typer.Option("--mode", metavar="OCTAL", help="Its permissions; 0644 by default."),
]
MaxSize = Annotated[
    int | None,
    typer.Option("--max-size", metavar="BYTES", help="A larger one is refused; 1 MiB at most."),
]


@command(app, "put", example="file put box /etc/motd --content hello")
def put(
    here: Session,
    machine: MachineRef,
    path: GuestPath,
    content: Content = None,
    content_base64: ContentBase64 = None,
    mode: Mode = None,
    parents: Annotated[
        bool | None,
        typer.Option("--parents", help="Make the folders above it.", show_default=False),
    ] = None,
    user: Annotated[
        str | None, typer.Option("--user", metavar="USER", help="Its owner; root by default.")
    ] = None,
) -> None:
    """Write a small file in a machine, whole or not at all."""
    given = {
        "machine": machine,
        "path": path,
        "content": content,
        "content_base64": content_base64,
        "mode": mode,
        "parents": parents,
        "user": user,
    }
    here.tell("file_put", given)


@command(app, "get", example="file get box /etc/os-release")
def get(
    here: Session,
    machine: MachineRef,
    path: GuestPath,
    max_size: MaxSize = None,
) -> None:
    """Write a small file of a machine to standard output."""
    given = {"machine": machine, "path": path, "max_size": max_size}
    here.tell("file_get", given, write)


def write(answer: dict[str, Any]) -> None:
    """Write what a file holds to standard output."""
    sys.stdout.flush()
    sys.stdout.buffer.write(octets_at(answer["content"], answer.get("content_base64")))
    sys.stdout.buffer.flush()

"""`machine run`: a program in a machine of its own, the same way every time.

Above sits the program; below, the calls of machines.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import execs, failure
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.machine import app
from microvm_orchestrator.cli.machine_exec import Words
from microvm_orchestrator.cli.operation import WaitS, see_through, status_of
from microvm_orchestrator.cli.values import pairs


@command(
    app,
    "run",
    example="machine run --deterministic 7 -- python3 -c 'import random; print(random.random())'\n"
    "machine run --deterministic 7 --file test.py=./test.py -- python3 test.py",
)
def run(
    here: Session,
    deterministic: Annotated[
        int,
        typer.Option(
            "--deterministic",
            metavar="SEED",
            help="The seed of all that is random in the guest.",
            show_default=False,
        ),
    ],
    argv: Words = None,
    script: Annotated[
        str | None,
        typer.Option("--script", metavar="TEXT", help="Instead of words: run by /bin/sh -c."),
    ] = None,
    stdin: Annotated[
        str | None,
        typer.Option("--stdin", metavar="FILE", help="Its input: a file, or - for ours."),
    ] = None,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="PATH=FILE",
            help="A file of here that lies in the folder it runs in; may be repeated.",
        ),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option("--image", metavar="IMAGE", help="What it runs in: a name or digest."),
    ] = None,
    memory_mib: Annotated[
        int | None, typer.Option("--memory-mib", metavar="MIB", help="The machine's memory.")
    ] = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s", metavar="SECONDS", help="Of this host's time; 600 seconds by default."
        ),
    ] = None,
    output_cap: Annotated[
        int | None,
        typer.Option(
            "--output-cap", metavar="BYTES", help="How much of each of stdout and stderr is kept."
        ),
    ] = None,
    queue: Annotated[
        bool | None,
        typer.Option(
            "--queue/--no-queue",
            help="Wait in line when all slots are busy, as is usual, or be refused.",
            show_default=False,
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Run a program in a new machine without network, clock or chance, and exit as it did.

    With the same seed, and all else the same, its console and its results are the same to the
    byte. Nothing of the machine is left.
    """
    contents = {path: _octets(name) for path, name in (pairs(files, "--file") or {}).items()}
    given: dict[str, object] = {
        "deterministic": deterministic,
        "argv": argv or None,
        "script": script,
        "stdin_base64": None if stdin is None else _encoded(_octets(stdin)),
        "files_base64": {path: _encoded(data) for path, data in contents.items()} or None,
        "image": image,
        "memory_mib": memory_mib,
        "timeout_s": timeout_s,
        "output_cap": output_cap,
        "queue": queue,
    }
    operation = see_through(here, "machine_run", given, wait_s, _show)
    if operation["state"] != "succeeded":
        return status_of(operation, tell=not here.json)
    exit_code = operation["result"]["exit_code"]
    return failure.TASK_FAILED if exit_code is None else int(exit_code)


def _show(result: dict[str, Any]) -> None:
    for channel in ("stdout", "stderr"):
        execs.write(channel, result[channel], result.get(f"{channel}_base64"))
    failure.say(f"sha256 {result['sha256']}")
    if result["exit_code"] is None:
        failure.say(f"it has no exit code: {result['reason']}")


def _octets(name: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise errors.InvalidInput(f"cannot read {name}: {error.strerror}") from error


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()

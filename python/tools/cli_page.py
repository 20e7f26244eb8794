"""The page of the command line, read off the tree of its commands."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import typer.main
from page import table

from microvm_orchestrator import places
from microvm_orchestrator.cli import failure
from microvm_orchestrator.cli.program import application

if TYPE_CHECKING:
    from collections.abc import Iterator

# Typer brings its click along under no public name; what is read here is what click documents.
Command = Any
Parameter = Any

# Options of every command that talks to the daemon, told once.
_COMMON = ("json", "socket", "address", "token_file")
_OUTCOMES = {
    failure.OK: "done; for `task wait` and `task watch`: every task is done",
    failure.TASK_FAILED: "`task wait`, `task watch`: a task failed",
    failure.TASK_CANCELLED: "`task wait`, `task watch`: a task was cancelled",
    failure.TIMED_OUT: "`task wait`: the time was up before the task had finished",
    failure.INTERRUPTED: "interrupted by ^C; a wait that ends so cancels nothing",
}


def cli_page() -> Iterator[str]:
    root: Command = typer.main.get_command(application(drawn=False))
    yield "# Command line\n"
    yield (
        f"`{places.NAME} COMMAND --help` says the same. Data goes to stdout, everything else to "
        "stderr. On a terminal tables are drawn; elsewhere they are plain text, and with `--json` "
        "what the API answers, one document to a line. How to use it: "
        "[use the command line](../how-to/use-the-cli.md).\n"
    )
    yield "## Exit status\n"
    yield from table(("status", "meaning"), _statuses())
    yield "## Connection and output\n"
    yield "Every command that talks to the daemon takes these too.\n"
    common = _parameters(root.commands["task"].commands["get"])
    yield from _options([common[name] for name in _COMMON])
    for path, command in _leaves(root, ()):
        yield f"## {' '.join(path)}\n"
        yield f"```text\n{_usage(path, command)}\n```\n"
        yield f"{inspect.cleandoc(command.help)}\n"
        found = _parameters(command)
        shared = {
            name for name in _COMMON if found.get(name) and found[name].help == common[name].help
        }
        own = [param for name, param in found.items() if name not in shared]
        yield from _options(own)
        examples = command.epilog.splitlines()[2:]
        yield "```console\n" + "\n".join(line.strip() for line in examples) + "\n```\n"


def _statuses() -> Iterator[tuple[str, ...]]:
    kinds = {
        status: [kind for kind, found in failure.STATUSES.items() if found == status]
        for status in failure.STATUSES.values()
    }
    told = {
        status: ", ".join(f"`{kind.code}`" for kind in found) + _others(status)
        for status, found in kinds.items()
    }
    for status, meaning in sorted((told | _OUTCOMES).items()):
        yield str(status), meaning


def _others(status: int) -> str:
    match status:
        case failure.INTERNAL:
            return ", a bug; for `doctor`: a check failed"
        case failure.INVALID:
            return " and what is below them, and words that cannot be read"
        case failure.UNKNOWN_OUTCOME:
            return ": look before you repeat it"
        case failure.UNAVAILABLE:
            return " and what is below it; also when nobody listens on the socket"
        case _:
            return " and what is below it"


def _leaves(command: Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Command]]:
    below: dict[str, Command] | None = getattr(command, "commands", None)
    if below is None:
        yield path, command
        return
    for name, child in below.items():
        yield from _leaves(child, (*path, name))


def _parameters(command: Command) -> dict[str, Parameter]:
    return {param.name: param for param in command.params if param.name != "help"}


def _usage(path: tuple[str, ...], command: Command) -> str:
    words = [
        param.metavar or f"{{{'|'.join(param.type_descriptor.choices)}}}"
        for param in command.params
        if param.param_type_name == "argument"
    ]
    return " ".join([places.NAME, *path, *words, "[OPTIONS]"])


def _options(params: list[Parameter]) -> Iterator[str]:
    rows = ((f"`{_written(param)}`", param.help) for param in params)
    yield from table(("word or option", "meaning"), rows)


def _written(param: Parameter) -> str:
    names = "/".join([*param.opts, *param.secondary_opts])
    if param.param_type_name == "argument":
        return param.metavar or param.name.upper()
    if getattr(param, "is_flag", False):
        return names
    choices = param.type_descriptor.choices
    return f"{names} {param.metavar or '|'.join(map(str, choices))}"

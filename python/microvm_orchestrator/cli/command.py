"""What every command has: the options that lead to the daemon, `--json`, and how it fails.

A command is a function whose first parameter is a `Session`; the others are its words and options,
named as the fields of the request; options that several commands have are a TypedDict, which each
unpacks. Above sit the nouns; below, typer, the client and the output.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer

from microvm_orchestrator import errors, places
from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.client import Answer, Client, find_client

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    Show = Callable[[dict[str, Any]], None]

_PANEL = "Connection and output"

AsJson = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print exactly the JSON that the API answers, one document to a line.",
        rich_help_panel=_PANEL,
    ),
]
Socket = Annotated[
    str | None,
    typer.Option(
        "--socket",
        metavar="PATH",
        help=f"The daemon's unix socket; else ${places.SOCKET_VARIABLE}, else the usual place.",
        rich_help_panel=_PANEL,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="The daemon's address on a network, as in http://127.0.0.1:7070, which needs a "
        f"token; else ${places.ADDRESS_VARIABLE}.",
        rich_help_panel=_PANEL,
    ),
]
TokenFile = Annotated[
    str | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help=f"A file that holds a bearer token, - for standard input; else "
        f"${places.TOKEN_VARIABLE}, else the file ${places.TOKEN_FILE_VARIABLE}.",
        rich_help_panel=_PANEL,
    ),
]
_CONNECTION = {
    "socket": (Socket, None),
    "address": (Address, None),
    "token_file": (TokenFile, None),
}
_JSON = {"json": (AsJson, False)}


@dataclass(frozen=True, slots=True)
class Session:
    """The daemon that a command talks to, and how it shows what it hears."""

    client: Client
    json: bool

    def tell(self, call: str, arguments: Mapping[str, object], show: Show = output.show) -> None:
        """Make a call and show its answer."""
        self.give(self.client.call(call, arguments), show)

    def give(self, answer: Answer, show: Show = output.show) -> None:
        if self.json:
            output.emit(answer.raw)
        else:
            show(answer.value)


def command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add a command that talks to the daemon. What the function returns is the exit status."""

    def add(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def start(given: dict[str, Any]) -> int | None:
            as_json = bool(given.pop("json"))
            client = find_client(*(given.pop(name) for name in _CONNECTION))
            return function(Session(client, as_json), **given)

        _register(app, name, function, start, {**_JSON, **_CONNECTION}, example)
        return function

    return add


def interactive_command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add a command that has the terminal to itself, and so has nothing to show as JSON."""

    def add(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def start(given: dict[str, Any]) -> int | None:
            client = find_client(*(given.pop(name) for name in _CONNECTION))
            return function(Session(client, json=False), **given)

        _register(app, name, function, start, _CONNECTION, example)
        return function

    return add


def local_command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add a command that does its work without the daemon; its first parameter is `as_json`."""

    def add(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def start(given: dict[str, Any]) -> int | None:
            return function(given.pop("json"), **given)

        _register(app, name, function, start, _JSON, example)
        return function

    return add


def plain_command(
    app: typer.Typer, name: str, *, example: str
) -> Callable[[Callable[..., int | None]], Callable[..., int | None]]:
    """Add a command that has nothing to show as JSON."""

    def add(function: Callable[..., int | None]) -> Callable[..., int | None]:
        def start(given: dict[str, Any]) -> int | None:
            return function(None, **given)

        _register(app, name, function, start, {}, example)
        return function

    return add


def _register(
    app: typer.Typer,
    name: str,
    function: Callable[..., int | None],
    start: Callable[[dict[str, Any]], int | None],
    added: Mapping[str, tuple[Any, object]],
    example: str,
) -> None:
    """Give typer a function that takes what `function` takes after its first, and `added`."""
    _, *own = inspect.signature(function, eval_str=True).parameters.values()
    keyword = inspect.Parameter.KEYWORD_ONLY
    taken = [each for parameter in own for each in _taken(parameter)]
    common = [
        inspect.Parameter(name, keyword, annotation=annotation, default=default)
        for name, (annotation, default) in added.items()
    ]
    parameters = [*taken, *common]

    def run(**given: Any) -> None:
        with _reported():
            raise typer.Exit(start(given) or failure.OK)

    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    examples = "\n".join(f"  {places.NAME} {each}" for each in example.strip().splitlines())
    # The mark in front keeps the help from wrapping what people copy.
    app.command(name, epilog=f"\b\nFor example:\n{examples}")(run)


def _taken(parameter: inspect.Parameter) -> list[inspect.Parameter]:
    """Name what is taken by a parameter: many options where it unpacks a TypedDict of them."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD:
        return [parameter.replace(kind=keyword)]
    (options,) = get_args(parameter.annotation)
    return [
        inspect.Parameter(name, keyword, annotation=annotation, default=None)
        for name, annotation in get_type_hints(options, include_extras=True).items()
    ]


@contextmanager
def _reported() -> Generator[None]:
    try:
        yield
    except errors.OrchestratorError as error:
        raise typer.Exit(failure.tell(error)) from error
    except KeyboardInterrupt as interrupt:
        failure.say("")
        for note in getattr(interrupt, "__notes__", ()):
            failure.say(note)
        raise typer.Exit(failure.INTERRUPTED) from interrupt

"""`event`: read the journal, wait for what comes, follow it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.failure import say
from microvm_orchestrator.cli.journal import event_line
from microvm_orchestrator.cli.options import Groups, Kinds

app = typer.Typer(help="Events: the journal of everything that happened.")

# One request waits no longer, so that a broken connection is noticed.
SLICE_S = 300.0

After = Annotated[
    str | None,
    typer.Option(
        "--after",
        metavar="CURSOR",
        help="Go on from here: a cursor of an earlier answer, `begin` or `now`.",
    ),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option(
        "--subject",
        metavar="ID",
        help="Only what happened to it, the id of a task, worker or webhook; may be repeated.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", help="How many events at once; 100 by default."),
]


def show(answer: dict[str, Any]) -> None:
    for event in answer["events"]:
        output.line(event_line(event))
    say(f"{'there is more' if answer['more'] else 'to go on'}: --after {answer['cursor']}")


@command(
    app,
    "wait",
    example="event wait --kind task.done --after now --timeout-s 600\nevent wait --json",
)
def wait(
    here: Session,
    after: After = None,
    kinds: Kinds = None,
    groups: Groups = None,
    subjects: Subjects = None,
    timeout_s: Annotated[
        float | None,
        typer.Option(
            "--timeout-s",
            metavar="SECONDS",
            help="How long to wait for the first event; without it, not at all.",
        ),
    ] = None,
    limit: Limit = None,
) -> None:
    """Read the journal from a cursor on; where nothing new is there, wait for it.

    With `--after now` only what is to come, without it all that is kept. Go on with the cursor of
    the answer: nothing is missed and nothing comes twice.
    """
    given = {
        "after": after,
        "kinds": kinds,
        "groups": groups,
        "subjects": subjects,
        "timeout_s": timeout_s,
        "limit": limit,
    }
    here.tell("event_wait", given, show)


@command(
    app,
    "follow",
    example="event follow --kind 'task.*' --group release\nevent follow --after begin --json",
)
def follow(
    here: Session,
    after: After = "now",
    kinds: Kinds = None,
    groups: Groups = None,
    subjects: Subjects = None,
    limit: Limit = None,
) -> None:
    """Print events as they come, one a line, until you stop it.

    It begins with what is to come, or where --after says, and goes on through a restart of the
    daemon. When it ends it says how to go on from there.
    """
    given = {"kinds": kinds, "groups": groups, "subjects": subjects, "limit": limit}
    ask, patience = here.client.call, 0.0
    try:
        while True:
            answer = ask("event_wait", {**given, "after": after, "timeout_s": patience}).value
            for event in answer["events"]:
                if here.json:
                    output.emit_value(event)
                else:
                    output.line(event_line(event))
            after = answer["cursor"]
            ask, patience = here.client.call_through_restarts, SLICE_S
    finally:
        # Whatever ended it: a signal, a closed pipe, a daemon that stays away.
        say(f"to go on: {places.NAME} event follow --after {after}")

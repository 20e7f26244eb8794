"""The fields of a task as options: what `task submit` and `task update` share.

Above sits task.py; below, the readers of words. Each option is named after the field of the
request that it fills.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator.cli import values

Key = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Your own name for it, unique within its group."),
]
Title = Annotated[
    str | None, typer.Argument(metavar="[TITLE]", help="What it is called.", show_default=False)
]
Description = Annotated[
    str | None,
    typer.Option(
        "--description",
        metavar="TEXT|@FILE|-",
        help="What to do, for whoever claims it; of a file, or of standard input.",
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="JSON|@FILE|-",
        help="Parameters for whoever claims it, any JSON; of a file, or of standard input.",
    ),
]
Run = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="JSON|@FILE|-",
        help="What this host is to do in a machine, any JSON that `run` takes; without it, a "
        "worker claims the task. `run start` writes it from options.",
    ),
]
DependsOn = Annotated[
    list[str] | None,
    typer.Option(
        "--depends-on",
        metavar="DEPENDENCY",
        help="A task that comes first; may be repeated, and all must be met. `build`; "
        "`build:failure` or `build:finish`; `build?coverage>=80` looks at its result; "
        "`any:a,b`, `2:a,b,c` or `60%:a,b,c` are some of several; or JSON.",
    ),
]
OnUnmet = Annotated[
    Literal["wait", "cancel", "fail"] | None,
    typer.Option(
        "--on-unmet", help="What becomes of it when its dependencies can no longer be met."
    ),
]
Priority = Annotated[
    str | None,
    typer.Option(
        "--priority", metavar="LEVEL|N", help="low, normal, high, urgent, or -1000 to 1000."
    ),
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability",
        metavar="NAME",
        help="What a worker must be capable of to get it; may be repeated.",
    ),
]
Role = Annotated[
    str | None,
    typer.Option("--role", metavar="ROLE", help="The role a worker must have to get it."),
]
TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout-s", metavar="SECONDS", help="How long one attempt may take."),
]
LeaseS = Annotated[
    float | None,
    typer.Option(
        "--lease-s",
        metavar="SECONDS",
        help="How long a worker may be silent before it is given up for dead.",
    ),
]
Retry = Annotated[
    str | None,
    typer.Option(
        "--retry",
        metavar="N|JSON",
        help="How many attempts it has, or the whole policy: "
        '{"max_attempts": 3, "backoff_s": 1, "factor": 2, "max_backoff_s": 300}.',
    ),
]
OnExpiry = Annotated[
    Literal["requeue", "fail"] | None,
    typer.Option("--on-expiry", help="What becomes of it when its worker went silent."),
]
MaxExpiries = Annotated[
    int | None,
    typer.Option(
        "--max-expiries",
        metavar="N",
        help="How many silent workers are forgiven before it fails.",
    ),
]
NotBefore = Annotated[
    str | None,
    typer.Option(
        "--not-before",
        metavar="TIME",
        help="Not to be claimed before this moment, as in 2026-12-24T18:00:00Z.",
    ),
]


def fields(
    *,
    description: str | None,
    input: str | None,  # noqa: A002 - the field's name
    run: str | None,
    depends_on: list[str] | None,
    priority: str | None,
    labels: list[str] | None,
    retry: str | None,
    **plain: object,
) -> dict[str, Any]:
    """Read the options into the fields of a task; those that were not given are None.

    Raises: InvalidInput.
    """
    return {
        **plain,
        "description": values.text(description),
        "input": values.json_value(input, "--input"),
        "run": values.json_value(run, "--run"),
        "depends_on": depends_on and [values.dependency(word) for word in depends_on],
        "priority": values.priority(priority),
        "labels": values.pairs(labels, "--label"),
        "retry": values.retry(retry),
    }

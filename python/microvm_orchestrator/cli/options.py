"""Words and options that several commands share, and how a shell completes them.

Above sit the nouns; below, typer and the client. Completion asks the daemon with a short deadline
and stays silent about whatever goes wrong: a shell is no place for an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli.client import Client, find_client

if TYPE_CHECKING:
    from collections.abc import Callable

DriverName = Literal["claude", "codex", "opencode"]

# Whoever pressed the tab key is waiting.
COMPLETION_TIMEOUT_S = 0.5
_COMPLETED = 100


def _completion(
    call: str, item_id: str, item_help: str = "", **arguments: object
) -> Callable[[typer.Context, str], list[tuple[str, str]]]:
    """Make a completion from the items of a list."""

    def complete(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        try:
            found = _quick_client(ctx).call(call, {"limit": _COMPLETED, **arguments}).value
        except errors.OrchestratorError:
            return []
        items = ((str(item[item_id]), str(item.get(item_help) or "")) for item in found["items"])
        return [(word, told) for word, told in items if word.startswith(incomplete)]

    return complete


def _quick_client(ctx: typer.Context) -> Client:
    given: dict[str, Any] = ctx.params
    # A token on standard input would be taken from the shell.
    file = given.get("token_file")
    client = find_client(given.get("socket"), given.get("address"), None if file == "-" else file)
    return Client(client.path, client.url, client.token, COMPLETION_TIMEOUT_S)


def _complete_task(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Complete a task's id, or its key when it is in the group that is meant."""
    group = ctx.params.get("group")
    try:
        client = _quick_client(ctx)
        found = client.call("task_list", {"limit": _COMPLETED, "group": group}).value
    except errors.OrchestratorError:
        return []
    meant = group or "default"
    return [
        (str(word), f"{item['state']} {item['title']}".strip())
        for item in found["items"]
        for word in ([item["key"]] if item["group"] == meant and item["key"] else [])
        + [item["task_id"]]
        if str(word).startswith(incomplete)
    ]


complete_group = _completion("group_list", "group", "state")
complete_worker = _completion("worker_list", "worker", "state")
complete_template = _completion("template_list", "name", "description")
complete_webhook = _completion("webhook_list", "webhook_id", "url")
complete_delivery = _completion("delivery_list", "delivery_id", "state", state="dead")
complete_machine = _completion("machine_list", "machine_id", "name")
# It has no pages.
complete_network = _completion("network_list", "name", "network_id", limit=None)
complete_fault = _completion("fault_list", "fault_id", "kind", limit=None)
complete_campaign = _completion("fault_campaign_list", "campaign_id", "state")
complete_cluster = _completion("cluster_list", "name", "state")
complete_agent = _completion("agent_list", "name", "state")
# It has no pages.
complete_role = _completion("role_list", "name", "description", limit=None)
complete_team = _completion("team_list", "name", "description", limit=None)
complete_coordination = _completion("coordination_list", "coordination_id", "state")
complete_repo = _completion("repo_list", "alias", "path")
complete_snapshot = _completion("snapshot_list", "snapshot_id", "machine_id")
complete_exec = _completion("exec_list", "exec_id", "state")
complete_operation = _completion("operation_list", "operation_id", "kind")
complete_token = _completion("token_list", "token_id", "name")

TaskId = Annotated[
    str,
    typer.Argument(
        metavar="TASK",
        help="The task's id, or the key it was submitted with.",
        autocompletion=_complete_task,
    ),
]
KeyGroup = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        help="The group, when TASK is a key; by default the group `default`.",
        autocompletion=complete_group,
    ),
]
OnlyMachine = Annotated[
    str | None,
    typer.Option(
        "--machine",
        metavar="MACHINE",
        help="Only of this machine.",
        autocompletion=complete_machine,
    ),
]
GroupName = Annotated[
    str, typer.Argument(metavar="GROUP", help="The group.", autocompletion=complete_group)
]
Group = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        help="The group; by default `default`.",
        autocompletion=complete_group,
    ),
]
WorkerName = Annotated[
    str, typer.Argument(metavar="WORKER", help="The worker's name.", autocompletion=complete_worker)
]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="K=V", help="A label; may be repeated.")
]
Capabilities = Annotated[
    list[str] | None,
    typer.Option(
        "--capability", metavar="NAME", help="Something a worker is capable of; may be repeated."
    ),
]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="The length of a page; 50 by default.")
]
Cursor = Annotated[
    str | None,
    typer.Option("--cursor", metavar="CURSOR", help="Where the page before said that it goes on."),
]
IdempotencyKey = Annotated[
    str | None,
    typer.Option(
        "--idempotency-key",
        metavar="KEY",
        help="A word of your own: the same request with the same key has its effect once, "
        "however often it is sent.",
    ),
]
Reason = Annotated[
    str | None, typer.Option("--reason", metavar="TEXT", help="Why, for whoever reads the journal.")
]
Cascade = Annotated[
    bool | None,
    typer.Option("--cascade", help="Also every task that depends on it.", show_default=False),
]
Token = Annotated[
    int,
    typer.Option(
        "--token",
        metavar="N",
        help="The fencing token of the lease, as `task claim` gave it.",
        show_default=False,
    ),
]
OwnName = Annotated[
    str | None,
    typer.Option("--worker", metavar="NAME", help="The name you work under; yours by default."),
]
Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind", metavar="KIND", help="Only this kind, as task.done or task.*; may be repeated."
    ),
]
Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="GROUP",
        help="Only of tasks in this group; may be repeated.",
        autocompletion=complete_group,
    ),
]

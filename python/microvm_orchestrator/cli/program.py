"""The full command line: every noun put together, with help drawn for a terminal or plain.

Above sits main.py, which starts it for everything but the bridge; below, one file per noun.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from microvm_orchestrator import places
from microvm_orchestrator.cli import (
    agent_health,
    allow,
    artifact_tree,
    audit,
    backup,
    bridge,
    cache,
    campaign,
    cluster_artifact,
    completion,
    config,
    coordination,
    copy,
    credential,
    doctor,
    event,
    execs,
    file,
    forward,
    graph,
    group,
    image,
    kernel_log,
    madrox,
    metrics,
    network,
    operation,
    output,
    plan,
    pool,
    repo,
    role,
    serve,
    slot,
    snapshot,
    task,
    team,
    template,
    token,
    web,
    webhook,
    whoami,
    worker,
)
from microvm_orchestrator.cli import run as run_noun

if TYPE_CHECKING:
    from collections.abc import Sequence

NOUNS = {
    "task": task.app,
    "graph": graph.app,
    "plan": plan.app,
    "repo": repo.app,
    "run": run_noun.app,
    "agent": agent_health.app,
    "role": role.app,
    "team": team.app,
    "coordination": coordination.app,
    "artifact": artifact_tree.app,
    "group": group.app,
    "template": template.app,
    "worker": worker.app,
    "machine": copy.app,
    "exec": execs.app,
    "file": file.app,
    "kernel-log": kernel_log.app,
    "snapshot": snapshot.app,
    "forward": forward.app,
    "network": network.app,
    "fault": campaign.app,
    "cluster": cluster_artifact.cluster_app,
    "node": cluster_artifact.node_app,
    "image": image.app,
    "pool": pool.app,
    "slot": slot.app,
    "cache": cache.app,
    "operation": operation.app,
    "event": event.app,
    "webhook": webhook.app,
    "delivery": webhook.deliveries,
    "token": token.app,
    "credential": credential.app,
    "audit": audit.app,
    "backup": backup.app,
    "config": config.app,
}
# Commands that are one word; the commands of `work` are of the noun task.
SINGLE = (
    *(allow.app, whoami.app, credential.setup, metrics.app, doctor.app),
    *(serve.app, bridge.app, web.app, madrox.app, completion.app),
)


_BEGIN = f"""\b
To begin:
  {places.NAME} serve &
  {places.NAME} task submit 'Say hello' --key hello
  {places.NAME} task list"""


def application(*, drawn: bool) -> typer.Typer:
    """Put the program together; its help is drawn by rich, or plain text."""
    app = typer.Typer(
        name=places.NAME,
        help="Give AI agents disposable machines, and one durable task graph to share.",
        epilog=_BEGIN,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich" if drawn else None,
        # A bug is reported with a plain traceback, without the values of variables.
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    for name, noun in NOUNS.items():
        app.add_typer(noun, name=name, no_args_is_help=True)
    for single in SINGLE:
        app.add_typer(single)
    return app


def run(words: Sequence[str]) -> NoReturn:
    """Run the command that `words` name, and exit with its status."""
    completion.be_ready()
    command = typer.main.get_command(application(drawn=output.on_terminal()))
    command.main(list(words), prog_name=places.NAME)
    raise AssertionError("a command of typer ends the program")

"""`webhook` and `delivery`: events sent to others, and what became of each."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import (
    Cursor,
    Groups,
    IdempotencyKey,
    Kinds,
    Limit,
    complete_delivery,
    complete_webhook,
)

app = typer.Typer(help="Webhooks: have events sent to a URL, signed and tried again.")
deliveries = typer.Typer(help="Deliveries of webhooks: what is to be sent, was, or is dead.")

BRIEF = ("webhook_id", "url", "kinds", "groups", "active", "owner")
DELIVERY = ("delivery_id", "webhook_id", "state", "attempts", "status", "error", "next_at")

WebhookId = Annotated[
    str,
    typer.Argument(
        metavar="WEBHOOK",
        help="The webhook's id.",
        autocompletion=complete_webhook,
        show_default=False,
    ),
]
SecretFile = Annotated[
    str | None,
    typer.Option(
        "--secret-file",
        metavar="FILE|-",
        help="A file with the secret that deliveries are signed with, 16 characters or more.",
    ),
]
Active = Annotated[
    bool | None,
    typer.Option(
        "--active/--no-active",
        help="Whether it sends; an inactive one goes on later where it stopped.",
        show_default=False,
    ),
]
Shape = Annotated[
    Literal["event", "job"] | None,
    typer.Option(
        "--shape", help="What is sent: the event, or how the job stands, for receivers of jobs."
    ),
]
Description = Annotated[
    str | None, typer.Option("--description", metavar="TEXT", help="What it is for.")
]


@command(
    app,
    "create",
    example="webhook create https://ci.example/hook --kind task.failed --secret-file hook.key",
)
def create(
    here: Session,
    url: Annotated[
        str,
        typer.Argument(metavar="URL", help="Where to send, http or https.", show_default=False),
    ],
    secret: SecretFile = None,
    kinds: Kinds = None,
    groups: Groups = None,
    shape: Shape = None,
    active: Active = None,
    description: Description = None,
    idempotency_key: IdempotencyKey = None,
) -> None:
    """Have events sent to a URL, from now on.

    Each is a signed POST, sent at least once, tried again with growing pauses, and then kept as a
    dead letter. The answer is the only time that the webhook's secret is shown.
    """
    given = {
        "url": url,
        "secret": values.secret(secret),
        "kinds": kinds,
        "groups": groups,
        "shape": shape,
        "active": active,
        "description": description,
        "idempotency_key": idempotency_key,
    }
    here.tell("webhook_create", given)


@command(app, "get", example="webhook get whk_01k6vq...")
def get(here: Session, webhook_id: WebhookId) -> None:
    """Show a webhook."""
    here.tell("webhook_get", {"webhook_id": webhook_id})


@command(app, "list", example="webhook list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List webhooks: all, or those you made if you do not see everything."""
    given = {"limit": limit, "cursor": cursor}
    here.tell("webhook_list", given, lambda answer: output.page(answer, BRIEF, "no webhooks"))


@command(app, "update", example="webhook update whk_01k6vq... --no-active")
def update(
    here: Session,
    webhook_id: WebhookId,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Where to send, http or https.")
    ] = None,
    secret: SecretFile = None,
    kinds: Kinds = None,
    groups: Groups = None,
    shape: Shape = None,
    active: Active = None,
    description: Description = None,
) -> None:
    """Change a webhook: where to, what, the secret, or whether at all."""
    given = {
        "webhook_id": webhook_id,
        "url": url,
        "secret": values.secret(secret),
        "kinds": kinds,
        "groups": groups,
        "shape": shape,
        "active": active,
        "description": description,
    }
    here.tell("webhook_update", given)


@command(app, "delete", example="webhook delete whk_01k6vq...")
def delete(here: Session, webhook_id: WebhookId) -> None:
    """Delete a webhook, what it was still to send and its log."""
    here.tell("webhook_delete", {"webhook_id": webhook_id})


@command(app, "test", example="webhook test whk_01k6vq...")
def test(here: Session, webhook_id: WebhookId) -> None:
    """Send a `ping` event to a webhook now, once, and say what its receiver answered."""
    here.tell("webhook_test", {"webhook_id": webhook_id})


@command(deliveries, "list", example="delivery list --state dead")
def delivery_list(
    here: Session,
    webhook_id: Annotated[
        str | None,
        typer.Option(
            "--webhook-id",
            metavar="WEBHOOK",
            help="Only of this webhook.",
            autocompletion=complete_webhook,
        ),
    ] = None,
    state: Annotated[
        Literal["pending", "delivered", "dead"] | None,
        typer.Option("--state", help="Only in this state; `dead` are the dead letters."),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List deliveries: what is still to be sent, what was, and the dead letters."""
    given = {"webhook_id": webhook_id, "state": state, "limit": limit, "cursor": cursor}
    here.tell("delivery_list", given, lambda answer: output.page(answer, DELIVERY, "none"))


@command(deliveries, "retry", example="delivery retry dlv_01k6vq...")
def delivery_retry(
    here: Session,
    delivery_id: Annotated[
        str,
        typer.Argument(
            metavar="DELIVERY",
            help="The delivery's id.",
            autocompletion=complete_delivery,
            show_default=False,
        ),
    ],
) -> None:
    """Send a dead letter again, with as many attempts as the first time."""
    here.tell("delivery_retry", {"delivery_id": delivery_id})

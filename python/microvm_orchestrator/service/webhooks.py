"""Webhooks: who gets which events sent where, and the log of what became of each.

What is written here the senders in `deliveries` take over from the store.
"""

from __future__ import annotations

import secrets
from typing import Annotated

import anyio.to_thread
from pydantic import Field

from microvm_orchestrator import errors
from microvm_orchestrator.deliveries.post import Message, Poster
from microvm_orchestrator.deliveries.target import MAX_URL, resolve
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import Actor, Record
from microvm_orchestrator.model.values import Flag, Line, Moment, Name, moment, rfc3339
from microvm_orchestrator.model.webhook import (
    CURSOR,
    DELIVERY,
    JOB_KINDS,
    RETRY,
    WEBHOOK,
    DeliveryState,
    KeptCursor,
    KeptDelivery,
    KeptWebhook,
    Shape,
    delivery_prefix,
)
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.idempotency import id_for
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.service.tasks import IdempotencyKey
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

# Each has a cursor and connections of its own.
MAX_WEBHOOKS = 200
_PING = "ping"

Id = Annotated[str, Field(min_length=1, max_length=100)]
Url = Annotated[str, Field(min_length=1, max_length=MAX_URL)]
Secret = Annotated[str, Field(min_length=16, max_length=200)]
Kinds = Annotated[
    list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}\.(\*|[a-z][a-z0-9_-]{0,31})$")]],
    Field(max_length=100),
]
Groups = Annotated[list[Name], Field(max_length=100)]

_URL = "http or https; deliveries go to the address that this name has then"
_KINDS = "kinds of event, as in `task.done` or `task.*`; none: all"
_GROUPS = "only events of tasks in these groups; none: all"
_SHAPE = "event: as in the journal; job: how the job stands, as the profile `delegation` tells it"
_ACTIVE = "an inactive webhook goes on where it stopped when it is made active again"


class CreateWebhook(Request):
    """A webhook to make."""

    url: Url = Field(description=_URL)
    secret: Secret | None = Field(
        default=None, description="what deliveries are signed with; by default a new one"
    )
    kinds: Kinds = Field(default=[], description=_KINDS)
    groups: Groups = Field(default=[], description=_GROUPS)
    shape: Shape = Field(default=Shape.EVENT, description=_SHAPE)
    active: Flag = Field(default=True, description=_ACTIVE)
    description: Line = ""
    idempotency_key: IdempotencyKey | None = Field(
        default=None,
        description="a repeated request with the same key is refused: no secret is shown twice",
    )


class NamedWebhook(Request):
    """A webhook."""

    webhook_id: Id


class UpdateWebhook(NamedWebhook):
    """New values; what is left out stays as it is."""

    url: Url | None = Field(default=None, description=_URL)
    secret: Secret | None = Field(default=None, description="what deliveries are signed with")
    kinds: Kinds | None = Field(default=None, description=_KINDS)
    groups: Groups | None = Field(default=None, description=_GROUPS)
    shape: Shape | None = Field(default=None, description=_SHAPE)
    active: Flag | None = Field(default=None, description=_ACTIVE)
    description: Line | None = None


class ListDeliveries(ListRequest):
    """Which deliveries to list."""

    webhook_id: Id | None = Field(default=None, description="by default of all you can see")
    state: DeliveryState | None = Field(default=None, description="`dead`: the dead letters")


class NamedDelivery(Request):
    """A delivery."""

    delivery_id: Id


class WebhookInfo(Answer):
    """What is known of a webhook; its secret is not."""

    webhook_id: str
    url: str
    kinds: list[str]
    groups: list[str]
    shape: Shape
    active: bool
    description: str
    owner: str
    created_at: Moment
    updated_at: Moment
    missed_at: Moment | None = Field(
        description="when events were last found to be past their retention before it read them"
    )


class WebhookCreated(WebhookInfo):
    """A new webhook. This is the only time that its secret is shown."""

    secret: str = Field(
        description="key of the HMAC-SHA256 over `<t>.<body>` whose hex is `v1` in the header "
        "X-Microvm-Orchestrator-Signature: t=<unix time>,v1=<hex>"
    )


class WebhookList(PageOf[WebhookInfo]):
    """Webhooks, oldest first."""


class WebhookDeleted(Answer):
    """The webhook that is gone."""

    webhook_id: str


class WebhookTested(Answer):
    """What the receiver said to the ping."""

    webhook_id: str
    delivery_id: str
    delivered: bool
    status: int | None = Field(description="HTTP status; null: there was no answer")
    error: str | None
    duration_s: float


class DeliveryInfo(Answer):
    """One event on its way to one receiver."""

    delivery_id: str
    webhook_id: str
    state: DeliveryState
    event_seq: int
    event_kind: str
    event_subject: str
    attempts: int
    status: int | None = Field(description="HTTP status of the last attempt")
    error: str | None = Field(description="what was wrong with the last attempt")
    next_attempt_at: Moment | None
    created_at: Moment
    finished_at: Moment | None


class DeliveryList(PageOf[DeliveryInfo]):
    """Deliveries, by webhook, and of each in the order of events."""


@declare("webhook_create", "POST /v1/webhooks", role=Role.OPERATOR)
async def webhook_create(
    service: Service, caller: Caller, request: CreateWebhook
) -> WebhookCreated:
    """Have events sent to a URL, from now on.

    Each is a signed POST, sent at least once, tried again with growing pauses, and then kept as a
    dead letter. The webhook sees no more events than you do now. The answer is the only time its
    secret is shown.
    """
    by = actor(caller, "webhook_create")
    await _refuse_private(service, request.url)
    if len(await every_record(service.store, WEBHOOK, by)) >= MAX_WEBHOOKS:
        raise errors.TooLarge(f"there are {MAX_WEBHOOKS} webhooks already, which is the limit")
    kept = KeptWebhook(
        url=request.url,
        secret=request.secret or secrets.token_urlsafe(32),
        kinds=_kinds(request.shape, request.kinds),
        groups=tuple(request.groups),
        shape=request.shape,
        active=request.active,
        description=request.description,
        owner=by.name,
        role=by.role,
        scope=by.scope,
        token_id=caller.principal.token_id,
        since=await service.store.cursor(),
    )
    record = Record(
        WEBHOOK, id_for("wh", by.name, request.idempotency_key), kept.model_dump(mode="json")
    )
    try:
        record = await service.store.save(record, by, expect=0)
    except errors.AlreadyExists as taken:
        raise errors.KeyReused(
            f"this key made webhook {record.id} already, and its secret is shown only once",
            hint="webhook_update gives it another secret",
        ) from taken
    return WebhookCreated(**dict(await _info(service, record, by)), secret=kept.secret)


@declare("webhook_get", "GET /v1/webhooks/{webhook_id}", role=Role.OPERATOR, effect=Effect.READ)
async def webhook_get(service: Service, caller: Caller, request: NamedWebhook) -> WebhookInfo:
    """Show a webhook."""
    by = actor(caller, "webhook_get")
    return await _info(service, await _find(service, request.webhook_id, by), by)


@declare("webhook_list", "GET /v1/webhooks", role=Role.OPERATOR, effect=Effect.READ)
async def webhook_list(service: Service, caller: Caller, request: ListRequest) -> WebhookList:
    """List webhooks: all, or those you made if you do not see everything."""
    by = actor(caller, "webhook_list")

    async def shown(record: Record) -> WebhookInfo | None:
        return await _info(service, record, by) if _may_see(_kept(record), by) else None

    items, cursor = await page_of(service.store, WEBHOOK, request, by, shown)
    return WebhookList(items=items, next_cursor=cursor)


@declare("webhook_update", "PATCH /v1/webhooks/{webhook_id}", role=Role.OPERATOR, idempotent=True)
async def webhook_update(service: Service, caller: Caller, request: UpdateWebhook) -> WebhookInfo:
    """Change a webhook: where to, what, the secret, or whether at all."""
    by = actor(caller, "webhook_update")
    record = await _find(service, request.webhook_id, by)
    if request.url is not None:
        await _refuse_private(service, request.url)
    changes = request.model_dump(exclude={"webhook_id"}, exclude_none=True)
    kept = KeptWebhook.model_validate(record.body | changes)
    kept = kept.model_copy(update={"kinds": _kinds(kept.shape, list(kept.kinds))})
    changed = kept.model_dump(mode="json")
    if changed != record.body:
        record = await service.store.save(
            Record(WEBHOOK, record.id, changed), by, expect=record.version
        )
    return await _info(service, record, by)


@declare(
    "webhook_delete",
    "DELETE /v1/webhooks/{webhook_id}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
)
async def webhook_delete(service: Service, caller: Caller, request: NamedWebhook) -> WebhookDeleted:
    """Delete a webhook, what it was still to send and its log."""
    by = actor(caller, "webhook_delete")
    record = await _find(service, request.webhook_id, by)
    empty = _kept(record).model_copy(
        update={"deleted": True, "active": False, "url": "", "secret": ""}
    )
    await service.store.save(
        Record(WEBHOOK, record.id, empty.model_dump(mode="json")), by, expect=record.version
    )
    return WebhookDeleted(webhook_id=record.id)


@declare("webhook_test", "POST /v1/webhooks/{webhook_id}/test", role=Role.OPERATOR, waits=True)
async def webhook_test(service: Service, caller: Caller, request: NamedWebhook) -> WebhookTested:
    """Send a `ping` event to a webhook now, once, and say what its receiver answered.

    An inactive webhook is pinged too. The ping is not in the delivery log.
    """
    by = actor(caller, "webhook_test")
    record = await _find(service, request.webhook_id, by)
    at = rfc3339(moment(await service.store.now()))
    event = {"seq": 0, "at": at, "kind": _PING, "subject": record.id, "group": None}
    message = Message(new_id("dlv"), record.id, _PING, {**event, "actor": by.name, "body": {}})
    poster = await anyio.to_thread.run_sync(Poster, service.settings.webhooks)
    kept = _kept(record)
    posted = await poster.post(kept.url, kept.secret, message)
    await service.store.note(by, record.id, "ok" if posted.accepted else "refused")
    return WebhookTested(
        webhook_id=record.id,
        delivery_id=message.delivery_id,
        delivered=posted.accepted,
        status=posted.status,
        error=posted.error,
        duration_s=posted.seconds,
    )


@declare("delivery_list", "GET /v1/deliveries", role=Role.OPERATOR, effect=Effect.READ)
async def delivery_list(service: Service, caller: Caller, request: ListDeliveries) -> DeliveryList:
    """List deliveries: what is still to be sent, what was, and the dead letters.

    Of each webhook the newest thousand of each kind are kept.
    """
    by = actor(caller, "delivery_list")
    if request.webhook_id is not None:
        visible = {(await _find(service, request.webhook_id, by)).id}
        prefix = delivery_prefix(request.webhook_id)
    else:
        hooks = await every_record(service.store, WEBHOOK, by)
        visible = {record.id for record in hooks if _may_see(_kept(record), by)}
        prefix = ""

    async def shown(record: Record) -> DeliveryInfo | None:
        kept = KeptDelivery.model_validate(record.body)
        fits = kept.webhook_id in visible and request.state in {None, kept.state}
        return _delivery(record, kept) if fits else None

    items, cursor = await page_of(service.store, DELIVERY, request, by, shown, prefix)
    return DeliveryList(items=items, next_cursor=cursor)


@declare("delivery_retry", "POST /v1/deliveries/{delivery_id}/retry", role=Role.OPERATOR)
async def delivery_retry(service: Service, caller: Caller, request: NamedDelivery) -> DeliveryInfo:
    """Send a dead letter again, with as many attempts as the first time."""
    by = actor(caller, "delivery_retry")
    record = await service.store.query(RecordById(DELIVERY, request.delivery_id), by)
    if record is None:
        raise _no_delivery(request.delivery_id)
    kept = KeptDelivery.model_validate(record.body)
    try:
        await _find(service, kept.webhook_id, by)
    except errors.NotFound as hidden:
        raise _no_delivery(request.delivery_id) from hidden
    if kept.state is not DeliveryState.DEAD:
        raise errors.StateForbids(
            f"delivery {record.id} is {kept.state}", hint="only a dead one can be sent again"
        )
    now = await service.store.now()
    anew = KeptDelivery(webhook_id=kept.webhook_id, event=kept.event, next_at=now)
    record = await service.store.save(
        Record(DELIVERY, record.id, anew.model_dump(mode="json")), by, expect=record.version
    )
    await service.store.save(Record(RETRY, record.id, {"webhook_id": kept.webhook_id}), by)
    return _delivery(record, anew)


def _kinds(shape: Shape, given: list[str]) -> tuple[str, ...]:
    """Raises: InvalidInput for events that tell of no job."""
    if shape is Shape.EVENT:
        return tuple(given)
    if wrong := [kind for kind in given if not kind.startswith("task.")]:
        raise errors.InvalidInput(f"with the shape job, {wrong[0]} is no kind to be told of")
    return tuple(given) or JOB_KINDS


def _kept(record: Record) -> KeptWebhook:
    return KeptWebhook.model_validate(record.body)


def _may_see(kept: KeptWebhook, by: Actor) -> bool:
    if kept.deleted:
        return False
    # A namesake with another sight must not turn the webhook's towards itself.
    return by.scope.everything or (kept.owner == by.name and kept.scope == by.scope)


async def _find(service: Service, webhook_id: str, by: Actor) -> Record:
    record = await service.store.query(RecordById(WEBHOOK, webhook_id), by)
    if record is None or not _may_see(_kept(record), by):
        raise errors.NotFound(f"no webhook {webhook_id}", hint="webhook_list shows the webhooks")
    return record


async def _refuse_private(service: Service, url: str) -> None:
    settings = service.settings.webhooks
    try:
        with anyio.fail_after(settings.timeout_s):
            await resolve(url, allow_private=settings.allow_private_targets)
    except TimeoutError as error:
        raise errors.TargetRefused("the name in the URL was not found in time") from error


async def _info(service: Service, record: Record, by: Actor) -> WebhookInfo:
    kept = _kept(record)
    found = await service.store.query(RecordById(CURSOR, record.id), by)
    missed_at = None if found is None else KeptCursor.model_validate(found.body).missed_at
    return WebhookInfo(
        webhook_id=record.id,
        url=kept.url,
        kinds=list(kept.kinds),
        groups=list(kept.groups),
        shape=kept.shape,
        active=kept.active,
        description=kept.description,
        owner=kept.owner,
        created_at=moment(record.created_at),
        updated_at=moment(record.updated_at),
        missed_at=None if missed_at is None else moment(missed_at),
    )


def _delivery(record: Record, kept: KeptDelivery) -> DeliveryInfo:
    return DeliveryInfo(
        delivery_id=record.id,
        webhook_id=kept.webhook_id,
        state=kept.state,
        event_seq=kept.event.seq,
        event_kind=kept.event.kind,
        event_subject=kept.event.subject,
        attempts=kept.attempts,
        status=kept.status,
        error=kept.error,
        next_attempt_at=None if kept.next_at is None else moment(kept.next_at),
        created_at=moment(record.created_at),
        finished_at=None if kept.settled_at is None else moment(kept.settled_at),
    )


def _no_delivery(delivery_id: str) -> errors.NotFound:
    return errors.NotFound(
        f"no delivery {delivery_id}", hint="delivery_list shows the deliveries that are kept"
    )


CALLS: tuple[Call, ...] = (
    webhook_create,
    webhook_get,
    webhook_list,
    webhook_update,
    webhook_delete,
    webhook_test,
    delivery_list,
    delivery_retry,
)

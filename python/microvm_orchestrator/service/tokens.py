"""Bearer tokens: made by those who see everything, kept as hashes, good until they end.

A token's name is its holder's name, in leases, events and the audit log; two tokens may share one,
so that a new one can be handed out before the old one is revoked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from microvm_orchestrator import errors, log
from microvm_orchestrator.conversations.token import agent_named
from microvm_orchestrator.model import token as tokens
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.token import KIND, KeptToken
from microvm_orchestrator.model.values import Flag, Key, LabelKey, LabelValue, Moment, Name, moment
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.idempotency import id_for
from microvm_orchestrator.service.page import ListRequest, PageOf
from microvm_orchestrator.service.records import page_of
from microvm_orchestrator.service.service import Service, actor
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from microvm_orchestrator.store.base import Store

# When a token was last used, apart from it: a use must not undo a revocation.
USES = "token-use"
# Fine enough to find forgotten tokens, and one write a minute whatever the traffic.
_USE_NOTED_EVERY_S = 60.0
# What the clock is called in events and audit rows; nobody else shall look like it.
_RESERVED = frozenset({SYSTEM.name})

_log = log.get(__name__)


class TokenScope(Request):
    """Which tasks a token can see; without one, all."""

    own: Flag = Field(default=True, description="those submitted in its name")
    labels: Annotated[
        dict[LabelKey, Annotated[list[LabelValue], Field(min_length=1, max_length=100)]],
        Field(max_length=8),
    ] = Field(
        default={},
        description="those that have one of the values of every label; "
        "labels as in the setting access.visibility_labels",
    )


class CreateToken(Request):
    """A token to make."""

    name: Name = Field(description="who its holder is: worker, owner and actor of what it does")
    role: Role
    scope: TokenScope | None = Field(default=None, description="by default everything")
    expires_in_s: Annotated[float, Field(strict=True, gt=0, le=3_162_240_000)] | None = Field(
        default=None, description="by default never"
    )
    idempotency_key: Key | None = Field(
        default=None,
        description="a repeated request with the same key is refused: no secret is shown twice",
    )


class RevokeToken(Request):
    """A token to end."""

    token_id: Annotated[str, Field(min_length=1, max_length=64)]


class Whoami(Request):
    """Nothing."""


class TokenInfo(Answer):
    """What is known of a token; its secret is not."""

    token_id: str
    name: str
    role: Role
    scope: TokenScope | None = Field(description="null: everything")
    created_by: str
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None = Field(description="to the minute")
    live: bool = Field(description="neither expired nor revoked")


class TokenCreated(TokenInfo):
    """A new token. This is the only time that its secret is shown."""

    token: str


class TokenList(PageOf[TokenInfo]):
    """Tokens, those that ended too."""


class Identity(Answer):
    """Who the daemon takes you for."""

    name: str
    role: Role
    scope: TokenScope | None = Field(description="null: everything")
    via: str = Field(description="the door you came through")
    token_id: str | None = Field(description="null: known by the unix socket's peer")


@declare("token_create", "POST /v1/tokens", role=Role.OPERATOR)
async def create(service: Service, caller: Caller, request: CreateToken) -> TokenCreated:
    """Make a bearer token; the answer is the only time its secret is shown.

    Its role reaches no further than yours, and only who sees everything can make one.
    """
    _refuse(service, caller, request)
    by = actor(caller, "token_create")
    await _refuse_name_of_others(service.store, request.name, by)
    now = await service.store.now()
    secret = tokens.new_secret()
    kept = KeptToken(
        name=request.name,
        role=request.role,
        scope=_scope(request.scope),
        digest=tokens.digest(secret),
        created_by=by.name,
        expires_at=None if request.expires_in_s is None else now + request.expires_in_s,
    )
    record = Record(
        KIND, id_for("tok", by.name, request.idempotency_key), kept.model_dump(mode="json")
    )
    try:
        record = await service.store.save(record, by, expect=0)
    except errors.AlreadyExists as taken:
        raise errors.KeyReused(
            f"this key made token {record.id} already, and its secret is shown only once",
            hint="if the secret was lost, revoke that token and make another with a new key",
        ) from taken
    info = await _info(service.store, record, by, now)
    return TokenCreated(**dict(info), token=tokens.written(record.id, secret))


@declare("token_list", "GET /v1/tokens", role=Role.OPERATOR, effect=Effect.READ)
async def list_(service: Service, caller: Caller, request: ListRequest) -> TokenList:
    """List tokens: an admin sees all, an operator those they made."""
    by = actor(caller, "token_list")
    now = await service.store.now()

    async def shown(record: Record) -> TokenInfo | None:
        return await _info(service.store, record, by, now) if _may_see(record, by) else None

    items, cursor = await page_of(service.store, KIND, request, by, shown)
    return TokenList(items=items, next_cursor=cursor)


@declare(
    "token_revoke",
    "DELETE /v1/tokens/{token_id}",
    role=Role.OPERATOR,
    effect=Effect.DESTROY,
    idempotent=True,
)
async def revoke(service: Service, caller: Caller, request: RevokeToken) -> TokenInfo:
    """End a token, from the next request on. Leases held with it run out by themselves."""
    by = actor(caller, "token_revoke")
    record = await service.store.query(RecordById(KIND, request.token_id), by)
    if record is None or not _may_see(record, by):
        raise errors.NotFound(f"no token {request.token_id}", hint="token_list shows the tokens")
    now = await service.store.now()
    kept = KeptToken.model_validate(record.body)
    if kept.revoked_at is None:
        ended = kept.model_copy(update={"revoked_at": now}).model_dump(mode="json")
        record = await service.store.save(Record(KIND, record.id, ended), by, expect=record.version)
    return await _info(service.store, record, by, now)


@declare("whoami", "GET /v1/whoami", role=Role.VIEWER, effect=Effect.READ)
async def whoami(service: Service, caller: Caller, request: Whoami) -> Identity:  # noqa: ARG001 - the shape of a handler
    """Say who the daemon takes you for, and how far you reach."""
    who = caller.principal
    return Identity(
        name=who.name,
        role=who.role,
        scope=_told(who.scope),
        via=caller.via,
        token_id=who.token_id,
    )


async def authenticate(service: Service, presented: str, guest: str | None = None) -> Principal:
    """Say whose token this is, which came out of the machine of the agent `guest` if there is one.

    Raises: Unauthenticated, in the same words whatever is wrong; the log tells what.
    """
    parts = tokens.read(presented)
    if parts is None:
        raise _refused("not written like a token")
    token_id, secret = parts
    record = await service.store.query(RecordById(KIND, token_id), SYSTEM)
    if record is None:
        raise _refused("unknown", token_id)
    kept = KeptToken.model_validate(record.body)
    now = await service.store.now()
    fault = kept.fault(secret, now)
    if fault is not None:
        raise _refused(fault, token_id)
    if agent_named(kept.name) != guest:
        # A copy of an agent can read the token of whom it was copied from.
        raise _refused("not of the machine that it came from", token_id)
    await _note_use(service.store, token_id, now)
    return kept.principal(token_id)


def _refused(why: str, token_id: str | None = None) -> errors.Unauthenticated:
    _log.info("token_refused", why=why, token=token_id)
    return errors.Unauthenticated(
        "the token is not valid", hint="token_create makes a new one; ask who runs the daemon"
    )


async def _note_use(store: Store, token_id: str, now: float) -> None:
    used = await _last_used(store, token_id, SYSTEM)
    if used is not None and 0 <= now - used < _USE_NOTED_EVERY_S:
        return
    try:
        await store.save(Record(USES, token_id, {"at": now}), SYSTEM)
    except errors.Unavailable as error:
        # A full disk stops writing, and must not stop reading.
        _log.warning("token_use_not_noted", token=token_id, error=str(error))


async def _last_used(store: Store, token_id: str, by: Actor) -> float | None:
    record = await store.query(RecordById(USES, token_id), by)
    at = None if record is None else record.body["at"]
    return at if isinstance(at, float) else None


def _refuse(service: Service, caller: Caller, request: CreateToken) -> None:
    who = caller.principal
    if not who.role.reaches(request.role):
        raise errors.Denied(f"{who.name} is {who.role} and cannot make a token for {request.role}")
    if not who.scope.everything:
        raise errors.Denied(f"{who.name} does not see everything, so it cannot make tokens")
    if request.role is Role.ADMIN and request.scope is not None:
        raise errors.InvalidInput(
            "the sight of an admin cannot be narrowed: the audit log has none"
        )
    if request.name in _RESERVED:
        raise errors.InvalidInput(f"the name {request.name} is the daemon's own")
    known = service.settings.access.visibility_labels
    strange = sorted(set(request.scope.labels if request.scope else ()) - set(known))
    if strange:
        raise errors.InvalidInput(
            f"sight cannot be narrowed by the label {strange[0]}",
            hint=f"labels that can: {', '.join(known) or 'none'} (access.visibility_labels)",
        )


async def _refuse_name_of_others(store: Store, name: str, by: Actor) -> None:
    """Whoever takes a name takes its leases, and signs the audit log with it."""
    if by.role is Role.ADMIN or name == by.name:
        return
    for record in await every_record(store, KIND, by):
        if record.body["name"] == name and not _may_see(record, by):
            raise errors.AlreadyExists(
                f"the name {name} is on a token that somebody else made",
                hint="choose another name, or let an admin make the token",
            )


def _may_see(record: Record, by: Actor) -> bool:
    return by.role is Role.ADMIN or record.body["created_by"] == by.name


def _scope(asked: TokenScope | None) -> Scope:
    if asked is None:
        return Scope()
    labels = ((key, frozenset(values)) for key, values in sorted(asked.labels.items()))
    return Scope(everything=False, own=asked.own, labels=tuple(labels))


def _told(scope: Scope) -> TokenScope | None:
    if scope.everything:
        return None
    return TokenScope(own=scope.own, labels={key: sorted(values) for key, values in scope.labels})


async def _info(store: Store, record: Record, by: Actor, now: float) -> TokenInfo:
    kept = KeptToken.model_validate(record.body)
    used = await _last_used(store, record.id, by)
    return TokenInfo(
        token_id=record.id,
        name=kept.name,
        role=kept.role,
        scope=_told(kept.scope),
        created_by=kept.created_by,
        created_at=moment(record.created_at),
        expires_at=None if kept.expires_at is None else moment(kept.expires_at),
        revoked_at=None if kept.revoked_at is None else moment(kept.revoked_at),
        last_used_at=None if used is None else moment(used),
        live=kept.live(now),
    )


CALLS: tuple[Call, ...] = (create, list_, revoke, whoami)

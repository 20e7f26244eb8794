"""Credentials: the keys that the daemon adds for its guests. No call shows a value.

They are kept beside the store, not in it, so that neither its backups nor its journal have them.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from microvm_orchestrator.egress.credentials import VALUE_MOST, Credential, Kind
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Moment, Name
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.service import Service, actor


class SetCredential(Request):
    """A credential to keep."""

    name: Name
    kind: Kind = Field(description="what it opens; `secret` is for other things than model APIs")
    value: Annotated[SecretStr, Field(max_length=VALUE_MOST)] = Field(
        description="the secret itself; no answer, event or audit row ever has it"
    )


class ListCredentials(Request):
    """Nothing."""


class NamedCredential(Request):
    """A credential."""

    name: Name


class CredentialInfo(Answer):
    """What is known of a credential; its value is not."""

    name: str
    kind: Kind
    created_at: Moment
    source: str = Field(
        description="`file`: kept by the daemon; `systemd`: LoadCredential= gives it"
    )


class CredentialList(Answer):
    """All credentials, by name."""

    items: list[CredentialInfo]


@declare("credential_set", "PUT /v1/credentials/{name}", role=Role.ADMIN, idempotent=True)
async def credential_set(
    service: Service, caller: Caller, request: SetCredential
) -> CredentialInfo:
    """Keep a key for the model APIs, or another secret, under a name.

    Guests never see it: what they send to a model API gets it on its way. Of a credential that is
    there already the value is replaced, also for runs that go on. An OAuth token goes before an API
    key, of several of one kind the oldest is used, unless a task names one.
    """
    kept = await service.host.credentials.set(request.name, request.kind, request.value)
    await service.store.note(actor(caller, "credential_set"), kept.name, "ok")
    return _info(kept)


@declare("credential_list", "GET /v1/credentials", role=Role.ADMIN, effect=Effect.READ)
async def credential_list(
    service: Service,
    caller: Caller,  # noqa: ARG001 - the shape of a handler
    request: ListCredentials,  # noqa: ARG001 - the shape of a handler
) -> CredentialList:
    """List the credentials that there are: names and kinds, never values."""
    return CredentialList(items=[_info(each) for each in service.host.credentials.every()])


@declare(
    "credential_remove", "DELETE /v1/credentials/{name}", role=Role.ADMIN, effect=Effect.DESTROY
)
async def credential_remove(
    service: Service, caller: Caller, request: NamedCredential
) -> CredentialInfo:
    """Forget a credential, from the next request of a guest on."""
    removed = await service.host.credentials.remove(request.name)
    await service.store.note(actor(caller, "credential_remove"), removed.name, "ok")
    return _info(removed)


def _info(credential: Credential) -> CredentialInfo:
    return CredentialInfo(
        name=credential.name,
        kind=credential.kind,
        created_at=credential.created_at,
        source=credential.source,
    )


CALLS: tuple[Call, ...] = (credential_set, credential_list, credential_remove)

"""Requests that need a secret: a run asks our address, and the secret is added on this side.

`/with/NAME/path` goes to `path` below the address that the settings have for the secret NAME, for
runs whose task names it. Where a secret goes is the operator's word, so a guest can use it there
and nowhere else. Above stands the endpoint; below, the credentials and the way upstream.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit

from microvm_orchestrator import errors
from microvm_orchestrator.egress.credentials import Credential, Credentials, Kind
from microvm_orchestrator.egress.http import Connection, Head, Refusal
from microvm_orchestrator.egress.proxy import BODY_MOST, METHODS, end_to_end
from microvm_orchestrator.egress.scrub import Scrubber
from microvm_orchestrator.egress.upstream import (
    Headers,
    Outgoing,
    Upstream,
    forward,
    refuse_compressed,
)

if TYPE_CHECKING:
    from microvm_orchestrator.config import SecretUse
    from microvm_orchestrator.egress.exchange import Draft
    from microvm_orchestrator.egress.policy import Policy

PATH = "/with/"
# What could lead out of the address that the operator has named. Some servers leave out what is
# behind a semicolon, or end a name at a control character.
_STEPS = re.compile(r"(?:^|[/\\])\.{1,2}(?:[/\\;\x00-\x20\x7f]|$)")
# Nobody encodes more often for a reason.
_DECODED_MOST = 8
# What a guest says of itself, or by which it could have the secret in pieces or another path.
_DROPPED = {"accept-encoding", "range", "if-range", "x-original-url", "x-rewrite-url"}


class Secrets:
    """The secrets that one run may use."""

    def __init__(self, policy: Policy, credentials: Credentials, upstream: Upstream) -> None:
        self._policy = policy
        self._credentials = credentials
        self._upstream = upstream

    async def serve(self, connection: Connection, head: Head, draft: Draft) -> None:
        """Answer a request. Raises: as `forward`."""
        name, _, rest = head.target.removeprefix(PATH).partition("/")
        secret, credential = self._find(name)
        draft.host = urlsplit(secret.url).netloc
        draft.path = f"/{rest.partition('?')[0]}"
        if head.method not in METHODS:
            raise Refusal(405, f"{head.method} is no method that is passed on")
        if _leads_out(draft.path):
            raise Refusal(400, "a path must not hold the steps . and ..")
        value = _written(secret, credential)
        passed = [
            (key, told)
            for key, told in end_to_end(head.headers)
            if key not in {secret.header.lower(), *_DROPPED}
        ]
        # Compressed, the answer could not be read on its way.
        fields = [("host", draft.host), ("accept-encoding", "identity"), (secret.header, value)]
        # A host that takes the end of one request for the beginning of the next must not find
        # another run's behind it.
        fields.append(("connection", "close"))
        url = f"{secret.url}/{rest}"
        out = Outgoing(head.method, url, [*fields, *passed], BODY_MOST, draft.host)
        own = f"http://{head.get('host') or '127.0.0.1'}{PATH}{name}"
        hidden = [credential.value.get_secret_value(), value.removeprefix("Basic ")]
        tap = _Tap(draft, hidden, _Ways(url, secret.url, own))
        await forward(connection, head, out, self._upstream, tap)

    def _find(self, name: str) -> tuple[SecretUse, Credential]:
        """Raises: Refusal."""
        secret = self._policy.secrets.get(name)
        if secret is None:
            raise Refusal(403, "this run may not use a secret of that name; its task names those")
        try:
            credential = self._credentials.get(name)
        except errors.NotFound as error:
            raise Refusal(403, f"{error.message}; it was removed while the run goes on") from error
        if credential.kind is not Kind.SECRET:
            raise Refusal(403, f"{name} is a key of a model by now, and goes nowhere else")
        return secret, credential


def refuse_unusable(
    credentials: Credentials, secrets: Mapping[str, SecretUse], names: Iterable[str]
) -> None:
    """Raises: NotFound for a name that no credential has; InvalidInput for a secret without use."""
    for name in names:
        credential = credentials.get(name)
        if credential.kind is not Kind.SECRET:
            continue
        if name not in secrets:
            raise errors.InvalidInput(
                f"the secret {name} has no address to which it may be sent",
                hint=f"an admin sets egress.secrets.{name}",
            )
        if secrets[name].user is None and not credential.value.get_secret_value().isascii():
            raise errors.InvalidInput(f"the secret {name} has letters that no header can hold")


def _written(secret: SecretUse, credential: Credential) -> str:
    """Write the header's value."""
    value = credential.value.get_secret_value()
    if secret.user is None:
        return secret.prefix + value
    return "Basic " + base64.b64encode(f"{secret.user}:{value}".encode()).decode()


def _leads_out(path: str) -> bool:
    for _ in range(_DECODED_MOST):
        if _STEPS.search(path):
            return True
        if (decoded := unquote(path)) == path:
            return False
        path = decoded
    return True


@dataclass(frozen=True, slots=True)
class _Ways:
    """What was asked, the address it is below, and what that is called in the guest."""

    asked: str
    address: str
    own: str

    def back(self, location: str) -> str:
        """Let a redirect within the address go by us again."""
        try:
            to = urljoin(self.asked, location)
        except ValueError:
            return location
        if not f"{to}/".startswith(f"{self.address}/"):
            return location
        return self.own + to.removeprefix(self.address)


class _Tap:
    """An answer as it passes, without the secret."""

    def __init__(self, draft: Draft, hidden: list[str], ways: _Ways) -> None:
        self._draft = draft
        self._scrubbers = [Scrubber(each) for each in hidden]
        self._ways = ways

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> Headers:
        told = end_to_end(headers)
        refuse_compressed(told, self._draft.host)
        self._draft.status = status
        return [(name, self._clean(name.lower(), value)) for name, value in told]

    def feed(self, data: bytes) -> bytes:
        for scrubber in self._scrubbers:
            data = scrubber.feed(data)
        return data

    def rest(self) -> bytes:
        data = b""
        for scrubber in self._scrubbers:
            data = scrubber.feed(data) + scrubber.rest()
        return data

    def _clean(self, name: str, value: str) -> str:
        for scrubber in self._scrubbers:
            value = scrubber.text(value)
        return self._ways.back(value) if name == "location" else value

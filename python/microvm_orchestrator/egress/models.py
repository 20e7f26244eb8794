"""Requests to a model API: the real key goes in, what was taken is counted, no key comes out.

Above stands the endpoint; below, the providers, the budget and the way upstream.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import urlsplit

import anyio

from microvm_orchestrator import errors, log
from microvm_orchestrator.egress.background import Foreground
from microvm_orchestrator.egress.budget import Account, Exhausted
from microvm_orchestrator.egress.credentials import Credential, Credentials
from microvm_orchestrator.egress.exchange import Draft
from microvm_orchestrator.egress.http import Connection, Head, Refusal
from microvm_orchestrator.egress.policy import Policy
from microvm_orchestrator.egress.providers import (
    Provider,
    error_body,
    find_provider,
    headers_back,
    headers_out,
)
from microvm_orchestrator.egress.scrub import Scrubber
from microvm_orchestrator.egress.upstream import (
    Headers,
    Outgoing,
    Upstream,
    forward,
    refuse_compressed,
)
from microvm_orchestrator.egress.usage import AnswerReader

# What Anthropic takes; OpenAI takes less.
BODY_MOST = 32 << 20
# Agents run some helpers of theirs beside each other. Each may pass the budget by one answer.
AT_ONCE_MOST = 16
_log = log.get(__name__)
# What Claude Code takes for final, each at the first answer; a plain 400 it tries six times.
_KINDS = {402: "billing_error", 403: "permission_error", 413: "request_too_large"}
_METERED = ("/messages", "/responses", "/chat/completions")

OnExhausted = Callable[[Exhausted], Awaitable[None]]


class Models:
    """The model APIs as one run may use them."""

    def __init__(
        self,
        policy: Policy,
        credentials: Credentials,
        account: Account,
        upstream: Upstream,
        on_exhausted: OnExhausted,
        *,
        holds: bool = False,
    ) -> None:
        """With `holds` a request beyond the budget waits for a higher one; else it is refused."""
        self._policy = policy
        self._credentials = credentials
        self._account = account
        self._upstream = upstream
        self._on_exhausted = on_exhausted
        self._places = anyio.Semaphore(AT_ONCE_MOST)
        # Whether the owner knows that the budget is used up.
        self._told = False
        self._holds = holds
        # Nothing goes out now, whatever is left of the budget.
        self._shut = False
        # Requests that went out and are not over.
        self._out = 0
        self._changed = anyio.Event()

    def raised(self) -> None:
        """The budget is another: what waits may go, and that it is used up is told anew."""
        self._told = self._shut = False
        self._wake()

    def shut(self) -> None:
        """From now on requests wait, until the budget is another."""
        self._shut = True

    async def quiet(self) -> None:
        """Wait until every request that went out has its answer."""
        while self._out:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def serve(self, connection: Connection, head: Head, draft: Draft) -> None:
        """Answer a request. Raises: as `forward`."""
        provider = find_provider(self._policy.providers, head.method, head.path, head.headers)
        if provider is None:
            raise Refusal(
                403, f"{head.method} {head.path} is no request of a model API that may pass"
            )
        draft.host = provider.host
        try:
            async with self._places:
                await self._serve(connection, head, draft, provider)
        except Refusal as refusal:
            if connection.answered:
                raise
            await self._refuse(connection, refusal, provider, draft)

    async def _serve(
        self, connection: Connection, head: Head, draft: Draft, provider: Provider
    ) -> None:
        await self._admit()
        credential = self._credential(provider)
        self._account.begin()
        metered = head.method == "POST" and head.path.endswith(_METERED)
        tap = _Tap(credential, draft, self._account, connection, metered=metered)
        out = Outgoing(
            head.method,
            provider.url + head.target,
            _fields(head, provider, credential),
            BODY_MOST,
            provider.host,
            # Elsewhere the word is one of a tool's, and asks for nothing.
            Foreground().see if head.path.endswith("/responses") else None,
        )
        self._out += 1
        try:
            await forward(connection, head, out, self._upstream, tap)
        finally:
            tap.settle()
            self._out -= 1
            self._wake()

    async def _admit(self) -> None:
        """Return when a request may go out. Raises: Refusal."""
        while True:
            changed = self._changed
            exhausted = self._account.exhausted()
            if exhausted is None and not self._shut:
                return
            if exhausted is not None:
                await self._tell(exhausted)
                if not self._holds:
                    raise Refusal(402, f"budget_exhausted: {exhausted}")
            await changed.wait()

    def _credential(self, provider: Provider) -> Credential:
        try:
            found = self._credentials.find(provider.api.kinds, self._policy.credentials)
        except errors.NotFound as error:
            raise Refusal(403, f"{error.message}; it was removed while the run goes on") from error
        if found is None:
            raise Refusal(
                403,
                f"there is no credential for {provider.api.name}; an admin adds one with "
                f"`credential set NAME {provider.api.kinds[-1]}`",
            )
        return found

    async def _tell(self, exhausted: Exhausted) -> None:
        if self._told:
            return
        self._told = True
        try:
            await self._on_exhausted(exhausted)
        except errors.OrchestratorError as error:
            _log.warning("egress_not_told", code=error.code, reason=error.message)
            self._told = False

    async def _refuse(
        self, connection: Connection, refusal: Refusal, provider: Provider, draft: Draft
    ) -> None:
        """Say no as the API would, so that clients show why and do not ask again."""
        draft.status, draft.refused = refusal.status, refusal.why
        final = refusal.status < 500
        kind = _KINDS.get(refusal.status, "invalid_request_error" if final else "api_error")
        again = [("x-should-retry", "false")] if final else []
        body = error_body(provider.api, kind, refusal.why)
        await connection.answer(refusal.status, body, "application/json", again)


def _fields(head: Head, provider: Provider, credential: Credential) -> Headers:
    fields = headers_out(head.headers, credential)
    # Compressed, it could not be read on its way.
    fields += [("host", urlsplit(provider.url).netloc), ("accept-encoding", "identity")]
    if head.length is not None:
        fields.append(("content-length", str(head.length)))
    return fields


class _Tap:
    """One answer of a model API as it passes."""

    def __init__(
        self,
        credential: Credential,
        draft: Draft,
        account: Account,
        connection: Connection,
        *,
        metered: bool,
    ) -> None:
        self._scrubber = Scrubber(credential.value.get_secret_value())
        self._draft = draft
        self._account = account
        self._connection = connection
        self._metered = metered
        self._reader: AnswerReader | None = None
        # How much is still to come, where that was told.
        self._left: int | None = None

    def begin(self, status: int, headers: Iterable[tuple[str, str]]) -> Headers:
        told = {name.lower(): value for name, value in headers}
        refuse_compressed(told.items(), self._draft.host)
        self._draft.status = status
        if self._metered and 200 <= status < 300:
            kind = told.get("content-type", "")
            self._reader = AnswerReader(stream=kind.startswith("text/event-stream"))
            self._left = int(told["content-length"]) if "content-length" in told else None
        return [(name, self._scrubber.text(value)) for name, value in headers_back(told.items())]

    def feed(self, data: bytes) -> bytes:
        if self._reader is not None:
            self._reader.feed(data)
        if self._left is not None:
            self._left -= len(data)
            if self._left <= 0:
                # With these bytes the guest has its answer, and may ask again at once.
                self.settle()
        return self._scrubber.feed(data)

    def rest(self) -> bytes:
        self.settle()
        return self._scrubber.rest()

    def settle(self) -> None:
        """Charge what the answer took, be it whole or not; once."""
        reader, self._reader = self._reader, None
        if reader is not None:
            self._draft.tokens = reader.finish(self._connection.taken)
            self._draft.model = reader.model
            self._draft.cost_usd = self._account.charge(reader.model, self._draft.tokens)

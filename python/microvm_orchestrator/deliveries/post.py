"""One attempt at one delivery: sign it, send it to an address that was judged, read the status.

Redirects are not followed, proxies of the environment not used, cookies and connections not kept,
and of the answer's body no more is read than polite. Above sit the outboxes and `webhook_test`.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio
import httpx2

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.deliveries.target import Target, resolve
from microvm_orchestrator.model.webhook import Posted

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from pydantic import JsonValue

    from microvm_orchestrator.config import Webhooks

PREFIX = "X-Microvm-Orchestrator-"
# An answer is a status; reading a little more lets the receiver finish its sentence.
_MAX_BODY = 65_536
_MAX_BODY_S = 1.0
_MAX_ERROR = 300


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent, the same at every attempt but for the time in its signature."""

    delivery_id: str
    webhook_id: str
    kind: str
    event: JsonValue
    # What is told instead of the event.
    payload: Mapping[str, JsonValue] | None = None

    @property
    def body(self) -> bytes:
        told: Mapping[str, JsonValue] = {
            "delivery_id": self.delivery_id,
            "webhook_id": self.webhook_id,
            "event": self.event,
        }
        if self.payload is not None:
            told = self.payload
        return json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode()


def signature(secret: str, at: int, body: bytes) -> str:
    """`t=<unix time>,v1=<hex>`: HMAC-SHA256 of `<unix time>.<body>`."""
    signed = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={signed.hexdigest()}"


class Poster:
    """Sends messages; one for all webhooks, as making a TLS context takes long."""

    def __init__(self, settings: Webhooks) -> None:
        self._settings = settings
        self._tls: ssl.SSLContext = httpx2.create_ssl_context()

    async def post(
        self,
        url: str,
        secret: str,
        message: Message,
        *,
        attempt: int = 1,
        lookups: anyio.CapacityLimiter | None = None,
    ) -> Posted:
        """Try once. Whatever goes wrong with it is part of the answer."""
        began = time.monotonic()
        status, error = None, None
        try:
            with anyio.fail_after(self._settings.timeout_s):
                target = await resolve(
                    url, allow_private=self._settings.allow_private_targets, lookups=lookups
                )
                status = await self.send(target, secret, message, attempt)
        except TimeoutError:
            error = f"no answer within {self._settings.timeout_s:g} s"
        except (errors.TargetRefused, httpx2.HTTPError) as problem:
            error = f"{type(problem).__name__}: {problem}"[:_MAX_ERROR]
        if status is not None and not 200 <= status < 300:
            redirect = ", and redirects are not followed" if 300 <= status < 400 else ""
            error = f"answered {status}{redirect}"
        return Posted(status, error, round(time.monotonic() - began, 3))

    async def send(self, target: Target, secret: str, message: Message, attempt: int) -> int:
        """Connect to one of the target's addresses, and to nothing else; give the status.

        Raises: httpx2.HTTPError.
        """
        last = len(target.addresses) - 1
        # A black hole among the addresses must leave time for the next.
        patience = httpx2.Timeout(
            self._settings.timeout_s, connect=self._settings.timeout_s / (last + 1)
        )
        for number, address in enumerate(target.addresses):
            try:
                request = _request(target.url, address, secret, message, attempt, patience)
                return await self._send(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                # Nothing of the request has left: another address may be tried.
                if number == last:
                    raise
        raise httpx2.ConnectError(f"{target.url.host} has no address")

    async def _send(self, request: httpx2.Request) -> int:
        # A client of its own: another hook's cookies and connections are not for this one, even
        # where both live at one address.
        async with httpx2.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False
        ) as client:
            response = await client.send(request, stream=True)
            try:
                await _hear_out(response)
            finally:
                await response.aclose()
            return response.status_code


def _request(
    url: httpx2.URL,
    address: str,
    secret: str,
    message: Message,
    attempt: int,
    patience: httpx2.Timeout,
) -> httpx2.Request:
    body = message.body
    return httpx2.Request(
        "POST",
        url.copy_with(host=address, fragment=None),
        content=body,
        headers={
            "Host": url.netloc.decode("ascii"),
            "Content-Type": "application/json",
            "User-Agent": f"microvm-orchestrator/{__version__}",
            f"{PREFIX}Event": message.kind,
            f"{PREFIX}Delivery": message.delivery_id,
            f"{PREFIX}Attempt": str(attempt),
            f"{PREFIX}Signature": signature(secret, int(time.time()), body),
        },
        extensions={
            "timeout": patience.as_dict(),
            # The certificate is for the name, though the connection is to the address.
            "sni_hostname": url.raw_host.decode("ascii").rstrip("."),
        },
    )


async def _hear_out(response: httpx2.Response) -> None:
    heard = 0
    with anyio.move_on_after(_MAX_BODY_S), contextlib.suppress(httpx2.HTTPError):
        async for chunk in response.aiter_raw():
            heard += len(chunk)
            if heard > _MAX_BODY:
                return

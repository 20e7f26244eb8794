"""The model APIs that guests may call: which requests, which headers, and where the key goes.

What is not named here does not pass, in either direction: a header may carry a key, a path may be
one that nothing meters. Above stands the forwarding of requests; below, the credentials.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from microvm_orchestrator.egress.credentials import Kind

if TYPE_CHECKING:
    from microvm_orchestrator.egress.credentials import Credential

# An access token of a subscription is taken only with this, whatever the client was told it has.
_OAUTH_BETA = "oauth-2025-04-20"

_REQUEST_HEADERS = frozenset(
    {
        *("accept", "content-type", "user-agent", "x-app", "idempotency-key"),
        *("anthropic-version", "anthropic-beta", "anthropic-dangerous-direct-browser-access"),
        *("openai-beta", "originator", "session_id", "conversation_id", "version"),
    }
)
_REQUEST_PREFIXES = ("x-stainless-",)
_ANSWER_HEADERS = frozenset(
    {
        *("content-type", "content-length", "date", "cache-control"),
        *("request-id", "x-request-id", "retry-after", "retry-after-ms", "x-should-retry"),
        *("openai-processing-ms", "openai-version", "openai-model"),
    }
)
_ANSWER_PREFIXES = ("anthropic-ratelimit-", "x-ratelimit-")

Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Api:
    """A kind of model API."""

    name: str
    # Which credentials open it; the first kind there is of them is used.
    kinds: tuple[Kind, ...]
    routes: tuple[tuple[str, re.Pattern[str]], ...]

    def offers(self, method: str, path: str) -> bool:
        return any(method == verb and form.fullmatch(path) for verb, form in self.routes)


def _routes(*lines: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple(
        (verb, re.compile(form)) for verb, _, form in (line.partition(" ") for line in lines)
    )


_ONE_MODEL = r"/v1/models/[A-Za-z0-9._:-]{1,200}"


@dataclass(frozen=True, slots=True)
class Provider:
    """A model API, and where it is."""

    api: Api
    url: str

    @property
    def host(self) -> str:
        """Give its host, as records name it."""
        return urlsplit(self.url).netloc.rpartition("@")[2]


ANTHROPIC = Provider(
    Api(
        "anthropic",
        (Kind.ANTHROPIC_OAUTH, Kind.ANTHROPIC_API_KEY),
        _routes(
            "POST /v1/messages",
            "POST /v1/messages/count_tokens",
            "GET /v1/models",
            f"GET {_ONE_MODEL}",
            "GET /api/hello",
            "HEAD /api/hello",
        ),
    ),
    "https://api.anthropic.com",
)
OPENAI = Provider(
    Api(
        "openai",
        (Kind.OPENAI_API_KEY,),
        _routes(
            "POST /v1/responses",
            "POST /v1/chat/completions",
            "GET /v1/models",
            f"GET {_ONE_MODEL}",
        ),
    ),
    "https://api.openai.com",
)


def find_provider(
    providers: Iterable[Provider], method: str, path: str, headers: Headers
) -> Provider | None:
    """Find whose request this is; where two have the path, Anthropic's clients name a version."""
    found = [each for each in providers if each.api.offers(method, path)]
    says_version = any(name == "anthropic-version" for name, _ in headers)
    found.sort(key=lambda each: (each.api is ANTHROPIC.api) != says_version)
    return found[0] if found else None


def headers_out(headers: Headers, credential: Credential) -> list[tuple[str, str]]:
    """Give the headers that go to the API: those that are known, and the real key."""
    passed = [
        (name, value)
        for name, value in headers
        if name in _REQUEST_HEADERS or name.startswith(_REQUEST_PREFIXES)
    ]
    key = credential.value.get_secret_value()
    if credential.kind is Kind.ANTHROPIC_API_KEY:
        return [*passed, ("x-api-key", key)]
    if credential.kind is Kind.ANTHROPIC_OAUTH:
        betas = [value for name, value in passed if name == "anthropic-beta"]
        betas += [] if any(_OAUTH_BETA in value for value in betas) else [_OAUTH_BETA]
        passed = [pair for pair in passed if pair[0] != "anthropic-beta"]
        passed.append(("anthropic-beta", ",".join(betas)))
    return [*passed, ("authorization", f"Bearer {key}")]


def headers_back(headers: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Give the headers of an answer that a guest may see."""
    for name, value in headers:
        lower = name.lower()
        if lower in _ANSWER_HEADERS or lower.startswith(_ANSWER_PREFIXES):
            yield lower, value


def error_body(api: Api, kind: str, message: str) -> bytes:
    """Write a refusal of ours as clients of this API read it."""
    error = {"type": kind, "message": message}
    if api is ANTHROPIC.api:
        return json.dumps({"type": "error", "error": error}).encode()
    return json.dumps({"error": {**error, "code": kind, "param": None}}).encode()

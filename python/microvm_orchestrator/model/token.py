"""Bearer tokens: how one is written, and what is kept of it.

A token is `mo_<id>_<secret>`. The secret has 256 bits and is kept as its SHA-256 only: nothing
slower is needed, for nobody can guess that much.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from pydantic import BaseModel, ConfigDict

from microvm_orchestrator.model.access import Principal, Role, Scope

KIND = "token"
_WRITTEN = re.compile(r"mo_(tok_[0-9a-hjkmnp-tv-z]{26})_([A-Za-z0-9_-]{43})")


class KeptToken(BaseModel):
    """A token as it is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Role
    scope: Scope
    digest: str
    created_by: str
    expires_at: float | None
    revoked_at: float | None = None

    def fault(self, secret: str, now: float) -> str | None:
        """Why this secret does not open anything now; None if it does."""
        if not hmac.compare_digest(self.digest, digest(secret)):
            return "wrong secret"
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expired(now) else None

    def expired(self, now: float) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def live(self, now: float) -> bool:
        return self.revoked_at is None and not self.expired(now)

    def principal(self, token_id: str) -> Principal:
        return Principal(name=self.name, role=self.role, scope=self.scope, token_id=token_id)


def new_secret() -> str:
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def written(token_id: str, secret: str) -> str:
    return f"mo_{token_id}_{secret}"


def read(token: str) -> tuple[str, str] | None:
    """The id and the secret, if it is written like a token."""
    found = _WRITTEN.fullmatch(token)
    return None if found is None else (found[1], found[2])

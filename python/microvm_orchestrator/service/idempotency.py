"""Requests that come twice: the key that names one, and the content that tells if it is the same.

Above sit the functions of the nouns; below, the store, which remembers answers by key.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from microvm_orchestrator.model.names import derived_id, new_id
from microvm_orchestrator.store.base import Idempotency

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Request


def named(key: str | None, request: Request) -> Idempotency | None:
    """Give the store what it needs to answer this request once."""
    if key is None:
        return None
    content = request.model_dump(mode="json", exclude={"idempotency_key"})
    text = json.dumps(content, sort_keys=True)
    return Idempotency(key, hashlib.sha256(text.encode()).hexdigest())


def id_for(prefix: str, principal: str, key: str | None) -> str:
    """Make the id of a new thing whose answer cannot be given twice, as it holds a secret.

    With a key it is made of the key: a second one cannot be saved beside the first.
    """
    return new_id(prefix) if key is None else derived_id(prefix, principal, key)

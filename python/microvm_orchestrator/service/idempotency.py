"""Things that a repeated request must not make twice, though its answer cannot be given twice.

Above sit the functions of the nouns; below, the store, which refuses a second record of an id.
"""

from __future__ import annotations

from microvm_orchestrator.model.names import derived_id, new_id


def id_for(prefix: str, principal: str, key: str | None) -> str:
    """Make a new id; with an idempotency key the same one each time the key comes."""
    return new_id(prefix) if key is None else derived_id(prefix, principal, key)

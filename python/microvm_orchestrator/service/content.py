"""Sizes and digests of what callers send as JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel

from microvm_orchestrator import errors
from microvm_orchestrator.model.values import MAX_JSON_BYTES


def checked_json(value: object, name: str) -> None:
    """Raises: TooLarge."""
    if value is None or isinstance(value, bool | int | float):
        return
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > MAX_JSON_BYTES:
        raise errors.TooLarge(
            f"{name} is {size} bytes of JSON, and the limit is {MAX_JSON_BYTES}",
            hint="put large things into a file and pass its name",
        )


def digest_of(action: str, content: object) -> str:
    """A digest that is the same for the same request, whatever the order of its fields."""
    told = json.dumps([action, content], default=_plain, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(told.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return list(value)

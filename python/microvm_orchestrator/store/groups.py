"""Groups as wholes."""

from __future__ import annotations

from typing import Any


def group_list(tx: Any, question: Any) -> Any: ...
def one_group(tx: Any, question: Any) -> Any: ...

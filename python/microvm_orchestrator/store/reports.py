"""Figures."""

from __future__ import annotations

from typing import Any


def group_report(tx: Any, question: Any) -> Any: ...
def figures(tx: Any, question: Any) -> Any: ...

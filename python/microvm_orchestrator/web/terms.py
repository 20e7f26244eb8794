"""The settings that may change while the daemon runs.

One object, which the daemon fills anew on a reload; the next connection or request goes by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from microvm_orchestrator.config import Access, Limits, Settings


@dataclass(slots=True)
class Terms:
    """On what terms clients are served at this moment."""

    access: Access
    limits: Limits

    def adopt(self, settings: Settings) -> None:
        self.access = settings.access
        self.limits = settings.limits

"""How fast a machine is listened to, so that one that floods leaves the daemon time for others.

Machines that flood have half of the daemon's time between them and wait for the rest of it, each by
itself: their own hypervisors hold them back then, and nobody else's frames. Above stands the
switch.
"""

from __future__ import annotations

# Of the time of one processor, which is what the daemon's loop has.
SHARE = 0.5
# How far beyond its share one may be before it waits: enough for what a machine sends at a stretch.
_BURST_S = 0.02


class Pace:
    """The time that one machine's frames have taken."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        self._at = 0.0

    def wait_s(self, now: float, took_s: float, others: int) -> float:
        """Return how long to wait after frames that took so long, beside others that wait."""
        share = SHARE / (1 + others)
        self._owed_s = max(0.0, self._owed_s - (now - self._at) * share) + took_s
        self._at = now
        return self._owed_s / share if self._owed_s > _BURST_S else 0.0

"""The engine's time: wall time that never runs backwards and never stands still in a suspend."""

from __future__ import annotations

import time

# Smaller differences are ordinary slewing.
_STEP_S = 2.0


class Clock:
    """Wall time carried forward by the boot clock, from no earlier than what was written last.

    An hour back on the wall changes nothing here: this clock runs ahead until the wall catches up.
    An hour forward is taken over by `step()`, whose caller extends the leases by as much.
    """

    def __init__(self, not_before: float = 0.0) -> None:
        self._offset = max(time.time(), not_before) - _ticks()

    def now(self) -> float:
        return self._offset + _ticks()

    def step(self) -> float:
        """Follow a wall that has jumped ahead; by how many seconds."""
        ahead = time.time() - self.now()
        if ahead < _STEP_S:
            return 0.0
        self._offset += ahead
        return ahead

    def behind(self) -> float:
        """How far the wall lags behind this clock: it was set back."""
        return max(0.0, self.now() - time.time())


def _ticks() -> float:
    return (
        time.clock_gettime(time.CLOCK_BOOTTIME)
        if hasattr(time, "CLOCK_BOOTTIME")
        else time.monotonic()
    )

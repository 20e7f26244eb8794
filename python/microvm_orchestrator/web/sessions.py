"""Who looks at the pages over the network: a token was shown once, a cookie stands for it since.

A browser sends cookies to every port of a host, so none holds the token itself: it is a number that
means something to the pages of this daemon alone, until the daemon ends. Above sit the pages.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

COOKIE = "microvm_orchestrator_session"
# A working day: whoever comes the next morning shows the token again.
LASTS_S = 12 * 3600
# Each took a good token to begin; the oldest goes for another one.
_MOST = 1000


class Sessions:
    """The tokens that were shown, by what stands for them."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: dict[bytes, tuple[str, float]] = {}

    def begin(self, token: str) -> str:
        """Give the value of a new cookie."""
        value = secrets.token_urlsafe(32)
        while len(self._shown) >= _MOST:
            del self._shown[next(iter(self._shown))]
        self._shown[_digest(value)] = token, self._clock() + LASTS_S
        return value

    def token_of(self, value: str) -> str | None:
        """Give the token that a cookie stands for, if it stands for one."""
        key = _digest(value)
        token, ends_at = self._shown.get(key, ("", 0.0))
        if self._clock() < ends_at:
            return token
        self._shown.pop(key, None)
        return None

    def end(self, value: str) -> None:
        self._shown.pop(_digest(value), None)


def _digest(value: str) -> bytes:
    # How long a look-up takes tells nothing of what was looked up.
    return hashlib.sha256(value.encode(errors="surrogatepass")).digest()

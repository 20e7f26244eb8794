"""Takes a secret out of a stream of bytes, wherever the pieces of the stream are cut.

Each byte of the secret becomes an `x`, so lengths that were told before stay true. Only what may
be the beginning of the secret is held back, which in a stream of events is next to nothing.
"""

from __future__ import annotations


class Scrubber:
    """One answer on its way to a guest."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Give what may go on now."""
        data = self._clean(self._held + data)
        held = self._beginning(data)
        self._held = data[len(data) - held :]
        return data[: len(data) - held]

    def rest(self) -> bytes:
        """Give what was held back, once nothing more comes."""
        rest, self._held = self._held, b""
        return rest

    def text(self, text: str) -> str:
        """Clean a text that is there as a whole, such as a header's value."""
        secret = self._secret.decode()
        return text.replace(secret, "x" * len(secret))

    def _clean(self, data: bytes) -> bytes:
        return data.replace(self._secret, b"x" * len(self._secret))

    def _beginning(self, data: bytes) -> int:
        """Tell how many of the last bytes may be the first of the secret."""
        most = min(len(data), len(self._secret) - 1)
        return next(
            (size for size in range(most, 0, -1) if self._secret.startswith(data[-size:])), 0
        )

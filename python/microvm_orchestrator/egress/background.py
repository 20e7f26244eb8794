"""Requests that a model API would go on with in the background.

Whoever makes one may hang up before a word of the answer has come, and what it takes is never seen
here. So none goes out to its last byte. Nothing is kept of a body but its last few bytes. Above
stand the model APIs.
"""

from __future__ import annotations

import re

from microvm_orchestrator.egress.http import Refusal

# As JSON may write it: a letter is itself, or its number.
_NAME = "".join(rf"(?:{letter}|(?i:\\u{ord(letter):04x}))" for letter in "background")
_ASKED = re.compile(rf'"{_NAME}":true'.encode())
# One byte less than the longest that matches.
_KEPT = len('"":true') + len("background") * len(r"\u0000") - 1
_WHY = (
    "what a model does in the background cannot be counted, and may not pass: ask without "
    "`background`"
)
# What may stand between, and what other encodings put beside each letter.
_BETWEEN = b" \t\r\n\0"


class Foreground:
    """Sees one body go out, in the pieces that it comes in."""

    def __init__(self) -> None:
        self._last = b""

    def see(self, piece: bytes) -> None:
        """Look at what is about to go out. Raises: Refusal."""
        seen = self._last + piece.translate(None, _BETWEEN)
        if _ASKED.search(seen):
            raise Refusal(403, _WHY)
        self._last = seen[-_KEPT:]

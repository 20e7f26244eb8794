"""Bytes in JSON: as text where they are UTF-8, and in base64 where they are not.

Above sit the functions of commands and files.
"""

from __future__ import annotations

import base64
import binascii

from microvm_orchestrator import errors

# Bytes of UTF-8 that only continue a character, and how many there can be of one.
_CONTINUES = range(0x80, 0xC0)
_CONTINUED_MOST = 3


def given(text: str | None, encoded: str | None, name: str, most: int) -> bytes | None:
    """Give the bytes of a field that comes as text or as base64; None where neither came.

    Raises: InvalidInput, TooLarge.
    """
    if text is not None and encoded is not None:
        raise errors.InvalidInput(f"{name} and {name}_base64 are both given")
    if encoded is not None:
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError) as error:
            raise errors.InvalidInput(f"{name}_base64 is no base64") from error
    elif text is not None:
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise errors.InvalidInput(f"{name} has half of a surrogate pair") from error
    else:
        return None
    if len(data) > most:
        raise errors.TooLarge(f"{name} has {len(data)} bytes, and the limit is {most}")
    return data


def told(data: bytes) -> tuple[str, str | None]:
    """Give bytes as text, and in base64 too where the text does not say it all."""
    try:
        return data.decode(), None
    except UnicodeDecodeError:
        return data.decode(errors="replace"), base64.b64encode(data).decode()


def from_a_character(data: bytes) -> bytes:
    """Leave out the rest of a character whose beginning was cut off."""
    for skipped in range(_CONTINUED_MOST + 1):
        if data[skipped : skipped + 1] and data[skipped] not in _CONTINUES:
            return data[skipped:]
    return data

"""The JSON body of a request, read within bounds and taken strictly.

What two readers could understand differently is refused: a key twice, NaN, text that is not
Unicode. Above sits api.py.
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, NoReturn, cast

from starlette.exceptions import HTTPException

from microvm_orchestrator import errors

if TYPE_CHECKING:
    from starlette.requests import Request

_MEDIA_TYPE = "application/json"
# Only an escape can bring half of a surrogate pair into decoded UTF-8.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


async def read_object(request: Request, limit: int) -> dict[str, object]:
    """Return the JSON object a request carries; no body at all is an empty one.

    Raises:
        InvalidInput: it is not one JSON object.
        TooLarge: it has more than `limit` bytes; no more than that is held.
        HTTPException: it has another media type (415).
        ClientDisconnect: it did not arrive whole; http.py watches the time.
    """
    data = await _read(request, limit)
    if not data:
        return {}
    check_media_type(request)
    value = parse(data)
    if not isinstance(value, dict):
        raise errors.InvalidInput("the body must be a JSON object")
    return cast("dict[str, object]", value)


def check_media_type(request: Request) -> None:
    """Refuse what a page of anybody can make a browser send without asking: text and forms.

    Raises: HTTPException (415).
    """
    given = request.headers.get("content-type", "").partition(";")[0]
    if given.strip().lower() != _MEDIA_TYPE:
        raise HTTPException(415, f"the body must be {_MEDIA_TYPE}")


async def _read(request: Request, limit: int) -> bytes:
    declared = request.headers.get("content-length", "0")
    too_large = errors.TooLarge(f"the body has more than {limit} bytes")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > limit:
            raise too_large
    return bytes(data)


def parse(data: bytes) -> object:
    """Read JSON that means the same to every reader.

    Raises:
        InvalidInput: it is not such JSON.
    """
    try:
        text = data.decode()
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise errors.InvalidInput(f"the JSON is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise errors.InvalidInput(
            f"the JSON is broken at line {error.lineno} column {error.colno}: {error.msg}"
        ) from error
    except RecursionError as error:
        raise errors.InvalidInput("the JSON is nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python reads
        raise errors.InvalidInput(f"the JSON has a number out of range: {error}") from error
    if _SURROGATE.search(text):
        _check_unicode(value)
    return value


def _check_unicode(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise errors.InvalidInput("the JSON has half of a surrogate pair") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise errors.InvalidInput(f"the JSON has the key {twice[:80]!r} twice in one object")
    return found


def _no_constant(name: str) -> NoReturn:
    raise errors.InvalidInput(f"the JSON has {name}, which is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise errors.InvalidInput(f"the JSON has the number {digits[:40]}, which is out of range")
    return number

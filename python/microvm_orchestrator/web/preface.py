"""The optional first line of a stream: who comes, and what for.

`{"connect": {"profile": "...", "token": "...", "settings": {...}}}` begins JSON messages, all
fields optional, and the settings are the profile's to understand;
`{"stream": {"call": "...", "token": "..."}}` begins frames. Written exactly so at its start: a
JSON-RPC message never begins like that. Above sits the listener.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from anyio import DelimiterNotFound, EndOfStream, IncompleteRead
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.web.body import parse

if TYPE_CHECKING:
    from anyio.streams.buffered import BufferedByteStream

_BEGINNING = b'{"connect":'
_STREAM = b'{"stream":'
_BEGINNINGS = (_BEGINNING, _STREAM)
# A token and a name fit many times over.
_MAX_BYTES = 8192

_Name = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
_Value = Annotated[str, Field(max_length=200)]


class Wish(BaseModel):
    """What a connection asks for before its first message."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: str = Field(default="", max_length=80)
    token: SecretStr | None = None
    settings: dict[_Name, _Value] = Field(default={}, max_length=32)


class StreamWish(BaseModel):
    """Which stream of frames a connection is to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    call: str = Field(max_length=80)
    token: SecretStr | None = None


class _StreamPreface(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    stream: StreamWish


class _Preface(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    connect: Wish


async def read_preface(stream: BufferedByteStream) -> Wish | StreamWish:
    """Take the preface off `stream`; without one, leave the stream as it was.

    Raises:
        InvalidInput: it begins like a preface and is none.
    """
    begun = b""
    while any(len(begun) < len(each) and each.startswith(begun) for each in _BEGINNINGS):
        try:
            begun += await stream.receive()
        except EndOfStream:
            break
    stream.feed_data(begun)
    if not begun.startswith(_BEGINNINGS):
        return Wish()
    try:
        line = await stream.receive_until(b"\n", _MAX_BYTES)
        if begun.startswith(_STREAM):
            return _StreamPreface.model_validate(parse(line)).stream
        return _Preface.model_validate(parse(line)).connect
    except (DelimiterNotFound, IncompleteRead) as error:
        raise errors.InvalidInput(f"the preface is no line of {_MAX_BYTES} bytes") from error
    except ValidationError as error:
        # Without the values: one of them is a token.
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())
        raise errors.InvalidInput(
            f"the preface has something wrong in: {wrong[:200]}",
            hint='write {"connect": {"profile": "...", "token": "..."}}',
        ) from error

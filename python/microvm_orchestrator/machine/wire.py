"""The frames that the host and the agent in a guest exchange; `guest/protocol.md` is their text.

This very file also runs in the guest, as a part of the agent's start under emulation: it takes
nothing but `struct`, not even `typing` or `enum`, and it does no I/O. Above it stand `link.py` on
the host and the agent's own `link.py`. Whatever comes in is hostile on the host's side and possibly
garbled on the guest's: every length has a limit, and `Broken` names the first rule that was broken.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False  # `typing` alone would cost the guest a tenth of its agent's start
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import TypeAlias

    Value: TypeAlias = int | bytes | list[bytes]
    Fields: TypeAlias = dict[str, Value]
    # kind, stream, channel, payload
    Frame: TypeAlias = tuple[int, int, int, bytes]

VERSION = 1

# Begins a connection. Every byte is 0x80 or more, so no legal stream of frames holds it outside of
# a payload; the host keeps it out of payloads.
MARKER = bytes.fromhex("f5a9c3e0d7b4928fcbe6fad19cb38ee4a1dfc8f397bd82eca6d0f98bc5b0eed6")
NONCE_BYTES = 16
_PREAMBLE = struct.Struct(f">{len(MARKER)}s{NONCE_BYTES}sHH")
PREAMBLE_BYTES = _PREAMBLE.size

_HEADER = struct.Struct(">IIBB")
HEADER_BYTES = _HEADER.size
# Ends a frame: a payload that was completed by the bytes of a marker is never acted upon.
_TRAILER = b"\n"
# What a frame has beside its payload.
FRAME_BYTES = HEADER_BYTES + len(_TRAILER)

HELLO = 1
OPEN = 2
DATA = 3
NOTE = 4
END = 5
CREDIT = 6
CANCEL = 7
RESULT = 8
ERROR = 9
EVENT = 10
FORGET = 11

NAMES = {
    HELLO: "HELLO",
    OPEN: "OPEN",
    DATA: "DATA",
    NOTE: "NOTE",
    END: "END",
    CREDIT: "CREDIT",
    CANCEL: "CANCEL",
    RESULT: "RESULT",
    ERROR: "ERROR",
    EVENT: "EVENT",
    FORGET: "FORGET",
}

MAX_DATA = 64 * 1024
# The fewest and the most bytes of payload that each kind may have.
LIMITS = {
    HELLO: (1, 4096),
    OPEN: (1, 256 * 1024),
    DATA: (1, MAX_DATA),
    NOTE: (1, 16 * 1024),
    END: (0, 0),
    CREDIT: (4, 4),
    CANCEL: (0, 0),
    RESULT: (1, MAX_DATA),
    ERROR: (1, 4096),
    EVENT: (1, 4096),
    FORGET: (1, 64),
}
# Kinds that belong to the connection and not to a stream.
_OF_THE_CONNECTION = frozenset((HELLO, EVENT, FORGET))

# What may be under way on one stream in one direction before the receiver grants more. Large
# enough for 100 MB/s at the 2 ms that a round trip takes on a busy host.
WINDOW = 256 * 1024
# What a frame costs beyond its length, so that a window also bounds how many there are.
_FRAME_COST = 128
# Streams that one side may have open at a time.
MAX_STREAMS = 128
MAX_STREAM = 2**32 - 1

# Channels of DATA.
MAIN = 0
STDOUT = 1
STDERR = 2

_MAX_FIELDS = 64
_INT = 1
_BYTES = 2
_LIST = 3
_I64 = struct.Struct(">q")
_U32 = struct.Struct(">I")


class Broken(Exception):
    """The peer broke a rule of the protocol."""


def preamble(nonce: bytes, first: int, second: int) -> bytes:
    """Begin a connection (oldest, newest version) or answer it (the version taken, our newest)."""
    return _PREAMBLE.pack(MARKER, nonce, first, second)


def read_preamble(data: bytes | bytearray) -> tuple[bytes, int, int]:
    """Return nonce and both numbers of the preamble that `data` begins with."""
    _, nonce, first, second = _PREAMBLE.unpack_from(data)
    return nonce, first, second


def cost(payload: bytes) -> int:
    """Return what DATA or NOTE with this payload takes from the window."""
    return len(payload) + _FRAME_COST


def frame(kind: int, stream: int = 0, payload: bytes = b"", channel: int = 0) -> bytes:
    """Write one frame. The caller keeps to LIMITS."""
    return b"".join((_HEADER.pack(stream, len(payload), channel, kind), payload, _TRAILER))


def credit(amount: int) -> bytes:
    return _U32.pack(amount)


def read_credit(payload: bytes) -> int:
    return int.from_bytes(payload, "big")


def without_marker(payload: bytes) -> list[bytes]:
    """Cut a payload so that no piece holds the marker."""
    pieces: list[bytes] = []
    while (at := payload.find(MARKER)) >= 0:
        pieces.append(payload[: at + 1])
        payload = payload[at + 1 :]
    return [*pieces, payload]


class FrameReader:
    """Cuts what arrives into frames. Holds one unfinished frame at the most."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def frames(self) -> Iterator[Frame]:
        """Take the complete frames out of the buffer; a broken rule leaves the rest in it."""
        buffer, at = self.buffer, 0
        try:
            while len(buffer) - at >= FRAME_BYTES:
                stream, length, channel, kind = _HEADER.unpack_from(buffer, at)
                _check_header(stream, length, channel, kind)
                end = at + HEADER_BYTES + length
                if len(buffer) <= end:
                    return
                if buffer[end] != _TRAILER[0]:
                    raise Broken(f"a {NAMES[kind]} frame does not end where it says")
                with memoryview(buffer) as view:  # one copy, and not two
                    payload = bytes(view[at + HEADER_BYTES : end])
                at = end + 1
                yield kind, stream, channel, payload
        finally:
            del buffer[:at]


def _check_header(stream: int, length: int, channel: int, kind: int) -> None:
    limits = LIMITS.get(kind)
    if limits is None:
        raise Broken(f"there is no kind {kind} of frame")
    if not limits[0] <= length <= limits[1]:
        allowed = f"{limits[0]} to {limits[1]}"
        raise Broken(f"a {NAMES[kind]} frame of {length} bytes; allowed are {allowed}")
    if (stream == 0) != (kind in _OF_THE_CONNECTION):
        raise Broken(f"a {NAMES[kind]} frame on stream {stream}")
    if channel > (STDERR if kind == DATA else 0):
        raise Broken(f"a {NAMES[kind]} frame on channel {channel}")


def encode(fields: Mapping[str, int | bytes | list[bytes]]) -> bytes:
    """Write a record: for each field its name, the type of its value, the value."""
    parts: list[bytes] = [bytes((len(fields),))]
    for name, value in fields.items():
        key = name.encode("ascii")
        if isinstance(value, int):
            parts += (bytes((len(key),)), key, bytes((_INT,)), _I64.pack(value))
        elif isinstance(value, bytes):
            parts += (bytes((len(key),)), key, bytes((_BYTES,)), _U32.pack(len(value)), value)
        else:
            parts += (bytes((len(key),)), key, bytes((_LIST,)), _U32.pack(len(value)))
            for item in value:
                parts += (_U32.pack(len(item)), item)
    return b"".join(parts)


def decode(payload: bytes) -> Fields:
    """Read a record. Raises Broken for one that is not exactly what `encode` writes."""
    try:
        return _Record(payload).read()
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise Broken("a record that ends too early or is garbled") from error


class _Record:
    """A record being read."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.at = 1

    def read(self) -> Fields:
        count = self.payload[0]
        if count > _MAX_FIELDS:
            raise Broken(f"a record of {count} fields; allowed are {_MAX_FIELDS}")
        fields: Fields = {}
        for _ in range(count):
            length = self.payload[self.at]
            self.at += 1
            name = self._take(length).decode("ascii")
            if not name or name in fields:
                raise Broken("a record with a field that is named twice or not at all")
            fields[name] = self._value()
        if self.at != len(self.payload):
            raise Broken("a record with something behind it")
        return fields

    def _value(self) -> Value:
        tag = self.payload[self.at]
        self.at += 1
        if tag == _INT:
            self.at += 8
            return int(_I64.unpack_from(self.payload, self.at - 8)[0])
        if tag == _BYTES:
            return self._take(self._length())
        if tag == _LIST:
            # Each item takes four bytes at least, so the payload bounds the list.
            return [self._take(self._length()) for _ in range(self._length())]
        raise Broken(f"a field of the unknown type {tag}")

    def _length(self) -> int:
        self.at += 4
        return int(_U32.unpack_from(self.payload, self.at - 4)[0])

    def _take(self, length: int) -> bytes:
        self.at += length
        if self.at > len(self.payload):
            raise IndexError
        return self.payload[self.at - length : self.at]


def integer(fields: Fields, name: str, low: int, high: int, default: int | None = None) -> int:
    """Return a number of a record that must lie in a range."""
    value = fields.get(name, default)
    if not isinstance(value, int):
        raise Broken(f"the field {name} is no number or missing")
    if not low <= value <= high:
        raise Broken(f"the field {name} is {value}; allowed are {low} to {high}")
    return value


def blob(fields: Fields, name: str, most: int, default: bytes | None = None) -> bytes:
    """Return bytes of a record, no more than `most`."""
    value = fields.get(name, default)
    if not isinstance(value, bytes):
        raise Broken(f"the field {name} is no string of bytes or missing")
    if len(value) > most:
        raise Broken(f"the field {name} has {len(value)} bytes; allowed are {most}")
    return value


def blobs(fields: Fields, name: str, most: int, default: list[bytes] | None = None) -> list[bytes]:
    """Return a list of a record with no more than `most` items."""
    value = fields.get(name, default)
    if not isinstance(value, list):
        raise Broken(f"the field {name} is no list or missing")
    if len(value) > most:
        raise Broken(f"the field {name} has {len(value)} items; allowed are {most}")
    return value

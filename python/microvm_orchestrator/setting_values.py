"""What the value of a setting may be, and how it is written.

Above stands the configuration; below, nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

# The kernel's limit on the address of a unix socket, less the closing zero byte.
MAX_SOCKET_PATH = 107
DAY_S = 86_400.0


def absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def socket_path(path: Path) -> Path:
    if (length := len(bytes(path))) > MAX_SOCKET_PATH:
        raise ValueError(f"is {length} bytes long; the kernel takes {MAX_SOCKET_PATH}")
    return path


def octal(value: object) -> object:
    return int(value, 8) if isinstance(value, str) else value


def none_of(value: object) -> object:
    return None if value == "none" else value


def listen_address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) <= 65_535):
        raise ValueError('must be "host:port"; port 0 takes any free one')
    return value


def base_url(value: str) -> str:
    found = urlsplit(value)
    if found.scheme not in {"http", "https"} or not found.hostname or found.query or found.fragment:
        raise ValueError("must be http://host or https://host, with a path or without")
    if found.username or found.password:
        raise ValueError("holds a name or password; credential_set keeps keys")
    return value.rstrip("/")


Directory = Annotated[Path, AfterValidator(absolute)]
SocketPath = Annotated[Path, AfterValidator(absolute), AfterValidator(socket_path)]
Count = Annotated[int, Field(strict=True, ge=1)]
Duration = Annotated[float, Field(strict=True, gt=0, le=100 * 366 * DAY_S, allow_inf_nan=False)]
Dollars = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
# TOML has no null, so the word stands for it.
MaybeCount = Annotated[Count | None, BeforeValidator(none_of)]
MaybeDuration = Annotated[Duration | None, BeforeValidator(none_of)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

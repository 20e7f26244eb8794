"""The keys that the daemon keeps and no guest ever sees, each under a name.

They come from two places: a file of the state directory, which `set` and `remove` write, and the
directory in which systemd hands over what `LoadCredential=` names, which is only read. There a file
is called as its kind, or `<kind>.<name>`. All are read once, when the daemon starts; what answers
questions afterwards is memory. Above stand the providers and the service; below, the file system.

For a model API the one that is named wins, then an OAuth token, then an API key; of several of one
kind the oldest, so that adding one changes nothing for those who use another.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal

import anyio
import anyio.to_thread
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from microvm_orchestrator import errors
from microvm_orchestrator.model.names import NAME, NAME_PATTERN
from microvm_orchestrator.model.values import moment

FILE = "credentials"
VALUE_LEAST = 8
VALUE_MOST = 8192
COUNT_MOST = 200
# A full file is smaller; a larger one is not ours.
_FILE_MOST = COUNT_MOST * (2 * VALUE_MOST + 1024)
_OAUTH_BEGINNING = "sk-ant-oat"
# A key goes into a header: no blanks, nothing beyond ASCII. Other secrets may have both.
_KEY = re.compile(r"[\x21-\x7e]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Kind(StrEnum):
    """What a credential opens."""

    ANTHROPIC_API_KEY = "anthropic-api-key"
    ANTHROPIC_OAUTH = "anthropic-oauth"
    OPENAI_API_KEY = "openai-api-key"
    SECRET = "secret"  # noqa: S105 - the word itself


Source = Literal["file", "systemd"]


@dataclass(frozen=True, slots=True)
class Credential:
    """A secret with a name. Its value shows in no `repr`."""

    name: str
    kind: Kind
    value: SecretStr
    created_at: datetime
    source: Source


class _Kept(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    value: SecretStr = Field(min_length=VALUE_LEAST, max_length=VALUE_MOST)
    created_at: float = Field(ge=0, lt=2**40, allow_inf_nan=False)


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    credentials: dict[str, _Kept] = Field(max_length=COUNT_MOST)


class Credentials:
    """All credentials of one daemon, which is the only one that writes the file."""

    def __init__(self, state_dir: Path, handed: Path | None = None) -> None:
        """Read what there is; `handed` is what systemd calls `$CREDENTIALS_DIRECTORY`.

        Raises: ConfigInvalid when a file is not as it should be: what it holds may have been read
        or put there by others.
        """
        self._path = state_dir / FILE
        self._writing = anyio.Lock()
        self._kept = dict(_read_file(self._path))
        self._handed = {} if handed is None else dict(_read_handed(handed))

    def every(self) -> list[Credential]:
        """Give all of them, by name."""
        known = {**self._kept, **self._handed}
        return [known[name] for name in sorted(known)]

    def get(self, name: str) -> Credential:
        """Raises: NotFound."""
        found = self._handed.get(name) or self._kept.get(name)
        if found is None:
            raise errors.NotFound(
                f"no credential {name[:100]}", hint="credential_list shows the names"
            )
        return found

    def find(self, kinds: Sequence[Kind], named: Sequence[str] = ()) -> Credential | None:
        """Find the one to use where one of `kinds` is needed; `named` go first, in their order.

        Raises: NotFound when one that is named is not there.
        """
        for credential in map(self.get, named):
            if credential.kind in kinds:
                return credential
        usable = [each for each in self.every() if each.kind in kinds]
        usable.sort(key=lambda each: (kinds.index(each.kind), each.created_at, each.name))
        return usable[0] if usable else None

    async def set(self, name: str, kind: Kind, value: SecretStr) -> Credential:
        """Keep a secret, in place of the one that had the name.

        Raises: InvalidInput, TooLarge, StateForbids when systemd gives the name, StoreFull,
        StoreReadOnly.
        """
        check(name, kind, value)
        async with self._writing:
            self._refuse_handed(name)
            if name not in self._kept and len(self._kept) >= COUNT_MOST:
                raise errors.TooLarge(f"there are {COUNT_MOST} credentials, which is the limit")
            made = Credential(name, kind, value, moment(round(time.time(), 3)), "file")
            await self._write({**self._kept, name: made})
            return made

    async def remove(self, name: str) -> Credential:
        """Raises: NotFound, StateForbids when systemd gives it, StoreFull, StoreReadOnly."""
        async with self._writing:
            self._refuse_handed(name)
            removed = self.get(name)
            await self._write({key: each for key, each in self._kept.items() if key != name})
            return removed

    def _refuse_handed(self, name: str) -> None:
        if name in self._handed:
            raise errors.StateForbids(
                f"systemd hands over the credential {name}",
                hint="change LoadCredential= of the service and start it again",
            )

    async def _write(self, kept: dict[str, Credential]) -> None:
        # Once begun it is seen through: memory and the file must say the same.
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_write_file, self._path, kept)
        self._kept = kept


def check(name: str, kind: Kind, value: SecretStr) -> None:
    """Look whether a secret can be kept and used. Raises: InvalidInput, which never names it."""
    if NAME.fullmatch(name) is None:
        raise errors.InvalidInput(
            "the name of a credential has letters, digits and ._- and at most 64 of them"
        )
    text = value.get_secret_value()
    if not VALUE_LEAST <= len(text) <= VALUE_MOST:
        raise errors.InvalidInput(
            f"the value of {name} has {len(text)} characters; {VALUE_LEAST} to {VALUE_MOST} can be"
        )
    if _CONTROL.search(text):
        raise errors.InvalidInput(f"the value of {name} has a control character")
    if kind is not Kind.SECRET and _KEY.fullmatch(text) is None:
        raise errors.InvalidInput(f"the value of {name} is no key: it has blanks or is not ASCII")
    is_oauth = text.startswith(_OAUTH_BEGINNING)
    if kind is Kind.ANTHROPIC_OAUTH and not is_oauth:
        raise errors.InvalidInput(
            f"the value of {name} is no OAuth token: those begin with {_OAUTH_BEGINNING}",
            hint="an API key is of the kind anthropic-api-key",
        )
    if kind is Kind.ANTHROPIC_API_KEY and is_oauth:
        raise errors.InvalidInput(
            f"the value of {name} is an OAuth token", hint="its kind is anthropic-oauth"
        )


def _read_file(path: Path) -> Iterator[tuple[str, Credential]]:
    try:
        text = _read_own(path)
    except FileNotFoundError:
        return
    try:
        kept = _File.model_validate_json(text).credentials
    except ValidationError as error:
        # Without the values, and without the cause, which has them.
        wrong = ", ".join(".".join(map(str, each["loc"])) for each in error.errors())[:200]
        raise errors.ConfigInvalid(f"{path} cannot be read: wrong in {wrong}") from None
    for name, each in kept.items():
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise errors.ConfigInvalid(f"{path} has a name that no credential can have")
        yield name, Credential(name, each.kind, each.value, moment(each.created_at), "file")


def _read_own(path: Path) -> bytes:
    """Read a file that nobody else can have read or written. Raises: FileNotFoundError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise errors.ConfigInvalid(f"{path} cannot be opened: {error.strerror}") from error
    with open(handle, "rb") as file:  # noqa: PTH123 - what was opened, not what the path is now
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
            raise errors.ConfigInvalid(f"{path} is not a file of the daemon's own")
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise errors.ConfigInvalid(
                f"{path} may be read by others: its mode is {stat.S_IMODE(found.st_mode):o}",
                hint=f"chmod 600 {path}, and replace the keys in it",
            )
        text = file.read(_FILE_MOST + 1)
    if len(text) > _FILE_MOST:
        raise errors.ConfigInvalid(f"{path} is larger than {_FILE_MOST} bytes")
    return text


def _write_file(path: Path, kept: dict[str, Credential]) -> None:
    """Put a new file in the place of the old one, whole or not at all."""
    told = {
        "version": 1,
        "credentials": {
            name: {
                "kind": each.kind,
                "value": each.value.get_secret_value(),
                "created_at": each.created_at.timestamp(),
            }
            for name, each in sorted(kept.items())
        },
    }
    fresh = path.with_name(f"{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            fresh.unlink()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(fresh, flags, 0o600)
        with open(handle, "wb") as file:  # noqa: PTH123 - made as no other call can make it
            os.fchmod(handle, 0o600)
            file.write(json.dumps(told).encode())
            file.flush()
            os.fsync(handle)
        fresh.rename(path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink()
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        failed = errors.StoreFull if full else errors.StoreReadOnly
        raise failed(f"{path} cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_handed(folder: Path) -> Iterator[tuple[str, Credential]]:
    """Read what systemd handed over; files that are not called as a kind are for others."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise errors.ConfigInvalid(f"{folder} cannot be read: {error.strerror}") from error
    for path in entries:
        first, dot, rest = path.name.partition(".")
        if first not in set(Kind):
            continue
        name, kind = (rest if dot else first), Kind(first)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            with open(handle, "rb") as file:  # noqa: PTH123 - what was opened
                text = file.read(VALUE_MOST + 3).decode().removesuffix("\n").removesuffix("\r")
                created_at = os.fstat(handle).st_mtime
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            raise errors.ConfigInvalid(f"{path} cannot be read: {why}") from None
        try:
            check(name, kind, SecretStr(text))
        except errors.InvalidInput as error:
            raise errors.ConfigInvalid(f"{path}: {error.message}") from error
        yield name, Credential(name, kind, SecretStr(text), moment(created_at), "systemd")

"""Single files over SSH: through `cat` and `head`, which every guest has, in one round trip."""

from __future__ import annotations

import posixpath
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.files import Announced, PutRequest
from microvm_orchestrator.machine.channel.requests import IDLE_S
from microvm_orchestrator.machine.channel.stream import Over, printable
from microvm_orchestrator.machine.shell import Channel
from microvm_orchestrator.machine.ssh.jobs import started
from microvm_orchestrator.machine.ssh.script import Script, absolute, finding, no_user, quoted

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator

    from microvm_orchestrator.machine.shell import File
    from microvm_orchestrator.machine.ssh.jobs import Running
    from microvm_orchestrator.machine.ssh.link import Link

_MAX_STDERR = 2048

_GET = b"""[ -e %(path)s ] || no missing
[ -f %(path)s ] || no kind
x=$(stat -Lc '%%s %%a' %(path)s) || no read
[ -r %(path)s ] || no read
[ ${x%%%% *} -le %(most)d ] || no large
ok $x
exec head -c ${x%%%% *} %(path)s
"""
# The content ends with the stream; what is not as long as it should be never gets the name.
_PUT = b"""%(parents)s[ -d %(folder)s ] || no missing
[ -d %(path)s ] && no kind
p=%(part)s
trap 'rm -f "$p"' EXIT
trap 'exit 1' HUP INT TERM
umask 077
: >"$p" || no write
ok
cat >"$p" || exit 1
[ $(wc -c <"$p") = %(size)d ] || { echo "the content is not of its size" >&2; exit 1; }
%(own)schmod %(mode)o "$p" && mv -f "$p" %(path)s && trap - EXIT
"""


async def put(
    link: Link, request: PutRequest, content: bytes | AsyncIterable[bytes], size: int | None
) -> None:
    """Write a file in the guest. Raises: InvalidInput when the content is not of its size."""
    if isinstance(content, bytes):
        size = len(content)
    elif size is None:
        raise errors.InvalidInput("content that comes in pieces needs its size")
    try:
        async with started(link, _putting(request, size)) as running:
            whole = await _send(running, content, size)
            running.line.end()
            if not whole:
                with patience():
                    await running.wait()
                raise errors.InvalidInput(f"the content is not of the {size} bytes announced")
            await succeeded(running, f"{request.path} was not written")
    except errors.MachineFailed as failed:
        raise errors.UnknownOutcome(
            f"whether {request.path} was written is not known: {failed}"
        ) from failed


async def _send(running: Running, content: bytes | AsyncIterable[bytes], size: int) -> bool:
    """Send what there is, and tell whether it was all and no more.

    One byte too many is sent along: it keeps the guest from taking the content for whole.
    """
    if isinstance(content, bytes):
        await say(running, content)
        return True
    left = size
    async for piece in content:
        left -= len(piece)
        if not await say(running, piece) or left < 0:
            break
    return left == 0


async def say(running: Running, data: bytes) -> bool:
    """Send on as long as the guest takes it, and tell whether it still does."""
    try:
        with patience():
            await running.line.send(data)
    except Over:
        return False
    return True


@contextmanager
def patience() -> Generator[None]:
    """Give up on a guest that does not go on. Raises: MachineUnreachable."""
    try:
        with anyio.fail_after(IDLE_S):
            yield
    except TimeoutError:
        raise errors.MachineUnreachable(f"the guest did not go on within {IDLE_S:g} s") from None


async def succeeded(running: Running, otherwise: str) -> None:
    """Wait for a script's end. Raises: GuestRefused with what it complained of."""
    complaint = b""
    with patience():
        async for output in running:
            if output.channel is Channel.STDERR:
                complaint = (complaint + output.data)[:_MAX_STDERR]
        ended = await running.wait()
    if ended.code != 0:
        raise errors.GuestRefused(f"{otherwise}: {printable(complaint.strip())}")


class _File(Announced):
    """A file that arrives."""

    def __init__(self, running: Running, size: int, mode: int) -> None:
        super().__init__(size, mode)
        self._running = running

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._size
        while left:
            with patience():
                output = await anext(self._running, None)
            if output is None:
                raise errors.GuestRefused("the file became shorter while it was read")
            if output.channel is Channel.STDOUT:
                if len(output.data) > left:
                    raise errors.ProtocolBroken("the guest sent more of a file than it announced")
                left -= len(output.data)
                yield output.data


@asynccontextmanager
async def got(link: Link, path: str, max_size: int) -> AsyncGenerator[File]:
    """Open a file of the guest for reading."""
    where = quoted(absolute(path))
    script = Script(
        _GET % {b"path": where, b"most": max_size},
        {
            "missing": errors.NotFound(f"there is no {path} in the guest"),
            "kind": errors.InvalidInput(f"{path} is no regular file"),
            "read": errors.GuestRefused(f"the guest does not let us read {path}"),
            "large": errors.TooLarge(f"{path} has more than the {max_size} bytes allowed"),
        },
    )
    async with started(link, script) as running:
        running.line.end()
        size, mode = _numbers(running.words)
        if size > max_size:
            raise errors.TooLarge(f"{path} has {size} bytes; allowed are {max_size}")
        yield _File(running, size, mode)


def _numbers(words: list[bytes]) -> tuple[int, int]:
    try:
        size, mode = int(words[0]), int(words[1], 8)
    except (ValueError, IndexError):
        size, mode = -1, -1
    if size < 0 or not 0 <= mode <= 0o7777:
        raise errors.ProtocolBroken("the guest announced a file without its size and mode")
    return size, mode


def _putting(request: PutRequest, size: int) -> Script:
    path = absolute(request.path)
    folder, name = posixpath.split(path)
    script = Script(b"")
    part = posixpath.join(folder, b".%b.%b.part" % (name[:200], script.nonce))
    text = _PUT % {
        b"path": quoted(path),
        b"folder": quoted(folder),
        b"part": quoted(part),
        b"size": size,
        b"mode": request.mode,
        b"parents": b"mkdir -p %b || no write\n" % quoted(folder) if request.parents else b"",
        b"own": b'chown $u:$g "$p" && ' if request.user else b"",
    }
    refusals: dict[str, errors.OrchestratorError] = {
        "missing": errors.NotFound(f"there is no folder for {request.path} in the guest"),
        "kind": errors.InvalidInput(f"{request.path} is a folder"),
        "write": errors.GuestRefused(f"the guest does not let us write {request.path}"),
        "user": no_user(request.user),
    }
    return Script(finding(request.user) + text, refusals, script.nonce)

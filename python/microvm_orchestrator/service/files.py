"""Files in machines: small ones, written and read whole; larger ones go as streams.

Above are the front ends; below, the way into the guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.values import Flag, Line
from microvm_orchestrator.service import octets
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.execs import Encoded
from microvm_orchestrator.service.machines import NamedMachine
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.model.records import Actor

# What fits into one request and one answer.
MAX_SMALL = 1 << 20

GuestPath = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=4096)]
Mode = Annotated[str, Field(pattern=r"^0?[0-7]{3,4}$")]


class PutFile(NamedMachine):
    """A small file to write."""

    path: GuestPath = Field(description="absolute; what is there is replaced")
    content: Annotated[str, Field(max_length=MAX_SMALL)] | None = None
    content_base64: Encoded | None = Field(default=None, description="the same, in base64")
    mode: Mode = Field(default="0644", description="its permissions, octal")
    parents: Flag = Field(default=False, description="whether to make the folders above it")
    user: Line | None = Field(
        default=None, description="its owner: a name, a number or uid:gid; by default root"
    )


class GetFile(NamedMachine):
    """A small file to read."""

    path: GuestPath
    max_size: Annotated[int, Field(strict=True, ge=0, le=MAX_SMALL)] = Field(
        default=MAX_SMALL, description="a larger one is refused"
    )


class FileWritten(Answer):
    """The file that stands there now."""

    machine_id: str
    path: str
    size: int


class FileRead(Answer):
    """A file of a guest."""

    machine_id: str
    path: str
    size: int
    mode: str
    content: str
    content_base64: str | None = Field(default=None, description="when content is not UTF-8")


@declare("file_put", "PUT /v1/machines/{machine}/files", role=Role.OPERATOR, idempotent=True)
async def file_put(service: Service, caller: Caller, request: PutFile) -> FileWritten:
    """Write a small file in a machine, whole or not at all."""
    return await write_small(service, actor(caller, "file_put"), request)


async def write_small(service: Service, by: Actor, request: PutFile) -> FileWritten:
    """Write a small file as somebody. Raises: as `Execs.awake`; what guests refuse with."""
    machine, running = await service.host.execs.awake(request.machine, by)
    data = octets.given(request.content, request.content_base64, "content", MAX_SMALL) or b""
    shell = await running.reached()
    await service.store.note(by, machine.machine_id, "ok")
    await shell.put(
        request.path,
        data,
        mode=int(request.mode, 8),
        user=request.user,
        parents=request.parents,
    )
    return FileWritten(machine_id=machine.machine_id, path=request.path, size=len(data))


@declare("file_get", "GET /v1/machines/{machine}/files", role=Role.OPERATOR, effect=Effect.READ)
async def file_get(service: Service, caller: Caller, request: GetFile) -> FileRead:
    """Read a small file in a machine."""
    return await read_small(service, actor(caller, "file_get"), request)


async def read_small(service: Service, by: Actor, request: GetFile) -> FileRead:
    """Read a small file as somebody. Raises: as `Execs.awake`; what guests refuse with."""
    machine, running = await service.host.execs.awake(request.machine, by)
    shell = await running.reached()
    async with shell.get(request.path, max_size=request.max_size) as file:
        data = b"".join([piece async for piece in file])
        mode = file.mode
    text, encoded = octets.told(data)
    return FileRead(
        machine_id=machine.machine_id,
        path=request.path,
        size=len(data),
        mode=f"{mode:04o}",
        content=text,
        content_base64=encoded,
    )


CALLS: tuple[Call, ...] = (file_put, file_get)

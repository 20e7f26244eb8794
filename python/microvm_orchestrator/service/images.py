"""Images: what machines boot, built here and kept by content.

Above are the front ends; below, the builder and the store of images.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
import anyio.to_thread
from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.images import disk
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.programs import PROGRAMS
from microvm_orchestrator.images.progress import Progress, Stage
from microvm_orchestrator.images.runner import add
from microvm_orchestrator.images.store import (
    AnyImage,
    DiskImage,
    Image,
    RunnerImage,
    check_name,
)
from microvm_orchestrator.machine.qemu.qcow2 import check_alone
from microvm_orchestrator.machine.ssh import our_key, read_line
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.model.values import Line
from microvm_orchestrator.runner import Ssh
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, Request, declare
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from microvm_orchestrator.operations import Report

ImageName = Annotated[str, Field(min_length=1, max_length=64)]
_Path = Annotated[str, Field(min_length=1, max_length=4096)]
_Version = Annotated[str, Field(min_length=1, max_length=40)]
_REFERENCE = "a name, or the whole digest"
_MIB = 1 << 20
# More news of a build than anybody reads; older ones may be dropped.
_NEWS = 16


class BuildImage(Request):
    """What kind of guest is wanted."""

    name: ImageName = Field(default="embedded", description="what the image is called from now on")
    packages: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=100)]], Field(max_length=200)
    ] = Field(default=[], description="Debian packages besides those that every guest has")
    claude: _Version | None = Field(
        default=None,
        description="the version of the Claude Code command line to put in, or `stable`, `latest`",
    )
    codex: _Version | None = Field(
        default=None, description="the version of Codex to put in, or `latest`"
    )
    opencode: _Version | None = Field(
        default=None, description="the version of opencode to put in, or `latest`"
    )
    wait_s: WaitS = USUAL_WAIT_S


class AddImage(Request):
    """A runner directory of microvm.nix, or a disk with a whole system on it."""

    name: ImageName = Field(description="what the image is called from now on")
    runner: _Path | None = Field(
        default=None,
        description="the absolute path of a runner directory on this host, or what `nix build` "
        "takes, such as `/etc/nixos#nixosConfigurations.guest.config.microvm.declaredRunner`",
    )
    disk: _Path | None = Field(
        default=None,
        description="in place of a runner: the absolute path of a qcow2 file on this host, which "
        "is copied. libvirt runs its machines",
    )
    cloud_init: bool = Field(
        default=True,
        description="of a disk that is reached by SSH: its guest takes names, keys and networks "
        "from cloud-init, which also gives it the host key that we know it by",
    )
    ssh_user: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]{0,31}$")] | None = Field(
        default=None,
        description="the guest is reached by its own SSH server instead of our agent, as this "
        "user; it has to let in the answer's `ssh_authorized_key`",
    )
    ssh_host_key: Line | None = Field(
        default=None,
        description="the guest's public host key, one line: no other is believed. By default the "
        "first one that each machine shows is remembered until the machine is deleted",
    )
    wait_s: WaitS = USUAL_WAIT_S


class ImageRef(Request):
    """An image."""

    image: ImageName = Field(description=_REFERENCE)


class NoImageFilter(Request):
    """No parameters."""


class ImageInfo(Answer):
    """An image."""

    digest: str = Field(description="names what it holds: the same digest is the same image")
    names: list[str]
    kind: str
    architecture: str
    kernel_release: str | None = Field(description="null for a guest that others made")
    size_mib: float
    packages: dict[str, str] = Field(description="what it was made of, each with its version")
    runner: str | None = Field(default=None, description="the runner directory, if it is one")
    cloud_init: bool = Field(
        default=False, description="whether a disk's guest is told by cloud-init who it is"
    )
    ssh_user: str | None = Field(
        default=None, description="who we log in as, where the guest is reached by its SSH server"
    )
    ssh_host_key: str | None = Field(
        default=None,
        description="by which it must answer; null where each machine's first one is remembered",
    )
    ssh_authorized_key: str | None = Field(
        default=None, description="our public key, which that user's authorized_keys must have"
    )


class ImageList(Answer):
    """The images of this host, and those that are damaged."""

    items: list[ImageInfo]
    damaged: dict[str, str] = Field(description="digests that cannot be used, and why")


class ImageVerified(Answer):
    """What came of reading all of an image."""

    digest: str
    whole: bool
    damaged: list[str] = Field(description="files that are not what they were")


class ImageRemoved(Answer):
    """The image that is gone."""

    digest: str


@declare("image_build", "POST /v1/images", role=Role.OPERATOR, waits=True)
async def image_build(service: Service, caller: Caller, request: BuildImage) -> Operation:
    """Build a guest from Debian packages, or find the one that was made of the same before.

    Needs no privilege and no Nix. The operation's result is the image.
    """
    check_name(request.name)
    programs = request.model_dump(include=set(PROGRAMS), exclude_none=True)
    spec = ImageSpec(request.name, tuple(request.packages), programs)

    async def work(report: Report) -> JsonValue:
        image = await built(service, spec, report)
        return _info(image).model_dump(mode="json")

    return await long_call(service, caller, "image_build", request.name, request.wait_s, work)


@declare("image_add", "POST /v1/images/runners", role=Role.ADMIN, waits=True)
async def image_add(service: Service, caller: Caller, request: AddImage) -> Operation:
    """Take in what others made as an image: a runner directory of microvm.nix, or a disk.

    Machines of a runner are started by the directory's own script, as the user machines run as;
    Nix builds it first if need be. Those of a disk are run by libvirt. The operation's result is
    the image.
    """
    check_name(request.name)
    ssh = _ssh(request)
    if (request.runner is None) == (request.disk is None):
        raise errors.InvalidInput("an image is made of a runner or of a disk", hint="give one")

    async def work(report: Report) -> JsonValue:
        await report(0.0, "looks at what it is made of")
        image = await _added(service, request, ssh)
        service.host.warm.look_again()
        return (await _described(service, image)).model_dump(mode="json")

    return await long_call(service, caller, "image_add", request.name, request.wait_s, work)


async def _added(service: Service, request: AddImage, ssh: Ssh | None) -> AnyImage:
    images = service.host.images
    if request.disk is None:
        return await add(request.runner or "", images, request.name, ssh)
    return await disk.add(
        Path(request.disk),
        images,
        request.name,
        check_alone,
        ssh,
        cloud_init=ssh is not None and request.cloud_init,
    )


def _ssh(request: AddImage) -> Ssh | None:
    """Raises: InvalidInput."""
    key = request.ssh_host_key
    if request.ssh_user is not None:
        return Ssh(request.ssh_user, None if key is None else read_line(key))
    if key is not None:
        raise errors.InvalidInput(
            "a host key is of no use without a user to log in as", hint="give ssh_user too"
        )
    return None


async def built(service: Service, spec: ImageSpec, report: Report) -> Image:
    """Have an image, and tell how far it is."""
    host = service.host
    async with _told(report) as progress:
        image = await build(spec, host.images, host.image_cache, progress)
    host.warm.look_again()
    return image


@asynccontextmanager
async def _told(report: Report) -> AsyncGenerator[Progress]:
    send, receive = anyio.create_memory_object_stream[tuple[Stage, int, int]](_NEWS)

    def tell(stage: Stage, done: int, total: int) -> None:
        if send.statistics().current_buffer_used < _NEWS:
            send.send_nowait((stage, done, total))

    async def pass_on() -> None:
        async for stage, done, total in receive:
            await report(_fraction(stage, done, total), _line(stage, done, total))

    # A task group would wrap it, and whoever asked would be told of a bug.
    failed: errors.OrchestratorError | None = None
    with receive:
        async with anyio.create_task_group() as group:
            group.start_soon(pass_on)
            with send:
                try:
                    yield tell
                except errors.OrchestratorError as error:
                    failed = error
    if failed is not None:
        raise failed


def _fraction(stage: Stage, done: int, total: int) -> float:
    stages = list(Stage)
    within = done / total if total else 0.0
    return (stages.index(stage) + min(within, 1.0)) / len(stages)


def _line(stage: Stage, done: int, total: int) -> str:
    if stage is Stage.DOWNLOAD:
        return f"{stage}: {done / _MIB:.1f} of {total / _MIB:.1f} MiB"
    return f"{stage}: {done} of {total}"


@declare("image_list", "GET /v1/images", role=Role.VIEWER, effect=Effect.READ)
async def image_list(service: Service, caller: Caller, request: NoImageFilter) -> ImageList:
    """List the images of this host, those with a name first."""
    del caller, request
    images = service.host.images
    found = await anyio.to_thread.run_sync(images.list)
    damaged = await anyio.to_thread.run_sync(images.damaged)
    items = [await _described(service, image) for image in found]
    return ImageList(items=items, damaged=damaged)


@declare("image_get", "GET /v1/images/{image}", role=Role.VIEWER, effect=Effect.READ)
async def image_get(service: Service, caller: Caller, request: ImageRef) -> ImageInfo:
    """Look at an image."""
    del caller
    image = await anyio.to_thread.run_sync(service.host.images.get, request.image)
    return await _described(service, image)


@declare("image_verify", "GET /v1/images/{image}/verify", role=Role.OPERATOR, effect=Effect.READ)
async def image_verify(service: Service, caller: Caller, request: ImageRef) -> ImageVerified:
    """Read all of an image, and compare it with what it was when it was made."""
    del caller
    images = service.host.images
    image = await anyio.to_thread.run_sync(images.get, request.image)
    damaged = await anyio.to_thread.run_sync(images.verify, image)
    return ImageVerified(digest=image.digest, whole=not damaged, damaged=damaged)


@declare("image_remove", "DELETE /v1/images/{image}", role=Role.OPERATOR, effect=Effect.DESTROY)
async def image_remove(service: Service, caller: Caller, request: ImageRef) -> ImageRemoved:
    """Remove an image, a damaged one too. Refused while a machine or a snapshot needs it."""
    by = actor(caller, "image_remove")
    images = service.host.images
    digest = await _digest(service, request.image)
    count = len(await _users(service, digest, SYSTEM))
    if count:
        # What the caller does not see is counted, not named.
        told = (await _users(service, digest, by))[:8]
        others = count - len(told)
        named = ", ".join([*told, *([f"{others} others"] if others else [])])
        raise errors.StateForbids(
            f"image {request.image} is needed by {named}", hint="delete these first"
        )
    await anyio.to_thread.run_sync(images.remove, request.image)
    service.host.warm.look_again()
    await service.store.note(by, digest, "ok")
    return ImageRemoved(digest=digest)


async def _users(service: Service, digest: str, by: Actor) -> list[str]:
    """Name the machines and snapshots that need an image, as far as `by` sees them."""
    machines = await service.host.machines.visible(by)
    snapshots = await service.host.snapshots.visible(by)
    named = [machine.name or machine.machine_id for machine in machines if machine.image == digest]
    return named + [each.snapshot_id for each in snapshots if each.image == digest]


async def _digest(service: Service, reference: str) -> str:
    try:
        return (await anyio.to_thread.run_sync(service.host.images.get, reference)).digest
    except errors.ImageDamaged:
        # It shall go all the same; no machine can be started from it.
        return reference


async def _described(service: Service, image: AnyImage) -> ImageInfo:
    """Tell of an image, and what its guest must let in to be reached."""
    info = _info(image)
    if info.ssh_user is None:
        return info
    key = await anyio.to_thread.run_sync(our_key, service.settings.state_dir)
    return info.model_copy(update={"ssh_authorized_key": key.public})


def _info(image: AnyImage) -> ImageInfo:
    if isinstance(image, RunnerImage):
        return ImageInfo(
            digest=image.digest,
            names=list(image.names),
            kind=image.manifest.kind,
            architecture=image.manifest.architecture,
            kernel_release=None,
            size_mib=0.0,
            packages={},
            runner=image.manifest.path,
            ssh_user=image.manifest.ssh and image.manifest.ssh.user,
            ssh_host_key=image.manifest.ssh and image.manifest.ssh.host_key,
        )
    if isinstance(image, DiskImage):
        login = image.manifest.ssh
        return ImageInfo(
            digest=image.digest,
            names=list(image.names),
            kind=image.manifest.kind,
            architecture=image.manifest.architecture,
            kernel_release=None,
            size_mib=round(image.manifest.size() / _MIB, 1),
            packages={},
            ssh_user=login and login.user,
            ssh_host_key=login and login.host_key,
            cloud_init=image.manifest.cloud_init,
        )
    manifest = image.manifest
    return ImageInfo(
        digest=image.digest,
        names=list(image.names),
        kind=manifest.kind,
        architecture=manifest.architecture,
        kernel_release=manifest.kernel_release,
        size_mib=round(manifest.size() / _MIB, 1),
        packages={
            name: made.version
            for name, made in {**manifest.inputs.packages, **manifest.inputs.extras}.items()
        },
    )


CALLS: tuple[Call, ...] = (
    image_build,
    image_add,
    image_list,
    image_get,
    image_verify,
    image_remove,
)

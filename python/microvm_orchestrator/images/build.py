"""Building the embedded guest: read this file first.

Each step takes what the one before gave; all that is written lies in a folder of the build and in
the cache, and becomes an image by one rename at the end. Nothing here needs privilege: owners and
modes of the guest's files exist only in the archives we write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import proc
from microvm_orchestrator.images import bytecode, guest_files, kernel, packages, programs, root
from microvm_orchestrator.images.files import scratch_folder
from microvm_orchestrator.images.initrd import make_initrd
from microvm_orchestrator.images.manifest import Agent, Disk, Input, Inputs, Manifest
from microvm_orchestrator.images.packages import ARCHITECTURE, Package, check_names, open_index
from microvm_orchestrator.images.progress import Progress, Stage, silent
from microvm_orchestrator.images.store import Image, ImageStore, check_name, stored
from microvm_orchestrator.images.tar import EPOCH, write_tar
from microvm_orchestrator.images.toolbox import Toolbox, open_toolbox
from microvm_orchestrator.images.tree import Link
from microvm_orchestrator.images.unpack import merged, unpack
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.images.kernel import Kernel
    from microvm_orchestrator.images.packages import Index
    from microvm_orchestrator.images.tree import File, Tree

KERNEL = "linux-image-cloud-amd64"
TOOLS = ("squashfs-tools",)
_KERNEL_PACKAGE = re.compile(r"linux-image-[0-9].*")

# The same for every disk: nothing of the host, the clock or the user gets in.
_MKSQUASHFS_WORDS = (
    *("-tar", "-noappend", "-quiet", "-no-progress", "-no-xattrs"),
    *("-all-time", str(EPOCH), "-mkfs-time", str(EPOCH)),
    # A tar says nothing of the root itself, which then is its builder's: mksquashfs 4.5 forgets
    # -root-uid when it reads a tar. The guest's init gives its user what shall be its own.
    *("-all-root", "-root-mode", "755", "-root-time", str(EPOCH)),
    # Of the first levels the smallest for its time. With lz4 a guest boots no faster, and its root
    # is a third larger.
    *("-comp", "zstd", "-Xcompression-level", "3"),
)
_MKSQUASHFS = "usr/bin/mksquashfs"
_BUSYBOX = "usr/bin/busybox"
_PACK_S = 600.0

# The name of the agent's virtio port; its init starts it there.
_PORT = "ctl"


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """What kind of guest is wanted."""

    name: str = "embedded"
    # Besides those that every guest has.
    packages: tuple[str, ...] = ()
    # Those of agents, by name: each a version, or the name of a channel.
    programs: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class _Plan:
    """What will be made, of which packages."""

    index: Index
    guest: list[Package]
    kernel: list[Package]
    # Those the guest does not have anyway.
    tools: list[Package]
    programs: list[programs.Release]

    def inputs(self) -> Inputs:
        return Inputs(
            builder=guest_files.builder_digest(),
            guest=guest_files.guest_digest(),
            packages=_named([*self.guest, *self.kernel]),
            tools=_named(self.tools),
            extras={
                release.program.listed: Input(version=release.version, checksum=release.sha512)
                for release in self.programs
            },
        )


async def build(
    spec: ImageSpec,
    store: ImageStore,
    cache: Path,
    progress: Progress = silent,
    *,
    fresh_s: float = packages.FRESH_S,
) -> Image:
    """Have the image of a kind of guest, under its name; one that was made before is not made anew.

    `cache` keeps what was fetched and may be removed at any time between builds. The package index
    in it is asked for anew when it is older than `fresh_s`.
    Raises: InvalidInput, PackageUnknown, PackageRefused, CommandFailed.
    """
    check_name(spec.name)
    check_names(spec.packages)
    plan = await _make_plan(spec, cache, progress, fresh_s)
    inputs = await anyio.to_thread.run_sync(plan.inputs)
    image = await anyio.to_thread.run_sync(store.find_made_of, inputs)
    if image is None:
        image = await _make(plan, inputs, store, cache, progress)
    return await anyio.to_thread.run_sync(store.name, image, spec.name)


async def _make_plan(spec: ImageSpec, cache: Path, progress: Progress, fresh_s: float) -> _Plan:
    index = await open_index(cache / "apt", progress, fresh_s=fresh_s)
    progress(Stage.RESOLVE, 0, 1)
    asked = sorted({*spec.packages, *(programs.PACKAGES if spec.programs else ())})
    everything, wanted, kernels, tools = await together(
        [
            partial(index.resolve, sorted({*root.PACKAGES, *asked})),
            partial(index.resolve, asked),
            partial(index.resolve, [KERNEL]),
            partial(index.resolve, TOOLS),
        ]
    )
    guest = {
        name: version
        for name, version in everything.items()
        if name in wanted or not root.DISPENSABLE.fullmatch(name)
    }
    kernels = {name: v for name, v in kernels.items() if _KERNEL_PACKAGE.fullmatch(name)}
    tools = {name: version for name, version in tools.items() if name not in guest}
    described = {p.name: p for p in await index.describe({**guest, **kernels, **tools})}

    def chosen(versions: dict[str, str]) -> list[Package]:
        return [described[name] for name in sorted(versions)]

    releases = [
        await programs.find_release(programs.PROGRAMS[name], version, cache / name)
        for name, version in sorted(spec.programs.items())
    ]
    progress(Stage.RESOLVE, 1, 1)
    return _Plan(index, chosen(guest), chosen(kernels), chosen(tools), releases)


async def _make(
    plan: _Plan, inputs: Inputs, store: ImageStore, cache: Path, progress: Progress
) -> Image:
    kept = cache / "packages"
    await plan.index.fetch([*plan.guest, *plan.kernel, *plan.tools], kept, progress)
    for release in plan.programs:
        await programs.fetch(release, cache / release.program.name, progress)
    async with scratch_folder(cache, ".building-") as scratch:
        tree, its_kernel, toolbox = await _read_packages(plan, kept, scratch, progress)
        applets = await _list_applets(toolbox)
        await anyio.to_thread.run_sync(root.furnish, tree, its_kernel, applets)
        tag = await bytecode.compile_python(tree, toolbox, root.PYTHON_FOLDERS, progress)
        root.start_by_bytecode(tree, tag)
        with store.new_folder() as folder:
            progress(Stage.PACK, 0, 1)
            disks = [partial(_pack, tree, "root", toolbox, scratch, folder)]
            for release in plan.programs:
                program = release.program
                tree.put(f"usr/local/bin/{program.name}", Link(f"/{program.command}"))
                its_tree = await anyio.to_thread.run_sync(
                    programs.read_program, release, cache / program.name, scratch
                )
                disks.append(partial(_pack, its_tree, program.serial, toolbox, scratch, folder))
            packed = await together(disks)
            progress(Stage.PACK, 1, 1)
            image = await anyio.to_thread.run_sync(
                _store, store, folder, its_kernel, tree.file(_BUSYBOX), packed, inputs
            )
    progress(Stage.STORE, 1, 1)
    return image


async def _read_packages(
    plan: _Plan, kept: Path, scratch: Path, progress: Progress
) -> tuple[Tree, Kernel, Toolbox]:
    """Take the packages apart: the guest's tree, its kernel, and the programs we need ourselves."""
    trees = await unpack(
        [
            *((package, root.is_wanted) for package in plan.guest),
            *((package, kernel.is_wanted) for package in plan.kernel),
            *((package, root.is_wanted) for package in plan.tools),
        ],
        kept,
        await _folder(scratch / "packages"),
        progress,
    )
    tools_from = len(plan.guest) + len(plan.kernel)
    guest, kernels = trees[: len(plan.guest)], trees[len(plan.guest) : tools_from]

    def lay_out() -> tuple[Tree, Kernel, Toolbox]:
        tree = merged(guest)
        python = bytecode.find_python(tree)
        needed = {python, _MKSQUASHFS, _BUSYBOX}
        with_tools = merged([tree, *trees[tools_from:]])
        toolbox = open_toolbox(with_tools, scratch / "tools", needed.__contains__)
        return tree, kernel.read_kernel(merged(kernels)), toolbox

    return await anyio.to_thread.run_sync(lay_out)


async def _list_applets(toolbox: Toolbox) -> list[str]:
    # It is linked statically: it needs nobody's loader.
    done = await proc.run([toolbox.folder / _BUSYBOX, "--list-full"], timeout_s=_PACK_S)
    return done.stdout.decode().split()


async def _pack(tree: Tree, serial: str, toolbox: Toolbox, scratch: Path, folder: Path) -> Disk:
    """Write a tree as a squashfs, in the same bytes every time."""
    tar, target = scratch / f"{serial}.tar", folder / f"{serial}.squashfs"
    await anyio.to_thread.run_sync(_write_tar, tree, tar)
    with tar.open("rb") as source:
        await proc.run(
            toolbox.command(_MKSQUASHFS, "-", target, *_MKSQUASHFS_WORDS),
            timeout_s=_PACK_S,
            env={"LC_ALL": "C.UTF-8"},
            stdin=source,
        )
    found = await anyio.to_thread.run_sync(stored, target)
    return Disk(**found.model_dump(), serial=serial)


def _write_tar(tree: Tree, path: Path) -> None:
    with path.open("xb") as out:
        write_tar(tree, out)


def _store(
    store: ImageStore,
    folder: Path,
    its_kernel: Kernel,
    busybox: File,
    disks: list[Disk],
    inputs: Inputs,
) -> Image:
    initrd, image = folder / "initrd", folder / "kernel"
    initrd.write_bytes(make_initrd(its_kernel, busybox))
    image.write_bytes(its_kernel.image.read())
    manifest = Manifest(
        architecture=ARCHITECTURE,
        kernel_release=its_kernel.release,
        kernel=stored(image),
        initrd=stored(initrd),
        disks=tuple(disks),
        cmdline="",
        agent=Agent(protocol=guest_files.protocol(), port=_PORT),
        inputs=inputs,
    )
    return store.publish(folder, manifest)


async def _folder(path: Path) -> Path:
    await anyio.to_thread.run_sync(path.mkdir)
    return path


def _named(chosen: list[Package]) -> dict[str, Input]:
    return {p.name: Input(version=p.version, checksum=p.sha256) for p in chosen}

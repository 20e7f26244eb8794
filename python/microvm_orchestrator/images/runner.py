"""Images that are runner directories: one of a path, or one that Nix builds first.

Nothing of a runner is copied. What is kept is where it is and a digest over what it says, so that
one which has changed is noticed before it is started; and, where there is Nix, a root that keeps
its garbage collector away for as long as there is the image. Above stands the service.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors, proc
from microvm_orchestrator.images.manifest import RunnerManifest, SshLogin
from microvm_orchestrator.images.store import RunnerImage, check_name
from microvm_orchestrator.runner import Runner, Ssh, read

if TYPE_CHECKING:
    from microvm_orchestrator.images.store import ImageStore

# In the image's folder, and so gone with it; Nix looks whether it is still there.
ROOT = "root"
# A guest that has never been built brings a kernel and half a system.
_BUILD_S = 3600.0
_ROOT_S = 60.0
_FEATURES = ("--extra-experimental-features", "nix-command flakes")


async def add(reference: str, store: ImageStore, name: str, ssh: Ssh | None = None) -> RunnerImage:
    """Make an image of a runner directory, or of what Nix builds by an installable's name.

    Raises: InvalidInput, CommandFailed.
    """
    check_name(name)
    path = Path(reference)
    if not (path.is_absolute() and await anyio.to_thread.run_sync(path.is_dir)):
        path = await _built(reference)
    found = replace(await anyio.to_thread.run_sync(read, path), ssh=ssh)
    image = await anyio.to_thread.run_sync(_published, found, store)
    if found.path.is_relative_to(_nix_store()) and shutil.which("nix-store"):
        root = image.folder / ROOT
        await proc.run(
            ["nix-store", "--add-root", root, "--indirect", "--realise", found.path],
            timeout_s=_ROOT_S,
        )
    return await anyio.to_thread.run_sync(store.name, image, name)


def bootable(image: RunnerImage) -> Runner:
    """Look at the runner of an image. Not for the event loop. Raises: ImageDamaged."""
    manifest = image.manifest
    try:
        found = read(Path(manifest.path))
    except errors.InvalidInput as error:
        raise errors.ImageDamaged(
            f"the runner of image {image.digest} is gone: {error.message}", hint="add it anew"
        ) from error
    if found.digest != manifest.runner:
        raise errors.ImageDamaged(
            f"the runner directory {manifest.path} is not what it was", hint="add it anew"
        )
    login = manifest.ssh
    return found if login is None else replace(found, ssh=Ssh(login.user, login.host_key))


def _nix_store() -> Path:
    return Path(os.environ.get("NIX_STORE_DIR", "/nix/store"))


def _published(found: Runner, store: ImageStore) -> RunnerImage:
    manifest = RunnerManifest(
        architecture=os.uname().machine,
        hypervisor=found.hypervisor,
        path=str(found.path),
        runner=found.digest,
        memory_mib=found.memory_mib,
        vcpus=found.vcpus,
        ssh=found.ssh and SshLogin(user=found.ssh.user, host_key=found.ssh.host_key),
    )
    with store.new_folder() as folder:
        return store.publish(folder, manifest)


async def _built(installable: str) -> Path:
    if installable.startswith("-"):
        raise errors.InvalidInput(f"{installable!r} is no name of anything to build")
    if shutil.which("nix") is None:
        raise errors.InvalidInput(
            f"{installable} is no directory, and there is no Nix here to build it",
            hint="give the absolute path of a runner directory",
        )
    ran = await proc.run(
        ["nix", *_FEATURES, "build", "--no-link", "--print-out-paths", installable],
        timeout_s=_BUILD_S,
    )
    paths = ran.stdout.decode().split()
    if len(paths) != 1:
        raise errors.InvalidInput(f"{installable} builds {len(paths)} things, not one runner")
    return Path(paths[0])

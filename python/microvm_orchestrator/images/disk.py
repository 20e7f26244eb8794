"""Images that are disks: a file with a whole system on it, as distributions make them for clouds.

It is copied, so that nobody changes under a machine what the machine was started from. Above stands
the service, which knows what a disk has to look like.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator import errors
from microvm_orchestrator.images.manifest import DiskManifest, SshLogin
from microvm_orchestrator.images.store import DiskImage, check_name, stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from microvm_orchestrator.images.store import ImageStore
    from microvm_orchestrator.runner import Ssh

_FILE = "disk.qcow2"


async def add(
    path: Path,
    store: ImageStore,
    name: str,
    check: Callable[[Path], None],
    ssh: Ssh | None,
    *,
    cloud_init: bool,
) -> DiskImage:
    """Make an image of a file; `check` raises InvalidInput for one that is no disk.

    Raises: InvalidInput.
    """
    check_name(name)
    image = await anyio.to_thread.run_sync(_published, path, store, check, ssh, cloud_init)
    return await anyio.to_thread.run_sync(store.name, image, name)


def _published(
    path: Path,
    store: ImageStore,
    check: Callable[[Path], None],
    ssh: Ssh | None,
    cloud_init: bool,  # noqa: FBT001 # run_sync passes positions only
) -> DiskImage:
    if not path.is_absolute() or not path.is_file():
        raise errors.InvalidInput(
            f"{path} is no file of this host", hint="give the absolute path of a qcow2 file"
        )
    with store.new_folder() as folder:
        copy = folder / _FILE
        try:
            check(path)
            shutil.copyfile(path, copy)
        except OSError as error:
            raise errors.InvalidInput(f"{path} cannot be read: {error.strerror}") from error
        # It may have become another meanwhile.
        check(copy)
        manifest = DiskManifest(
            architecture=os.uname().machine,
            disk=stored(copy),
            ssh=ssh and SshLogin(user=ssh.user, host_key=ssh.host_key),
            cloud_init=cloud_init,
        )
        return store.publish(folder, manifest)

"""An image with an SSH server: each machine of it, a clone too, is known by a key of its own."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from machines import CACHE, LONG_S, like, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.host import boot_of
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.machine.base import Boot

# No script of the package has run: it is not set up.
BEGIN = """
echo sshd:x:101:65534::/run/sshd:/usr/sbin/nologin >>/etc/passwd
echo UsePAM no >/etc/ssh/sshd_config
mkdir -p /run/sshd && /usr/sbin/sshd
"""
# What the server says that it is, to whoever connects.
SEEN = "ssh-keyscan -t ed25519 127.0.0.1 2>/dev/null | cut -d' ' -f3"


@pytest.mark.long
async def test_every_clone_has_a_host_key_of_its_own_and_its_server_uses_it(tmp_path: Path) -> None:
    spec = ImageSpec("ssh", ("openssh-server",))
    boot = boot_of(await build(spec, ImageStore(CACHE / "images"), CACHE / "build"))
    assert isinstance(boot, Boot)
    rig = qemu_rig(tmp_path, boot)
    with anyio.fail_after(3 * LONG_S):
        async with rig.open() as qemu, removed_in_the_end(qemu):
            source = await qemu.start(rig.spec(memory_mib=256))
            await sh(source, BEGIN)
            first = await sh(source, SEEN)
            saved = await source.save(f"{source.machine_id}-s")
            assert await sh(source, SEEN) == first
            keys = {first}
            for _ in range(2):
                clone = await qemu.clone(saved, like(saved))
                file = await sh(clone, "cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
                seen = await sh(
                    clone, f"until [ \"$({SEEN})\" = '{file.strip()}' ]; do :; done; {SEEN}"
                )
                assert seen == file
                keys.add(seen)
            assert len(keys) == 3
            assert all(key.startswith("AAAA") for key in keys)

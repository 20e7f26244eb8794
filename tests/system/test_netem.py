"""The kernel's networks where the kernel has netem: in a guest, whose own tests are these."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from machines import Rig, qemu_rig, removed_in_the_end
from microvm_orchestrator.machine.base import Accel
from microvm_orchestrator.machine.qemu.hypervisor import open_qemu
from microvm_orchestrator.machine.shell import Command
from netem_guest import lay_out, netem_boot

# A minute or two where nothing else runs.
LONG_S = 900.0
RUN = """
set -e
cd /srv/lab
for module in modules/*; do busybox insmod "$module" 2>/tmp/why || grep -q exists /tmp/why; done
busybox modprobe tun 2>/dev/null || true
export PYTHONPATH=/srv/lab/python:/srv/lab/tests PYTHONDONTWRITEBYTECODE=1
exec 2>&1
python3 -m pytest -q --tb=short -p no:cacheprovider -p anyio.pytest_plugin \\
    -k "netem_accuracy or (offered and kernel)" tests
"""


@pytest.mark.long
async def test_what_is_asked_of_netem_is_what_frames_meet(tmp_path: Path) -> None:
    boot = await netem_boot()
    await lay_out(tmp_path / "lab")
    rig: Rig = qemu_rig(tmp_path, boot)
    with anyio.fail_after(LONG_S):
        async with open_qemu(rig.state_dir) as qemu, removed_in_the_end(qemu):
            machine = await qemu.start(rig.spec(memory_mib=768, accel=Accel.TCG))
            await machine.shell.put_tree(tmp_path / "lab", "/srv/lab", user="root")
            ran = await machine.shell.exec(Command(["/bin/sh", "-c", RUN], user="root"))
            said = ran.stdout.decode()
            print(said)
            assert ran.exit.code == 0, said
            assert " passed" in said

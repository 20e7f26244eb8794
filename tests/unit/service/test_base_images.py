"""Topologies with a `base_image`: who may is given an image of it, others are told who has to."""

from __future__ import annotations

from pathlib import Path

import pytest

from calling import OPERATOR, house
from microvm_orchestrator import errors
from microvm_orchestrator.machine.qemu import qcow2

pytestmark = pytest.mark.anyio


def topology(path: Path) -> str:
    return f"""
cluster_name: seedling
base_image: {path}
network: {{name: lan, subnet: 10.9.0.0/24}}
nodes: [{{name: one, memory_mb: 256, ip: 10.9.0.10}}]
"""


async def test_an_admin_defines_a_cluster_of_a_disk_and_nobody_else_makes_its_image(
    tmp_path: Path,
) -> None:
    path = tmp_path / "base-12.qcow2"
    qcow2.create(path, 1 << 24)
    async with house(tmp_path) as kept:
        with pytest.raises(errors.NodesFailed, match=f"image_add with disk={path}"):
            await kept.ask("cluster_define", topology=topology(path), by=OPERATOR)
        cluster = await kept.ask("cluster_define", topology=topology(path))
        assert (cluster["state"], cluster["nodes"][0]["backend"]) == ("defined", "libvirt")
        [image] = (await kept.ask("image_list"))["items"]
        assert (image["names"], image["kind"], image["ssh_user"]) == (["base-12"], "qcow2", "root")
        assert image["cloud_init"] is True
        machine = await kept.ask("machine_get", machine="seedling.one")
        assert (machine["image"], machine["owner"]) == (image["digest"], OPERATOR.name)
        assert await kept.ask("cluster_define", topology=topology(path)) == cluster
        path.write_bytes(path.read_bytes() + bytes(512))
        with pytest.raises(errors.InvalidInput, match="another image base-12"):
            await kept.ask("cluster_define", topology=topology(path))


async def test_a_base_image_that_is_no_disk_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.qcow2"
    path.write_bytes(b"not a disk")
    async with house(tmp_path) as kept:
        with pytest.raises(errors.InvalidInput):
            await kept.ask("cluster_define", topology=topology(path))
        assert (await kept.ask("cluster_list"))["items"] == []

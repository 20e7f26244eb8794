"""The embedded guest as it is really built and booted."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from bare_qemu import Drive, booting
from machines import CACHE
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.progress import Stage
from microvm_orchestrator.images.store import Image, ImageStore
from microvm_orchestrator.machine.shell import Command
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from microvm_orchestrator.machine.shell import Shell

ROOT = Path(__file__).parents[2]
# What was fetched is kept in the repository's folder, so that a later run needs no mirror.
FETCHED = CACHE / "build"
NOBODY = 65534
MIB = 1 << 20

# Where Python finds the project and what it needs.
_OURS = ":".join([*site.getsitepackages(), str(ROOT / "python")])
_BUILD = """
import anyio, pathlib, sys
from microvm_orchestrator.images.build import ImageSpec, build
from microvm_orchestrator.images.store import ImageStore
store, cache = map(pathlib.Path, sys.argv[1:])
print(anyio.run(build, ImageSpec(), ImageStore(store), cache).digest)
"""


@pytest.fixture(scope="module")
def fetched() -> Path:
    """Have all that the guest is made of, so that no test waits for a mirror."""
    anyio.run(build, ImageSpec(), ImageStore(CACHE / "images"), FETCHED)
    return FETCHED


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory, fetched: Path) -> Image:
    """Build the guest once for the tests of this module."""
    store = ImageStore(tmp_path_factory.mktemp("images"))
    began = time.monotonic()
    image = anyio.run(build, ImageSpec(), store, fetched)
    took_s = time.monotonic() - began
    sizes = {file.file: file.bytes for file in image.manifest.files()}
    told = ", ".join(f"{name} {size / 1e6:.1f}" for name, size in sizes.items())
    print(f"image: {image.manifest.size() / 1e6:.1f} MB ({told}), built in {took_s:.1f} s")
    return image


async def say(shell: Shell, command: str, *, user: str | None = None) -> str:
    done = await shell.exec(Command(["/bin/sh", "-c", command], user=user, timeout_s=60))
    said = (done.stdout + done.stderr).decode().strip()
    assert done.exit.code == 0, f"{command}: {said}"
    return said


async def test_a_cold_guest_answers_and_has_what_tasks_need(tmp_path: Path, image: Image) -> None:
    async with booting(tmp_path, image) as qemu:
        async with qemu.shell() as shell:
            ready_s = time.monotonic() - qemu.began
            print(f"boot: ready in {ready_s:.2f} s, {qemu.cpu_s():.2f} CPU-s")
            assert await say(shell, "readlink /proc/$$/exe") == "/usr/bin/dash"
            assert await say(shell, "cat /proc/1/comm") == "python3"
            assert await say(shell, "ls /sys/class/net") == "lo"
            assert (await say(shell, "git --version")).startswith("git version")
            trusted = "import ssl; print(ssl.create_default_context().cert_store_stats()['x509'])"
            assert int(await say(shell, f'python3 -c "{trusted}"')) > 100
            work = (
                "cd /workspace && git init -q . && git -c user.name=a -c user.email=a commit -qm x"
            )
            await say(shell, f"{work} --allow-empty && touch ~/mine && id -un", user="agent")
            refused = await say(shell, "touch /etc/x 2>/dev/null || echo refused", user="agent")
            assert refused == "refused"
            await shell.shutdown()
        assert await qemu.end() == 0


async def test_python_in_the_guest_compiles_nothing_that_came_with_it(
    tmp_path: Path, image: Image
) -> None:
    script = "import json, subprocess, asyncio, sys; print(json.__cached__, json.__file__)"
    async with booting(tmp_path, image) as qemu, qemu.shell() as shell:
        cached, source = (await say(shell, f'python3 -c "{script}"')).split()
        assert source.startswith("/usr/lib/python3")
        # Nothing was written beside what came compressed and read-only.
        assert (
            await say(shell, f"test -f {cached} && find /usr -newer /etc/hosts -name '*.pyc'") == ""
        )


async def test_a_scratch_disk_is_formatted_once_and_keeps_what_was_written(
    tmp_path: Path, image: Image
) -> None:
    scratch = tmp_path / "scratch"
    with scratch.open("wb") as file:
        file.truncate(4096 * MIB)
    for first in (True, False):
        async with booting(tmp_path, image, drives=[Drive("scratch", scratch)]) as qemu:
            async with qemu.shell() as shell:
                if first:
                    await say(shell, "echo kept >/workspace/file", user="agent")
                    size_kib = int((await say(shell, "df -k / | tail -1")).split()[1])
                    assert size_kib > 3_500_000
                else:
                    assert await say(shell, "cat /workspace/file", user="agent") == "kept"
                    assert await say(shell, "stat -c %U /workspace/file") == "agent"
                await shell.shutdown()
            assert await qemu.end() == 0
    # An empty disk costs next to nothing.
    assert scratch.stat().st_blocks * 512 < 64 * MIB


async def test_a_scratch_disk_that_holds_something_else_is_left_as_it_is(
    tmp_path: Path, image: Image
) -> None:
    scratch = tmp_path / "scratch"
    content = b"somebody's".ljust(16 * MIB, b"!")
    scratch.write_bytes(content)
    async with booting(tmp_path, image, drives=[Drive("scratch", scratch)]) as qemu:
        assert await qemu.end() == 0
    assert "init: /dev/vdb holds something else than ext4" in qemu.said()
    assert scratch.read_bytes() == content


async def test_a_guest_that_cannot_boot_ends_and_its_console_says_why(
    tmp_path: Path, image: Image
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(image.folder, broken)
    root = broken / image.manifest.disks[0].file
    root.chmod(0o644)
    root.write_bytes(bytes(MIB))
    damaged = Image(image.digest, broken, image.manifest, ())
    async with booting(tmp_path, damaged) as qemu:
        assert await qemu.end() == 0
    assert "init: /dev/vda holds no root" in qemu.said()


async def test_the_same_image_boots_where_devices_are_on_pci(tmp_path: Path, image: Image) -> None:
    async with booting(tmp_path, image, machine="q35") as qemu:
        async with qemu.shell() as shell:
            assert "virtio_pci" in await say(shell, "lsmod")
            await shell.shutdown()
        assert await qemu.end() == 0


async def test_a_package_that_is_asked_for_is_in_the_guest_with_what_it_needs(
    tmp_path: Path, image: Image
) -> None:
    spec = ImageSpec("with-bash", packages=("bash",))
    variant = await build(spec, ImageStore(tmp_path / "images"), FETCHED)
    assert variant.names == ("with-bash",)
    added = variant.manifest.inputs.packages.keys() - image.manifest.inputs.packages.keys()
    assert "bash" in added
    async with booting(tmp_path, variant) as qemu, qemu.shell() as shell:
        assert await say(shell, "bash -c 'echo ${BASH_VERSINFO[0]}'") >= "5"


async def test_an_image_that_is_there_already_is_not_built_again(image: Image) -> None:
    told: list[Stage] = []
    store = ImageStore(image.folder.parent)
    before = (image.folder / "manifest.json").stat().st_mtime_ns

    def note(stage: Stage, _done: int, _total: int) -> None:
        told.append(stage)

    again = await build(ImageSpec(), store, FETCHED, note)
    assert again == image
    assert (image.folder / "manifest.json").stat().st_mtime_ns == before
    assert set(told) == {"resolve"}


@pytest.fixture
def own_cache(tmp_path: Path, fetched: Path) -> Path:
    """Give a cache that nobody else builds in, with all that the guest is made of."""
    cache = tmp_path / "cache"
    shutil.copytree(fetched / "packages", cache / "packages", copy_function=os.link)
    (cache / "apt").symlink_to(fetched / "apt")
    return cache


async def test_two_builds_at_once_make_one_image(tmp_path: Path, own_cache: Path) -> None:
    store = ImageStore(tmp_path / "images")
    specs = [ImageSpec("a"), ImageSpec("b")]
    found = await together([partial(build, spec, store, own_cache) for spec in specs])
    assert len({image.digest for image in found}) == 1
    assert store.get("b").names == ("a", "b")
    assert leftovers(store.folder, own_cache) == []


@pytest.mark.parametrize("at", [Stage.UNPACK, Stage.COMPILE, Stage.PACK])
async def test_a_build_that_is_cancelled_leaves_nothing(
    tmp_path: Path, own_cache: Path, at: Stage
) -> None:
    store = ImageStore(tmp_path / "images")

    def cancel(stage: Stage, _done: int, _total: int) -> None:
        if stage is at:
            scope.cancel()

    with anyio.CancelScope() as scope:
        await build(ImageSpec(), store, own_cache, cancel)
    assert scope.cancelled_caught
    assert store.list() == []
    assert leftovers(store.folder, own_cache) == []


def leftovers(*folders: Path) -> list[str]:
    """Name what only a build that is under way may have."""
    return [path.name for folder in folders for path in folder.rglob(".*") if path.exists()]


def test_the_same_packages_make_the_same_image_whoever_builds_it_and_wherever(
    tmp_path: Path, fetched: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can build as somebody else too")
    if (python := find_python_of_everybody()) is None:
        pytest.skip("no Python of this version that an unprivileged user may start and read us by")
    cache = tmp_path / "a cache with spaces"
    shutil.copytree(fetched / "packages", cache / "packages", copy_function=os.link)
    stores = [tmp_path / "mine", tmp_path / "a longer way" / "of nobody"]
    for path in (cache, cache / "packages", stores[1].parent):
        path.mkdir(parents=True, exist_ok=True)
        os.chown(path, NOBODY, NOBODY)
    open_the_way_to(tmp_path)
    digests: list[str] = []
    for store, user in ((stores[1], NOBODY), (stores[0], 0)):
        built = subprocess.run(
            [python, "-c", _BUILD, store, cache],
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": ":".join([*site.getsitepackages(), str(ROOT / "python")]),
                "PYTHONDONTWRITEBYTECODE": "1",
                # Nothing of who builds, where and when gets in.
                "TZ": "Pacific/Kiritimati" if user else "UTC",
                "LANG": "C" if user else "C.UTF-8",
            },
            user=user,
            group=user,
            extra_groups=[],
            umask=0o077 if user else 0o022,
            capture_output=True,
            text=True,
            check=False,
        )
        assert built.returncode == 0, built.stderr
        digests.append(built.stdout.strip())
    assert digests[0] == digests[1]
    first, second = (
        {path.name: path.read_bytes() for path in (store / digests[0]).iterdir()}
        for store in stores
    )
    assert first == second
    assert (stores[1] / digests[0]).stat().st_uid == NOBODY


def find_python_of_everybody() -> str | None:
    """Find a Python of our version that every user may start, and finds what it needs there."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (str(Path(sys.executable).resolve()), f"/usr/bin/{name}"):
        try:
            ran = subprocess.run(
                [candidate, "-c", "import anyio, microvm_orchestrator"],
                cwd="/",
                env={"PYTHONPATH": _OURS, "PYTHONDONTWRITEBYTECODE": "1"},
                user=NOBODY,
                group=NOBODY,
                capture_output=True,
                check=False,
            )
        except OSError:
            continue
        if ran.returncode == 0:
            return candidate
    return None


def open_the_way_to(path: Path) -> None:
    """Let everybody pass through the folders of this test run."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.geteuid() and folder.name.startswith(
            ("pytest", "popen", path.name)
        ):
            folder.chmod(0o755)


async def test_the_guest_with_claude_code_runs_it(tmp_path: Path, *, whole: bool) -> None:
    if not whole:
        pytest.skip("fetches 100 MB; --whole does")
    began = time.monotonic()
    spec = ImageSpec("claude", programs={"claude": "latest"})
    variant = await build(spec, ImageStore(tmp_path / "images"), FETCHED)
    took_s = time.monotonic() - began
    print(f"claude image: {variant.manifest.size() / 1e6:.0f} MB, built in {took_s:.1f} s")
    async with booting(tmp_path, variant, memory_mib=1024) as qemu, qemu.shell() as shell:
        version = variant.manifest.inputs.extras["claude-code"].version
        assert await say(shell, "claude --version", user="agent") == f"{version} (Claude Code)"
        print(f"claude answered after {time.monotonic() - qemu.began:.1f} s")

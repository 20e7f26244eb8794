"""What a host lends to real machines: caches that outlive them, and machines that stand ready."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

import hosted
from calling import House, house
from chaos.ask import Asker
from daemon import running_daemon
from machines import CACHE, LONG_S, guest_image
from microvm_orchestrator.model.agent import USUAL_DISK_MIB

SIZE_MIB = 64


@asynccontextmanager
async def machines_in(
    state_dir: Path, agents: dict[str, Any] | None = None, **settings: Any
) -> AsyncGenerator[House]:
    """Keep a service with the embedded guest; no machine outlives the block."""
    await guest_image()
    (state_dir / "images").symlink_to(CACHE / "images")
    with anyio.fail_after(5 * LONG_S):
        machines: dict[str, object] = {"cache_mib": SIZE_MIB, **settings}
        async with house(state_dir, machines=machines, agents=agents or {}) as here:
            try:
                yield here
            finally:
                for machine in (await here.ask("machine_list", state=["running"]))["items"]:
                    await here.ask("machine_kill", machine=machine["machine_id"])


async def start(here: House, name: str, **wish: Any) -> dict[str, Any]:
    await here.ask("machine_define", name=name, memory_mib=256, **wish)
    operation = await here.ask("machine_start", machine=name, wait_s=LONG_S)
    assert operation["state"] == "succeeded", operation
    return operation["result"]


async def said(here: House, machine: str, script: str) -> str:
    ran = await here.ask("machine_exec", machine=machine, script=script, wait_s=LONG_S)
    assert ran["exit_code"] == 0, ran
    return str(ran["stdout"])


async def test_what_a_machine_leaves_in_its_cache_the_next_one_finds_and_no_clone_writes_it(
    tmp_path: Path,
) -> None:
    async with machines_in(tmp_path) as here:
        await start(here, "one", cache="repo")
        await said(here, "one", "echo kept >/cache/file")
        assert int(await said(here, "one", "stat -f -c %b /cache")) > 0
        # A clone has what its source had, and neither sees what the other one writes then.
        branched = await here.ask("machine_branch", source="one", name="clone", wait_s=LONG_S)
        assert branched["state"] == "succeeded", branched
        assert (
            await said(here, "clone", "cat /cache/file; echo clone >/cache/file; sync") == "kept\n"
        )
        assert await said(here, "one", "cat /cache/file; echo later >/cache/file") == "kept\n"
        await here.ask("machine_stop", machine="one", wait_s=LONG_S)
        two = await start(here, "two", cache="repo")
        assert two["cache_volume"] == "repo/1"
        assert await said(here, "two", "cat /cache/file") == "later\n"
        assert await said(here, "clone", "cat /cache/file") == "clone\n"
        (slot,) = [s for s in (await here.ask("slot_list"))["items"] if s["name"] == "two"]
        assert slot["cache"] == "repo/1"
        other = await start(here, "other", cache="another")
        assert other["cache_volume"] == "another/1"
        assert await said(here, "other", "ls -A /cache") == "lost+found\n"


async def test_a_machine_that_stands_ready_is_claimed_and_knows_its_name(tmp_path: Path) -> None:
    async with machines_in(tmp_path, warm={"embedded": 1}, default_memory_mib=256) as here:
        await here.filled()
        (told,) = (await here.ask("pool_list"))["items"]
        assert told == {
            "image": "embedded",
            "for_agents": False,
            "wanted": 1,
            "ready": 1,
            "reason": "",
        }
        machine = await start(here, "box")
        assert machine["runtime_id"] is not None
        assert await said(here, "box", "hostname") == "box\n"
        await here.ask("machine_stop", machine="box", wait_s=LONG_S)


async def test_what_one_that_stood_ready_for_an_agent_has_written_is_kept_until_it_is_deleted(
    tmp_path: Path,
) -> None:
    async with machines_in(tmp_path, {"warm": {"embedded": 1}}, default_memory_mib=256) as here:
        await here.filled()
        (told,) = (await here.ask("pool_list"))["items"]
        assert (told["for_agents"], told["ready"]) == (True, 1)
        machine = await start(here, "home", disk_mib=USUAL_DISK_MIB)
        claimed = machine["runtime_id"]
        assert claimed is not None
        await said(here, "home", "echo kept >/var/file")
        await here.ask("machine_stop", machine="home", wait_s=LONG_S)
        again = await here.ask("machine_start", machine="home", wait_s=LONG_S)
        assert again["result"]["runtime_id"] == claimed
        assert await said(here, "home", "cat /var/file; hostname") == "kept\nhome\n"
        await here.ask("machine_kill", machine="home")
        await here.ask("machine_delete", machine="home")
        assert not [each for each in hosted.left(tmp_path) if claimed in each]


def standing(asker: Asker, ready: int) -> None:
    """Wait until so many stand ready."""
    deadline = time.monotonic() + LONG_S
    while (pool := asker.get("/v1/pools")["items"][0])["ready"] != ready:
        assert time.monotonic() < deadline, pool
        time.sleep(0.1)  # it is background work, which nobody tells of


def test_after_a_kill_whoever_stood_ready_is_gone_and_whoever_was_claimed_goes_on(
    tmp_path: Path,
) -> None:
    anyio.run(guest_image)
    (tmp_path / "images").symlink_to(CACHE / "images")
    machines = {"warm": {"embedded": 1}, "default_memory_mib": 256}
    with running_daemon(tmp_path, machines=machines) as daemon, Asker(daemon.socket) as asker:
        standing(asker, 1)
        (first,) = set(hosted.processes(tmp_path))
        asker.post("/v1/machines", name="box")
        claimed = asker.post("/v1/machines/box/start", wait_s=4)["result"]
        assert claimed["runtime_id"] == first
        standing(asker, 1)
        (second,) = set(hosted.processes(tmp_path)) - {first}
        daemon.kill()
        assert set(hosted.processes(tmp_path)) == {first, second}
    with running_daemon(tmp_path, machines=machines) as daemon, Asker(daemon.socket) as asker:
        assert asker.get("/v1/machines/box")["state"] == "running"
        assert second not in set(hosted.processes(tmp_path))
        standing(asker, 1)
        box = {"script": "hostname", "wait_s": 4}
        assert asker.post("/v1/machines/box/exec", **box)["stdout"] == "box\n"
        asker.post("/v1/machines/box/kill")
    assert set(hosted.processes(tmp_path)) == set()

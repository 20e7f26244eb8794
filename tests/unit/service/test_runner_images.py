"""Runner directories as callers meet them: taken in, started, used, refused and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from calling import OPERATOR, House, house
from machines import LONG_S
from microvm_orchestrator import errors
from standin_runner import Wanted, foreign_command, make

FOREIGN = Wanted("cloud-hypervisor", foreign_command("--cmdline", "quiet"))


async def add(kept: House, path: Path, **more: Any) -> dict[str, Any]:
    asked = {"name": "slot", "runner": str(path), "wait_s": LONG_S, **more}
    return await kept.ask("image_add", **asked)


async def test_a_runner_is_taken_in_and_its_machine_is_like_any_other_for_callers(
    tmp_path: Path,
) -> None:
    runner = make(tmp_path / "made", FOREIGN)
    async with house(tmp_path) as kept:
        added = await add(kept, runner)
        assert added["state"] == "succeeded", added
        image = added["result"]
        assert (image["kind"], image["names"], image["runner"]) == ("runner", ["slot"], str(runner))
        assert (await kept.ask("image_list"))["items"] == [image]
        await kept.ask("machine_define", name="box", image="slot")
        await kept.ask("machine_start", machine="box", wait_s=LONG_S)
    # A daemon later, it is still there.
    async with house(tmp_path) as kept:
        assert (await kept.ask("machine_get", machine="box"))["state"] == "running"
        ran = await kept.ask("machine_exec", machine="box", argv=["echo", "in a runner"])
        assert ran["stdout"] == "in a runner\n"
        with pytest.raises(errors.NotOffered, match="run by cloud-hypervisor"):
            await kept.ask("machine_pause", machine="box")
        with pytest.raises(errors.StateForbids, match="is needed by box"):
            await kept.ask("image_remove", image="slot")
        await kept.ask("machine_stop", machine="box", wait_s=LONG_S)
        stopped = await kept.ask("machine_get", machine="box")
        assert (stopped["state"], stopped["reason"]) == ("stopped", "it was stopped, as asked")
        await kept.ask("machine_delete", machine="box")
        assert (await kept.ask("image_verify", image="slot"))["whole"]
        await kept.ask("image_remove", image="slot")
        assert (await kept.ask("image_list"))["items"] == []


async def test_a_machine_has_what_the_guest_of_its_runner_has(tmp_path: Path) -> None:
    command = ["/usr/bin/qemu-system-x86_64", "-m", "768M", "-smp", "2"]
    runner = make(tmp_path / "made", Wanted(command=command))
    async with house(tmp_path) as kept:
        await add(kept, runner)
        machine = await kept.ask("machine_define", name="box", image="slot")
        assert (machine["memory_mib"], machine["vcpus"]) == (768, 2)
        small = await kept.ask("machine_define", name="small", image="slot", memory_mib=256)
        assert small["memory_mib"] == 256
        started = await kept.ask("machine_start", machine="small", wait_s=LONG_S)
        assert started["state"] == "failed"
        assert "gives its guest 768 MiB and 2 processors" in started["error"]["message"]


async def test_a_run_asks_for_what_the_guest_of_its_runner_has(tmp_path: Path) -> None:
    # It has nothing to boot, and ends at once; what it is asked for is looked at before.
    command = ["/usr/bin/qemu-system-x86_64", "-m", "768M", "-smp", "2", "-no-such-option"]
    runner = make(tmp_path / "made", Wanted(command=command))
    said: list[str] = []
    async with house(tmp_path) as kept:
        await add(kept, runner)
        for asked in ({}, {"memory_mib": 256}):
            begun = await kept.ask("run_start", argv=["true"], image="slot", **asked)
            task = {"task_id": begun["task_id"]}
            await kept.ask("task_wait", **task, timeout_s=LONG_S)
            said.append((await kept.ask("run_get", **task))["task"]["error"]["message"])
    assert "no-such-option" in said[0]
    assert "gives its guest 768 MiB and 2 processors" in said[1]


async def test_only_who_administers_says_what_this_host_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Nix there, wherever the test runs
    async with house(tmp_path) as kept:
        with pytest.raises(errors.Denied):
            await add(kept, make(tmp_path / "made", FOREIGN), by=OPERATOR)
        failed = await add(kept, tmp_path / "nothing")
        assert failed["state"] == "failed"
        assert "no Nix here" in failed["error"]["message"]

"""Agents to whom something happens at a bad moment: others, faults, the end of a daemon."""

from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import anyio
import pytest
from structlog.testing import capture_logs

from calling import ADMIN, PATIENCE_S, silent
from git_repos import Repo
from holding import Holding, Refusing
from machines import publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.conversations.room import TEXT_MOST
from microvm_orchestrator.lifecycle.egress import SPENT
from microvm_orchestrator.model.agent import AGENT, MESSAGE, Agent
from microvm_orchestrator.model.agent_work import AgentWork, Assignment, Brought
from microvm_orchestrator.model.machine import MACHINE
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import MergeOutcome
from microvm_orchestrator.model.values import MAX_TEXT
from microvm_orchestrator.service.as_agent import spawn_as
from microvm_orchestrator.service.calls import Caller
from microvm_orchestrator.store.questions import RecordById
from talking import agent_of, home, said, spawned, stands

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from calling import House


async def test_one_whose_machine_a_fault_holds_is_suspended_once_that_is_healed(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        machine = (await agent_of(here, ada))["machine_id"]
        await here.ask("fault_inject", kind="pause", machine=machine)
        operation = await here.ask("agent_suspend", agent=ada, wait_s=0)
        # Others hear nothing of that.
        await here.ask("agent_end", agent=await spawned(here, "bob"))
        await here.ask("fault_heal_all", machine=machine)
        await here.ask("operation_wait", operation_id=operation["operation_id"])
        await stands(here, ada, "suspended", "")
        await here.ask("agent_end", agent=ada)


async def test_what_waits_for_one_takes_its_room_also_under_the_next_daemon(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", turns=1)
        await said(here, ada)
        for _ in range(TEXT_MOST // MAX_TEXT):
            await here.ask("agent_send", agent=ada, text="x" * MAX_TEXT, wait_s=0)
    async with home(tmp_path) as here:
        with pytest.raises(errors.Unavailable, match=f"64 messages with {TEXT_MOST} characters"):
            await said(here, ada, wait_s=0)
        await here.ask("agent_end", agent=ada)


async def test_the_next_daemon_sees_to_the_end_of_one_in_whose_end_the_daemon_was_killed(
    tmp_path: Path,
) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", turns=1)
        await said(here, ada)
        waiting = await said(here, ada, wait_s=0)
        # As if the daemon had been killed as soon as its end was written down.
        body = {**await agent_of(here, ada), "state": "ended"}
        await here.store.save(Record(AGENT, ada, body), SYSTEM)
    async with home(tmp_path) as here:
        asked = {"message_id": waiting["message_id"], "timeout_s": PATIENCE_S}
        assert (await here.ask("agent_wait", **asked))["state"] == "cancelled"

        async def has_no_machine() -> bool:
            return not (await here.ask("machine_list"))["items"]

        await here.until(has_no_machine)


async def test_one_that_never_comes_up_has_failed_and_hears_nothing(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        publish_no_image(here.service.host.images, "broken", "fake.panic")
        told = await here.ask("agent_spawn", name="ada", image="broken", prompt="Count.", wait_s=0)
        ada = told["target"]

        async def is_settled() -> bool:
            [message] = (await here.ask("agent_output", agent=ada))["items"]
            return bool(message["state"] == "cancelled")

        await here.until(is_settled)
        assert (await agent_of(here, ada))["state"] == "failed"
    async with home(tmp_path) as here:
        assert (await agent_of(here, ada))["state"] == "failed"
        await here.ask("agent_end", agent=ada)


@contextmanager
def in_the_way(path: Path) -> Generator[None]:
    """Have a folder of this host be a file, as if its disk were full."""
    aside = path.with_name("aside")
    path.rename(aside)
    path.touch()
    try:
        yield
    finally:
        path.unlink()
        aside.rename(path)


async def test_one_that_cannot_come_up_leaves_no_machine_running(tmp_path: Path) -> None:
    async def stopped(here: House) -> bool:
        [machine] = (await here.ask("machine_list"))["items"]
        return bool(machine["state"] == "stopped")

    user = Repo.make(tmp_path / "user")
    user.commit({"a": "1\n"})
    held = Holding()
    async with home(tmp_path, held.over) as here:
        await here.ask("repo_add", path=str(user.path), alias="site")
        held.hold_save(lambda each: each.kind == MACHINE and each.body["state"] == "running")
        told = await here.ask("agent_spawn", name="ada", image="mute", repo="site", wait_s=0)
        await held.reached()
        # What is to be laid out in its machine cannot be read by the time that this is up.
        with in_the_way(tmp_path / places.REPOS):
            held.release()
            await here.ask("operation_wait", operation_id=told["operation_id"])
        ada = await agent_of(here, told["target"])
        assert (ada["state"], ada["reason"].split()[0]) == ("failed", "git")
        assert await stopped(here)
        # As one that an earlier daemon let run.
        await here.ask("machine_start", machine=ada["machine_id"], wait_s=PATIENCE_S)
    async with home(tmp_path) as here:
        await here.until(partial(stopped, here))
        await here.ask("agent_end", agent=told["target"])
        assert (await here.ask("machine_list"))["items"] == []


async def test_what_is_said_to_one_while_it_ends_is_settled(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada")
        held.hold_save(lambda each: each.kind == MESSAGE)
        async with anyio.create_task_group() as group:
            group.start_soon(said, here, ada)
            await held.reached()
            await here.ask("agent_end", agent=ada)
            held.release()
        [message] = (await here.ask("agent_output", agent=ada))["items"]
        assert message["state"] == "cancelled"


async def test_one_that_is_suspended_once_more_can_be_resumed_meanwhile(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada")
        machine = (await agent_of(here, ada))["machine_id"]
        await here.ask("agent_suspend", agent=ada, wait_s=PATIENCE_S)
        # Whether its machine runs is looked at, and nothing has changed then.
        held.hold_question(lambda asked: isinstance(asked, RecordById) and asked.id == machine)
        await here.ask("agent_suspend", agent=ada, wait_s=PATIENCE_S)
        await held.reached()
        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(here.service.host.agents.awake, ada, SYSTEM)
                await here.go_on()
                held.release()
        assert (await agent_of(here, ada))["state"] == "idle"
        await here.ask("agent_end", agent=ada)


async def test_nobody_is_spawned_below_one_that_ends(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        lead = await spawned(here, "lead")
        ada = await spawned(here, "ada", parent=lead)
        held.hold_save(lambda each: each.id == ada and each.body["state"] == "ended")
        async with anyio.create_task_group() as group:
            group.start_soon(partial(here.ask, "agent_end", agent=lead, cascade=True))
            await held.reached()
            with pytest.raises(errors.StateForbids, match="agent lead ends"):
                await here.ask("agent_spawn", image="mute", parent=lead)
            held.release()
        assert (await here.ask("agent_tree"))["agents"] == []


async def test_who_copies_one_that_starts_waits_for_it_and_is_told_if_it_ends(
    tmp_path: Path,
) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        held.hold_question(lambda asked: isinstance(asked, RecordById) and asked.kind == MACHINE)
        ada = (await here.ask("agent_spawn", image="mute", wait_s=0))["target"]
        await held.reached()
        branch = await here.ask("agent_branch", agent=ada, wait_s=0)
        asked = {"operation_id": branch["operation_id"]}
        for _ in range(10):
            assert (await here.ask("operation_get", **asked))["state"] == "running"
        async with anyio.create_task_group() as group:
            group.start_soon(partial(here.ask, "agent_end", agent=ada))
            await here.go_on()
            held.release()
        told = await here.ask("operation_wait", **asked)
        error = told["operation"]["error"]
        assert (error["code"], error["message"]) == ("state-forbids", f"agent {ada} is ended")


async def test_one_whose_end_the_store_did_not_take_hears_what_is_said_to_it(
    tmp_path: Path,
) -> None:
    refusing = Refusing()
    async with home(tmp_path, refusing.over) as here:
        ada = await spawned(here, "ada")
        refusing.refuse(lambda each: each.id == ada and each.body["state"] == "ended")
        with pytest.raises(errors.Unavailable, match="takes nothing"):
            await here.ask("agent_end", agent=ada)
        assert (await said(here, ada))["state"] == "failed"
        await here.ask("agent_end", agent=ada)
        assert (await agent_of(here, ada))["state"] == "ended"


async def test_a_turn_that_this_host_cannot_write_down_fails_alone(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        # As if its disk were full.
        folder = tmp_path / places.AGENTS / ada
        folder.rename(tmp_path / "aside")
        message = await said(here, ada)
        assert (message["state"], message["error"]["code"]) == ("failed", "machine-failed")
        (tmp_path / "aside").rename(folder)
        message = await said(here, ada)
        assert message["error"]["code"] != "machine-failed"
        await here.ask("agent_end", agent=ada)


class Full:
    """A place of work for whose commits this host has no room the first time."""

    def __init__(self) -> None:
        self.asked = 0

    async def after_turn(self, *turn: object, success: bool) -> Brought:
        del turn, success
        self.asked += 1
        if self.asked == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return Brought(head=None, merge=MergeOutcome(), uncommitted=False)

    async def put_check_away(self) -> None:
        pass

    def seen(self) -> dict[str, object]:
        return {}


async def test_what_one_did_is_brought_home_once_this_host_has_room_for_it(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada")
        [conversation] = here.service.host.agents.conversations()
        conversation.workplace = full = cast("Any", Full())
        message = await said(here, ada)
        assert (message["state"], message["brought"]["error"], full.asked) == ("failed", None, 2)
        conversation.workplace = None
        await here.ask("agent_end", agent=ada)


async def left_with_commits(tmp_path: Path) -> str:
    """Leave one that has heard a message and is suspended; what it did is here, not merged yet."""
    user = Repo.make(tmp_path / "user")
    base = user.commit({"a": "1\n"})
    user.git("switch", "--quiet", "--create", "work")
    head = user.commit({"b": "2\n"})
    user.git("switch", "--quiet", "main")
    async with home(tmp_path) as here:
        repo = await here.ask("repo_add", path=str(user.path), alias="site")
        ada = await spawned(here, "ada", turns=1)
        await said(here, ada)
        await here.ask("agent_suspend", agent=ada, wait_s=PATIENCE_S)
        # The guests here have no place for a repository; nothing more is to come from there.
        work = AgentWork(
            asked=Assignment(repo="site"),
            repo="site",
            repo_id=repo["repo_id"],
            base=base,
            into="main",
            branch="agents/ada",
            head=head,
        )
        body = {**await agent_of(here, ada), "work": work.model_dump(mode="json")}
        await here.store.save(Record(AGENT, ada, body), SYSTEM)
    return ada


LOST = "what it did last could not be collected: File exists"
ENDS: list[tuple[str, dict[str, Any], str]] = [
    ("agent_end", {"force": True}, LOST),
    (
        "agent_budget",
        {"turns": 1, "at_limit": "end"},
        f"its budget is used up: 1 of 1 turns; {LOST}",
    ),
]


@pytest.mark.parametrize(("call", "asked", "reason"), ENDS, ids=["by force", "at its limit"])
async def test_one_ends_though_this_host_has_no_room_for_what_it_did(
    tmp_path: Path, call: str, asked: dict[str, Any], reason: str
) -> None:
    ada = await left_with_commits(tmp_path)
    async with home(tmp_path) as here:
        with in_the_way(tmp_path / places.REPOS):
            await here.ask(call, agent=ada, **asked)
            await stands(here, ada, "ended", reason)


async def test_one_lives_on_whose_end_this_host_fails_in(tmp_path: Path) -> None:
    async with home(tmp_path) as here:
        ada = await spawned(here, "ada", turns=1)
        await said(here, ada)
        # Nobody can read what it has used.
        spent = tmp_path / places.AGENTS / ada / SPENT
        spent.mkdir()
        with pytest.raises(IsADirectoryError):
            await here.ask("agent_end", agent=ada, force=True)
        with capture_logs() as lines, anyio.fail_after(PATIENCE_S):
            await here.ask("agent_budget", agent=ada, turns=1, at_limit="end")
            while not any(each["event"] == "budget_not_kept" for each in lines):
                await here.ask("agent_list")
        spent.rmdir()
        await here.ask("agent_budget", agent=ada, turns=2)
        assert (await said(here, ada))["state"] == "failed"
        await here.ask("agent_end", agent=ada)
        assert (await agent_of(here, ada))["state"] == "ended"


async def test_one_is_told_what_it_was_to_be_told_though_whoever_spawned_it_is_gone(
    tmp_path: Path,
) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        lead = Agent.model_validate(await agent_of(here, await spawned(here, "lead")))
        caller = Caller(principal=ADMIN, via="test", progress=silent)
        like = {"role": None, "system_prompt": None}
        ways = {
            "ada": partial(here.ask, "agent_spawn", image="mute", name="ada", prompt="Count."),
            "bob": partial(spawn_as, here.service, caller, lead, "bob", "Count.", **like),
        }
        for name, spawn in ways.items():
            held.hold_save(lambda each: each.kind == AGENT and each.body["state"] == "starting")
            async with anyio.create_task_group() as group:
                group.start_soon(spawn)
                await held.reached()
                group.cancel_scope.cancel()
                held.release()
            [message] = (await here.ask("agent_output", agent=name))["items"]
            assert message["text"] == "Count."
        for each in ("ada", "lead"):
            await here.ask("agent_end", agent=each, force=True, cascade=True)


async def test_who_breaks_a_turn_off_waits_until_its_program_is_started(tmp_path: Path) -> None:
    held = Holding()
    async with home(tmp_path, held.over) as here:
        ada = await spawned(here, "ada")
        held.hold_save(lambda each: each.id == ada and each.body["state"] == "busy")
        sent = await said(here, ada, wait_s=0)
        await held.reached()
        returned = anyio.Event()
        was_too_early = False

        async def interrupt() -> None:
            # There is no program in these machines that could be broken off.
            assert not (await here.ask("agent_interrupt", agent=ada))["interrupted"]
            returned.set()

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(interrupt)
                await here.go_on()
                was_too_early = returned.is_set()
                held.release()
        assert not was_too_early
        asked = {"message_id": sent["message_id"], "timeout_s": PATIENCE_S}
        assert (await here.ask("agent_wait", **asked))["state"] == "failed"
        await here.ask("agent_end", agent=ada)

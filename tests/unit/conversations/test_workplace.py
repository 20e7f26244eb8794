"""Where an agent works: its branch, and how its commits get from our mirror to the user's own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import pytest
from pydantic import JsonValue

from git_repos import Repo as UserRepo
from git_repos import raw
from merging_runs import ALICE, Site, site_in
from microvm_orchestrator import errors
from microvm_orchestrator.conversations.workplace import (
    Workplace,
    as_of_copy,
    begun,
    ref_of,
)
from microvm_orchestrator.lifecycle.live import Ground, Usual
from microvm_orchestrator.lifecycle.source import Sources
from microvm_orchestrator.model.agent import (
    AGENT,
    Agent,
    AgentState,
)
from microvm_orchestrator.model.agent_work import AgentWork, Assignment
from microvm_orchestrator.model.records import SYSTEM, Record
from microvm_orchestrator.model.run import Merge, MergeOutcome, MergeState
from talking import plain_agent

if TYPE_CHECKING:
    from pathlib import Path

    from microvm_orchestrator.git.names import Oid

ID = "a_01k0000000000000000000ada0"


@dataclass
class Desk:
    """An agent with a record in a store, and a clone of the user's repository in which it works."""

    site: Site
    agent: Agent
    clone: UserRepo
    told: list[str] = field(default_factory=list[str])

    async def keep(self, what: str, told: Mapping[str, JsonValue], **known: object) -> None:
        del told
        assert self.agent.work is not None
        work = self.agent.work.model_copy(update=known)
        self.agent = self.agent.model_copy(update={"work": work})
        self.told.append(what)
        await self.site.store.save(
            Record(AGENT, self.agent.agent_id, self.agent.model_dump(mode="json")), SYSTEM
        )

    @property
    def work(self) -> AgentWork:
        assert self.agent.work is not None
        return self.agent.work

    @property
    def place(self) -> Workplace:
        """Give what brings commits home; nothing of it needs machines before a check does."""
        nothing = cast("Any", None)
        runs = Ground(
            machines=nothing,
            execs=nothing,
            artifacts=nothing,
            sources=Sources(self.site.repos, nothing),
            merging=self.site.merging,
            ways_out=nothing,
            image=nothing,
            folder=self.site.folder,
            usual=Usual(64, 1.0),
        )
        return Workplace(self, self.site.repos, runs)

    async def commits(self, files: dict[str, str], message: str = "Did it", *more: str) -> Oid:
        """Commit in the clone, and let our mirror have it as it is taken in."""
        self.clone.write(files)
        self.clone.git("add", "--all")
        self.clone.git("commit", "--quiet", "--message", message, *more)
        mirror = await self.site.repos.fresh(self.site.repo)
        raw(
            mirror.path, "fetch", "--quiet", self.clone.path, f"+HEAD:{ref_of(self.agent.agent_id)}"
        )
        pending = MergeOutcome(state=MergeState.PENDING)
        await self.keep("collected", {}, head=self.clone.oid(), outcome=pending)
        return self.clone.oid()

    def outcome(self) -> tuple[str, str | None]:
        return self.work.outcome.state, self.work.outcome.how


@pytest.fixture
async def site(tmp_path: Path) -> AsyncGenerator[Site]:
    async with site_in(tmp_path) as site:
        yield site


async def desk_at(site: Site, name: str = "ada", **asked: Any) -> Desk:
    """Give an agent that has found where it starts."""
    assignment = Assignment.model_validate({"repo": site.repo.alias, **asked})
    work = AgentWork(asked=assignment, repo=site.repo.alias, repo_id=site.repo.repo_id)
    agent = plain_agent(name, agent_id=ID, owner=ALICE.name, work=work)
    desk = Desk(site, agent, site.work("main"))
    source = await desk.place.settle()
    if source.base is not None:
        raw(desk.clone.path, "fetch", "--quiet", source.mirror.path, source.base)
        desk.clone.git("checkout", "--quiet", "--detach", source.base)
    return desk


def subjects(repo: UserRepo, branch: str) -> list[str]:
    return repo.git("log", "--format=%s", branch).splitlines()


async def test_it_has_a_branch_by_its_name_and_starts_where_the_repository_is(site: Site) -> None:
    desk = await desk_at(site)
    assert (desk.work.branch, desk.work.into) == ("agents/ada", "main")
    assert desk.work.base == site.user.oid("main")
    # Whatever the user's branches do meanwhile.
    site.user.commit({"b": "2\n"}, "more")
    assert (await desk.place.settle()).base == desk.work.base
    assert desk.told == ["based"]


async def test_a_branch_of_one_who_had_the_name_before_is_left_alone(site: Site) -> None:
    site.user.git("branch", "agents/ada")
    desk = await desk_at(site)
    assert desk.work.branch == "agents/ada-0000ada0"
    # One whose name no branch can have goes by its id.
    assert (await desk_at(site, "a..b")).work.branch == f"agents/{ID}"


async def test_a_branch_that_was_asked_for_and_is_there_is_gone_on_with(site: Site) -> None:
    site.user.git("switch", "--quiet", "--create", "topic")
    tip = site.user.commit({"t": "1\n"}, "begun by hand")
    site.user.git("switch", "--quiet", "main")
    desk = await desk_at(site, branch="topic", merge=Merge.BRANCH)
    assert (desk.work.base, desk.work.into) == (tip, "main")
    await desk.commits({"t": "2\n"}, "gone on")
    await desk.place.land()
    assert subjects(site.user, "topic") == ["gone on", "begun by hand", "base"]
    assert desk.outcome() == ("merged", "fast_forward")
    assert subjects(site.user, "main") == ["base"]


async def test_what_it_commits_is_merged_again_and_again_on_what_others_do(site: Site) -> None:
    desk = await desk_at(site)
    first = await desk.commits({"c": "1\n"}, "one")
    await desk.place.land()
    assert (desk.outcome(), desk.work.merged) == (("merged", "fast_forward"), first)
    site.user.commit({"d": "1\n"}, "theirs")
    await desk.commits({"c": "2\n"}, "two")
    await desk.place.land()
    assert desk.outcome() == ("merged", "rebase")
    # Of what was merged as another commit nothing comes a second time.
    await desk.commits({"c": "3\n"}, "three")
    await desk.place.land()
    assert subjects(site.user, "main") == ["three", "two", "theirs", "one", "base"]
    assert (site.user.path / "c").read_text() == "3\n"
    assert subjects(site.user, "agents/ada") == ["three", "two", "one", "base"]
    assert site.user.git("status", "--porcelain") == ""
    told = list(desk.told)
    await desk.place.land()
    assert desk.told == told


async def test_what_does_not_fit_is_kept_on_its_branch_and_merged_once_it_fits(site: Site) -> None:
    desk = await desk_at(site)
    site.user.commit({"a": "1\nzwei\n3\n"}, "theirs")
    head = await desk.commits({"a": "1\nTWO\n3\n"}, "mine")
    await desk.place.land()
    assert desk.outcome() == ("conflict", None)
    assert [each.path for each in desk.work.outcome.conflicts] == ["a"]
    assert site.user.oid("agents/ada") == head
    assert (desk.work.on_branch, desk.work.merged) == (head, None)
    site.user.git("revert", "--no-edit", "HEAD")
    await desk.place.land()
    assert desk.outcome() == ("merged", "rebase")
    assert (site.user.path / "a").read_text() == "1\nTWO\n3\n"


async def test_changes_of_the_users_are_in_the_way_and_stay(site: Site) -> None:
    desk = await desk_at(site)
    site.user.write({"a": "the user's own\n"})
    await desk.commits({"a": "1\nTWO\n3\n"}, "mine")
    await desk.place.land()
    assert desk.outcome() == ("refused", None)
    assert "dirty" in (desk.work.outcome.reason or "")
    assert (site.user.path / "a").read_text() == "the user's own\n"
    site.user.git("checkout", "--quiet", "a")
    await desk.place.land()
    assert desk.outcome() == ("merged", "fast_forward")


@pytest.mark.parametrize(
    ("policy", "state", "on_branch"),
    [
        (Merge.BRANCH, "merged", True),
        (Merge.REVIEW, "pending", True),
        (Merge.MANUAL, "none", False),
    ],
)
async def test_by_other_policies_its_commits_wait_elsewhere(
    site: Site, policy: Merge, state: str, *, on_branch: bool
) -> None:
    desk = await desk_at(site, merge=policy)
    head = await desk.commits({"c": "1\n"})
    await desk.place.land()
    assert desk.work.outcome.state == state
    assert ("refs/heads/agents/ada" in site.user.refs()) is on_branch
    assert subjects(site.user, "main") == ["base"]
    await site.repos.fresh(site.repo)
    unmerged = await site.repos.unmerged(site.repo)
    assert unmerged == ({} if on_branch else {ref_of(ID): head})
    # Whoever has looked at it says how.
    await desk.place.land(Merge.AUTO)
    assert (desk.outcome(), desk.work.merged) == (("merged", "fast_forward"), head)


async def test_what_a_turn_that_failed_has_brought_waits_for_one_that_does_not(site: Site) -> None:
    desk = await desk_at(site)
    head = await desk.commits({"c": "1\n"})
    await desk.place.land(merging=False)
    assert (desk.work.outcome.state, desk.work.on_branch) == ("pending", head)
    assert subjects(site.user, "main") == ["base"]
    await desk.place.land()
    assert desk.outcome() == ("merged", "fast_forward")


async def test_a_history_that_it_wrote_anew_moves_no_branch_back(site: Site) -> None:
    desk = await desk_at(site)
    first = await desk.commits({"c": "1\n"}, "one")
    await desk.place.land()
    await desk.commits({"d": "1\n"}, "one, and more", "--amend")
    await desk.place.land()
    assert site.user.oid("agents/ada") == first
    assert "on agents/ada: " in (desk.work.outcome.reason or "")
    assert desk.work.outcome.state == "merged"
    assert sorted(path.name for path in site.user.path.iterdir()) == [".git", "a", "b", "c", "d"]


async def test_what_was_not_merged_and_one_who_works_keep_the_repository(site: Site) -> None:
    desk = await desk_at(site, merge=Merge.MANUAL)
    head = await desk.commits({"c": "1\n"})
    await desk.place.land()
    with pytest.raises(errors.StateForbids, match="agents work on repo site: ada"):
        await site.repos.remove("site", ALICE)
    desk.agent = desk.agent.model_copy(update={"state": AgentState.ENDED})
    await desk.keep("ended", {})
    with pytest.raises(errors.StateForbids, match=ref_of(ID)):
        await site.repos.remove("site", ALICE)
    assert await site.repos.unmerged(site.repo) == {ref_of(ID): head}
    # Also as another commit it is merged.
    site.user.commit({"e": "1\n"}, "theirs")
    await desk.place.land(Merge.AUTO)
    assert desk.outcome() == ("merged", "rebase")
    site.user.git("branch", "--delete", "--force", "agents/ada")
    await site.repos.fresh(site.repo)
    assert await site.repos.unmerged(site.repo) == {}


async def test_a_copy_works_on_what_the_other_has_and_on_a_branch_of_its_own(site: Site) -> None:
    desk = await desk_at(site)
    head = await desk.commits({"c": "1\n"}, "one")
    await desk.place.land()
    update = {"agent_id": f"{ID[:-1]}1", "name": "eve", "work": as_of_copy(desk.work)}
    copy = Desk(site, desk.agent.model_copy(update=update), desk.clone)
    await copy.place.settle()
    assert (copy.work.branch, copy.work.into, copy.work.head) == ("agents/eve", "main", head)
    await copy.commits({"c": "2\n"}, "two")
    await copy.place.land()
    assert subjects(site.user, "main") == ["two", "one", "base"]
    assert subjects(site.user, "agents/eve") == ["two", "one", "base"]
    assert site.user.oid("agents/ada") == head


async def test_a_message_is_told_what_came_since_its_turn_began_also_when_it_is_gone_on_with(
    site: Site,
) -> None:
    desk = await desk_at(site)
    await desk.keep("busy", {}, **begun(desk.agent, "msg_1"))
    await desk.commits({"c": "1\n"}, "one")
    # A daemon that comes up in the middle begins no turn anew.
    await desk.keep("busy", {}, **begun(desk.agent, "msg_1"))
    brought = await desk.place.brought(desk.work.since)
    assert [each.subject for each in brought.commits] == ["one"]
    assert [each.path for each in brought.files_changed] == ["c"]
    await desk.keep("busy", {}, **begun(desk.agent, "msg_2"))
    assert (await desk.place.brought(desk.work.since)).commits == []
    lost = await desk.place.after_turn(None, "msg_3", success=False)
    assert lost.error is not None
    assert (lost.error.code, lost.commits) == ("machine-lost", [])

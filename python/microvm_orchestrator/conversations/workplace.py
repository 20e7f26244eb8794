"""The repository that an agent works on: laid out in its machine once, its commits brought home.

What it commits comes the way that commits of runs come, through the same quarantine and into the
same branches, after each turn and when somebody asks. How far that has come is written in the
agent's record before anything follows from it, so a daemon that comes up again goes on there. What
it has not committed stays in its machine, and is kept beside its commits when it ends. Above is the
life of an agent; below, the steps of runs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import anyio

from microvm_orchestrator import errors
from microvm_orchestrator.conversations.home import acting
from microvm_orchestrator.git import names
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.lifecycle import check, guest, place
from microvm_orchestrator.lifecycle.source import base_ref, described, oid_of
from microvm_orchestrator.model.agent_work import AgentWork, Assignment, Brought
from microvm_orchestrator.model.run import Merge, MergeOutcome, MergeState, Rest, RunSpec
from microvm_orchestrator.model.task import TaskError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pydantic import JsonValue

    from microvm_orchestrator.conversations.ground import AgentGround
    from microvm_orchestrator.lifecycle.live import Ground
    from microvm_orchestrator.lifecycle.source import Source, Sources
    from microvm_orchestrator.machine.base import Machine as RunningMachine
    from microvm_orchestrator.machine.shell import Shell
    from microvm_orchestrator.model.agent import Agent, Home
    from microvm_orchestrator.model.records import Actor
    from microvm_orchestrator.model.repo import Repo
    from microvm_orchestrator.model.run import CheckOutcome
    from microvm_orchestrator.repos import Repos

_REASON = 1000
# Of an id, as much as tells two agents of one name apart.
_ID_CHARS = 8


class Keeper(Protocol):
    """Who has the record of an agent."""

    @property
    def agent(self) -> Agent: ...

    async def keep(self, what: str, told: Mapping[str, JsonValue], **known: object) -> None:
        """Write down what has become known of its work."""
        ...


def ref_of(agent_id: str) -> str:
    """Where our mirror keeps what an agent has committed."""
    return f"refs/agents/{agent_id}"


async def assigned(asked: Assignment, ground: AgentGround, by: Actor) -> tuple[Repo, AgentWork]:
    """Say where an agent is to work. Raises: NotFound, InvalidInput."""
    repo = await ground.repos.get(asked.repo or "", by)
    for name in (asked.base, asked.into, asked.branch):
        if name is not None:
            names.check(name)
    return repo, AgentWork(asked=asked, repo=repo.alias, repo_id=repo.repo_id)


def home_for(home: Home, repo: Repo) -> Home:
    """Give an agent what the repo's runs have where nothing else was said."""
    usual = repo.defaults
    return home.model_copy(
        update={
            "image": home.image or usual.image,
            "memory_mib": home.memory_mib or usual.memory_mib,
            "vcpus": home.vcpus or usual.vcpus,
            "egress": [*usual.egress, *(rule for rule in home.egress if rule not in usual.egress)],
        }
    )


def as_of_copy(work: AgentWork | None) -> AgentWork | None:
    """Tell where a copy of an agent works: on what that has, and on a branch of its own."""
    if work is None:
        return None
    update: dict[str, object] = {
        "asked": work.asked.model_copy(update={"branch": None}),
        "branch": None,
        "on_branch": None,
        "left": None,
        "outcome": MergeOutcome(),
        "message_id": None,
        "since": None,
        "check_machine_id": None,
    }
    return work.model_copy(update=update)


def begun(agent: Agent, message_id: str) -> dict[str, object]:
    """Tell what is known of an agent's work when a turn begins, or is gone on with."""
    work = agent.work
    if work is None:
        return {}
    known: dict[str, object] = {"unsure": True, "left": None}
    if work.message_id != message_id:
        known |= {"message_id": message_id, "since": work.head or work.base}
    return known


class Workplace:
    """Where one agent works."""

    def __init__(self, keeper: Keeper, repos: Repos, runs: Ground) -> None:
        """`runs` is what the commits of runs go by, with the folder of agents."""
        self._keeper = keeper
        self._repos = repos
        self._runs = runs
        # One at a time brings something home.
        self._bringing = anyio.Lock()
        # As it was at the last look.
        self._uncommitted = self.work.uncommitted

    # As the way of commits knows it

    @property
    def work(self) -> AgentWork:
        """Raises: StateForbids."""
        work = self._keeper.agent.work
        if work is None:
            raise errors.StateForbids(f"agent {self._keeper.agent.name} works on no repository")
        return work

    @property
    def id(self) -> str:
        return self._keeper.agent.agent_id

    @property
    def spec(self) -> RunSpec:
        agent, work = self._keeper.agent, self.work
        return RunSpec(
            kind="agent",
            repo=work.repo,
            base=work.asked.base,
            into=work.asked.into,
            image=agent.home.image,
            memory_mib=agent.home.memory_mib,
            vcpus=agent.home.vcpus,
            egress=agent.home.egress,
            merge=work.asked.merge,
            check=work.asked.check,
        )

    @property
    def by(self) -> Actor:
        return acting(self._keeper.agent)

    @property
    def called(self) -> str:
        return f"agent {self._keeper.agent.name}"

    @property
    def title(self) -> str:
        return f"Work of agent {self._keeper.agent.name}"

    @property
    def branch(self) -> str:
        return self.work.branch or f"agents/{self.id}"

    @property
    def variables(self) -> Mapping[str, str]:
        return {"MICROVM_AGENT_ID": self.id}

    async def learn(
        self, what: str, told: Mapping[str, JsonValue] | None = None, /, **known: object
    ) -> None:
        """Write down how far its commits have come on their way."""
        outcome = known.pop("merge", None)
        more: dict[str, JsonValue] = dict(told or {})
        if isinstance(outcome, MergeOutcome):
            known |= self._reached(outcome)
            more |= outcome.model_dump(mode="json", include={"into", "commit", "commits"})
        await self._keeper.keep(what, more, **known)

    def _reached(self, outcome: MergeOutcome) -> dict[str, object]:
        merged = outcome.state is MergeState.MERGED
        if merged and outcome.into == self.branch:
            return {"on_branch": outcome.commit}
        return {"outcome": outcome, **({"merged": self.work.head} if merged else {})}

    # In its machine

    async def lay_out(self, machine: RunningMachine) -> None:
        """Put the repository into a machine in which nothing has been done yet.

        A copy has it, and gets a branch of its own. Raises: NotFound, RepoRefused, MachineFailed.
        """
        agent = self._keeper.agent
        shell = await machine.reached()
        source = await self.settle()
        if agent.snapshot_id is not None:
            await guest.begin_branch(shell, self.branch)
        else:
            await self._sources.send(source, machine, self._folder, self.branch)

    async def settle(self) -> Source:
        """Find where it starts, and how its branch is called, once and for all.

        Raises: NotFound, RepoRefused.
        """
        work, asked = self.work, self.work.asked
        if work.branch is not None:
            return await self._source(work.base)
        repo = await self._repos.get(work.repo_id, self.by)
        mirror = await self._repos.fresh(repo)
        branch = asked.branch or self._usual_branch()
        there = await mirror.find(f"refs/upstream/heads/{branch}")
        if asked.branch is None and there is not None:
            # Of one who had that name before.
            branch = f"{branch}-{self.id[-_ID_CHARS:].lower()}"
        if work.into is not None:
            # Of a copy: it starts from what the other one has.
            source = await self._source(work.head or work.base)
        else:
            source = await self._sources.find(self.spec, work.repo_id, self.by, self.id)
            if asked.branch is not None and asked.base is None and there is not None:
                source = replace(source, base=there)
        if source.base is not None:
            await self._pin(source, source.base)
        base = work.base or source.base
        told: dict[str, JsonValue] = {"branch": branch, "base": base}
        await self._keeper.keep("based", told, base=base, into=source.into, branch=branch)
        return replace(source, base=oid_of(base))

    def _usual_branch(self) -> str:
        name = f"agents/{self._keeper.agent.name}"
        return f"agents/{self.id}" if names.find_fault(name) else name

    async def _source(self, base: str | None) -> Source:
        work = self.work
        return await self._sources.known(work.repo_id, self.by, base, work.into or "")

    @property
    def _sources(self) -> Sources:
        return self._runs.sources

    @property
    def _folder(self) -> Path:
        return self._runs.of(self)

    # The way home

    @property
    def is_all_here(self) -> bool:
        """Whether nothing can be in its machine that is not known here."""
        work = self.work
        return not work.unsure and not work.uncommitted

    async def look(self, machine: RunningMachine) -> None:
        """Take in what it has committed by now, also in the middle of a turn.

        Raises: BundleRefused, TooLarge, MachineFailed, NotFound when the repo was removed.
        """
        async with self._bringing:
            await self._take(await machine.reached())

    async def after_turn(
        self, machine: RunningMachine | None, message_id: str, *, success: bool
    ) -> Brought:
        """Bring home what it did in a turn; what keeps that from coming is told."""
        # One that was never begun has brought nothing.
        since = self.work.since if self.work.message_id == message_id else self.work.head
        try:
            if machine is None or machine.state.ended:
                raise errors.MachineLost("its machine has ended, and is looked at when it runs")
            async with self._bringing:
                await self._take(await machine.reached())
                if self.work.outcome.state is MergeState.PENDING:
                    await self.land(merging=success)
        except errors.OrchestratorError as error:
            return await self.brought(since, TaskError.of(error))
        return await self.brought(since)

    async def collect(self, machine: RunningMachine | None, policy: Merge | None) -> None:
        """Bring home what it did, and merge what was not merged; None: all that it did is here.

        Raises: as `look`.
        """
        async with self._bringing:
            if machine is not None:
                await self._take(await machine.reached())
            await self.land(policy)

    async def keep_rest(self, machine: RunningMachine | None) -> None:
        """Keep what it has not committed as a commit that its own branch alone will have.

        Raises: as `look`.
        """
        source = await self._source(self.work.head or self.work.base)
        usual = "drop" if source.repo.defaults.rest is Rest.DROP else "commit"
        if machine is None or (self.work.asked.rest or usual) == "drop":
            return
        async with self._bringing:
            message = f"Left uncommitted by agent {self._keeper.agent.name}"
            shell = await machine.reached()
            taken = await self._sources.take(
                source, shell, self._folder, ref_of(self.id), "beside", message
            )
            if taken.rest == "beside" and taken.tip is not None:
                await self._keeper.keep("left", {"commit": taken.tip}, left=taken.tip)

    async def close(self) -> None:
        """Have its own branch end with what it left uncommitted, now that it does no more.

        Where that cannot be, our mirror keeps it.
        """
        left = self.work.left
        with suppress(errors.OrchestratorError, OSError):
            await self.put_check_away()
            if left is not None:
                await self._put_left(Oid(left))

    async def _put_left(self, left: Oid) -> None:
        async with self._bringing:
            source = await self._source(self.work.base)
            if self._policy(source, None) is not Merge.MANUAL:
                await self._put(source, left, Merge.BRANCH, self._kept(source))

    def seen(self) -> dict[str, object]:
        """Tell what is to be written down after the last look, when no turn is under way."""
        return {"unsure": False, "uncommitted": self._uncommitted}

    async def brought(self, since: str | None, error: TaskError | None = None) -> Brought:
        """Tell what has come since it stood somewhere else."""
        work = self.work
        told: dict[str, object] = {}
        if work.head is not None and work.head != since:
            try:
                source = await self._source(since)
                told = await described(source.mirror, source.base, Oid(work.head))
            except errors.OrchestratorError as why:
                error = error or TaskError.of(why)
        plain = Brought(
            head=work.head, merge=work.outcome, uncommitted=self._uncommitted, error=error
        )
        return plain.model_copy(update=told)

    async def _take(self, shell: Shell) -> None:
        work = self.work
        source = await self._source(work.head or work.base)
        left = await self._sources.take(source, shell, self._folder, ref_of(self.id), Rest.DROP, "")
        self._uncommitted = left.rest != "none"
        if left.tip is not None:
            outcome = self._kept(source)
            await self._keeper.keep("collected", {"head": left.tip}, head=left.tip, outcome=outcome)

    def _kept(self, source: Source) -> MergeOutcome:
        return MergeOutcome(
            state=MergeState.PENDING,
            ref=ref_of(self.id),
            into=source.into,
            check=self.work.outcome.check,
        )

    def _policy(self, source: Source, policy: Merge | None) -> Merge:
        return policy or self.work.asked.merge or source.repo.defaults.merge

    async def land(self, policy: Merge | None = None, *, merging: bool = True) -> None:
        """Put what has come where it belongs; what becomes of it stands in the record.

        To be called by one at a time.
        """
        await self.put_check_away()
        work = self.work
        if work.head is None:
            return
        source = await self._source(work.base)
        policy = self._policy(source, policy)
        head, kept = Oid(work.head), self._kept(source)
        outcome = kept.model_copy(update={"state": MergeState.NONE})
        if policy is Merge.MANUAL:
            outcome = outcome.model_copy(update={"reason": "kept to be merged by hand"})
            await self._note(outcome)
            return
        put = kept
        if work.on_branch != head:
            put = await self._put(source, head, Merge.BRANCH, kept)
        if policy is Merge.BRANCH:
            if put is kept and work.outcome.state is not MergeState.MERGED:
                update = {"state": MergeState.MERGED, "how": "none", "commit": head}
                put = kept.model_copy(update={**update, "into": self.branch})
            await self._note(work.outcome if put is kept else put)
        elif policy is Merge.REVIEW:
            reason = "it waits to be looked at: agent_collect with `merge` merges it"
            await self._note(kept.model_copy(update={"reason": reason}))
        elif not merging:
            await self._note(kept.model_copy(update={"reason": "its turn did not succeed"}))
        elif work.merged != head:
            # What was merged before may be in the branch as other commits.
            since = replace(source, base=oid_of(work.merged or work.base))
            outcome = await self._put(since, head, policy, kept)
            if put.state not in {MergeState.PENDING, MergeState.MERGED}:
                reason = f"{outcome.reason or outcome.state}; on {self.branch}: {put.reason}"
                outcome = outcome.model_copy(update={"reason": reason[:_REASON]})
            await self._note(outcome)
            if outcome.state is MergeState.MERGED:
                await self._keeper.keep("merged", {"head": head}, merged=head)
                await self._pin(source, head)

    async def _note(self, outcome: MergeOutcome) -> None:
        if outcome != self.work.outcome:
            told: dict[str, JsonValue] = {"merge": outcome.state, "reason": outcome.reason}
            await self._keeper.keep("brought", told, outcome=outcome)

    async def _put(
        self, source: Source, tip: Oid, policy: Merge, kept: MergeOutcome
    ) -> MergeOutcome:
        async def passes(commit: Oid) -> CheckOutcome:
            return await check.check(self, self._runs, source, commit)

        checked = passes if check.text_of(self, source) else None
        try:
            outcome = await self._runs.merging.bring(
                self, source, tip, policy, kept, None if policy is Merge.BRANCH else checked
            )
        except errors.Unavailable:
            raise  # the store's word, and no outcome of a merge
        except errors.OrchestratorError as error:
            update = {"state": MergeState.FAILED, "reason": error.message[:_REASON]}
            return kept.model_copy(update=update)
        if policy is Merge.BRANCH and outcome.state is MergeState.MERGED:
            await self._keeper.keep("on_branch", {"commit": tip}, on_branch=tip)
        return outcome

    async def _pin(self, source: Source, oid: Oid) -> None:
        """Have our mirror keep what the next merge goes from, though its agent may drop it."""
        ref = base_ref(self.id)
        await source.mirror.keep(ref, oid, await source.mirror.find(ref))

    async def put_check_away(self) -> None:
        """End the machine of a check that a daemon was killed in."""
        machine_id = self.work.check_machine_id
        if machine_id is not None:
            await place.put_away(self._runs.machines, machine_id)
            await self._keeper.keep("checked", {}, check_machine_id=None)


async def forget_work(agent: Agent, ground: AgentGround) -> None:
    """Let go of what refs of ours hold for an agent, but of nothing that was not merged."""
    if agent.work is None:
        return
    try:
        repo = await ground.repos.get(agent.work.repo_id, acting(agent))
        mirror = await ground.repos.fresh(repo)
    except (errors.NotFound, errors.RepoRefused):
        return
    unmerged = await ground.repos.unmerged(repo)
    for ref in (ref_of(agent.agent_id), base_ref(agent.agent_id)):
        found = await mirror.find(ref)
        if found is not None and ref not in unmerged:
            await mirror.drop(ref, found)

"""The ledger of faults: each is written down before it is applied, verified, and healed for sure.

What a network or a machine is to be like follows from the faults that are open, and from nothing
else: one is applied or healed by saying anew what its places are to be like, together with what
others do to them, and by reading it back. So to heal twice is to heal once, one fault does not undo
another, and whoever starts after a crash makes all places what the records say: a fault whose
injection nobody was told of is taken back, one that was active is active again. Above stands the
service; below, the store and the grounds, which know what can be broken.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Collection
from contextlib import asynccontextmanager

import anyio
from pydantic import JsonValue

from microvm_orchestrator import errors, log
from microvm_orchestrator.faults.grounds import (
    Ground,
    MachineGround,
    NetworkGround,
    Sufferers,
    suffers,
)
from microvm_orchestrator.faults.plans import MOST_WAYS, Plan, harms_told, joined, read, told
from microvm_orchestrator.model.fault import FAULT, Fault, FaultState, Harm
from microvm_orchestrator.model.machine import Machine
from microvm_orchestrator.model.names import new_id
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.model.values import Moment, moment
from microvm_orchestrator.network.base import Abilities, Networks
from microvm_orchestrator.store.base import Store, Tell
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.seen import find_seen

# What cannot be healed now is tried again so often.
_AGAIN_S = 5.0
# How many faults that have ended are kept to be looked at.
_KEPT = 500
_log = log.get(__name__)


class Ledger:
    """All faults of one daemon; one verb at a time."""

    def __init__(self, store: Store, switch: Networks, machines: Sufferers) -> None:
        self._store = store
        self._switch = switch
        self._networks: Ground = NetworkGround(switch)
        self._machines: Ground = MachineGround(machines)
        # Those whose places are known to be what they are; machines are adopted later.
        self._ready: list[Ground] = []
        # Those that have not ended, oldest first.
        self._open: dict[str, Fault] = {}
        # Places that may not be as the open faults say.
        self._unsure: dict[str, Ground] = {}
        # Those that come and go, and do not hold now.
        self._resting: set[str] = set()
        self._turn = anyio.Lock()
        # Set when something is to heal earlier than was known.
        self._sooner = anyio.Event()

    # What is known

    async def abilities(self) -> Abilities:
        """What can be done to ways on this host. Raises: Unavailable."""
        return await self._switch.abilities()

    async def visible(self, by: Actor) -> list[Fault]:
        """The faults that somebody may know of, oldest first; also some that have ended."""
        await self.notice()
        return [fault for fault in await self._all(by) if by.sees_of(fault.owner)]

    async def get(self, fault_id: str, by: Actor) -> Fault:
        """Raises: NotFound."""
        await self.notice()
        fault = await find_seen(self._store, FAULT, fault_id, Fault, by)
        if fault is None:
            raise errors.NotFound(f"no fault {fault_id}", hint="fault_list shows the faults")
        return fault

    # Verbs

    async def check(self, plan: Plan) -> None:
        """See that networks of this host can be so. Raises: FaultNotOffered, Unavailable."""
        await self._switch.check([its for _, its in plan.every_way])

    async def inject(self, plan: Plan, by: Actor, *, fault_id: str | None = None) -> Fault:
        """Break something, and return when it was seen to be broken.

        Raises: NotFound when there is no such network or machine, StateForbids for a machine that
            does not run, FaultNotOffered, Conflict with another fault, and FaultUnverified or
            Unavailable when it came to nothing; then nothing is left of it, or it is healed as soon
            as that is possible.
        """
        networks = plan.networks

        def named(each: Plan) -> str | None:
            return each.network_id if plan.also else None

        async with self._turn:
            fault = Fault(
                fault_id=fault_id or new_id("fault"),
                kind=plan.kind,
                state=FaultState.APPLYING,
                owner=by.name,
                network_id=plan.network_id,
                also_in=[each.network_id for each in plan.also if each.network_id is not None],
                machines=plan.machines,
                ways=[way for each in networks for way in told(each.ways, named(each))],
                joining=[way for each in networks for way in told(each.joining, named(each))],
                only_own=bool(plan.joining) and not by.scope.everything,
                flap=plan.flap,
                harms=harms_told(plan.harms),
                parameters=dict(plan.parameters),
                ttl_s=plan.ttl_s,
                campaign_id=plan.campaign_id,
                created_at=moment(await self._store.now()),
            )
            ground = self._ground(fault)
            # Two that cannot both be are refused before anything is written.
            await ground.check(fault, self._holding())
            fault = await ground.before(fault)
            # From here on it is known, whoever leaves: it comes to hold, or is taken back.
            with anyio.CancelScope(shield=True):
                await self._write(fault, by, expect=0)
                try:
                    await ground.make_so(fault, [*self._holding(), fault])
                    fault = await self._activate(fault, by)
                except BaseException as error:
                    await self._take_back(fault, str(error))
                    raise
        return fault

    async def heal(self, fault_id: str, by: Actor) -> Fault:
        """End a fault, and return when it was seen to be gone; one that has ended stays so.

        Raises: NotFound; FaultUnverified or Unavailable when it is not healed yet: it will be.
        """
        await self.get(fault_id, by)
        async with self._turn:
            if fault_id in self._open:
                await self._heal(self._open[fault_id], by)
        return await self.get(fault_id, by)

    async def renew(self, fault_id: str, ttl_s: float, by: Actor) -> Fault:
        """Let a fault that holds last for so long from now on. Raises: NotFound, StateForbids."""
        await self.get(fault_id, by)
        async with self._turn:
            fault = self._open.get(fault_id)
            if fault is None or fault.state is not FaultState.ACTIVE:
                raise errors.StateForbids(
                    f"fault {fault_id} holds no more", hint="fault_inject breaks it again"
                )
            heals_at = _heals_at(fault, await self._store.now(), ttl_s)
            fault = fault.model_copy(update={"ttl_s": ttl_s, "heals_at": heals_at})
            with anyio.CancelScope(shield=True):
                await self._write(fault, by, audited=True, told="renewed")
            self._sooner.set()
        return fault

    async def join(self, network_id: str, machine: Machine) -> None:
        """Let faults of a network that are about all others hold for one that has joined it.

        What cannot be is left out, and logged: two that cannot both be so.
        """
        if not any(_is_joined(fault, network_id, machine) for fault in self._open.values()):
            return
        async with self._turn:
            for fault in list(self._open.values()):
                if not _is_joined(fault, network_id, machine):
                    continue
                called = machine.name or machine.machine_id
                joining = read(fault.joining, network_id)
                ways = [
                    *fault.ways,
                    *told(
                        joined(joining, machine.machine_id, called),
                        network_id if fault.also_in else None,
                    ),
                ]
                more = fault.model_copy(
                    update={
                        "ways": ways,
                        "machines": sorted({*fault.machines, machine.machine_id}),
                    }
                )
                try:
                    if len(ways) > MOST_WAYS:
                        raise errors.TooLarge(f"a fault changes at most {MOST_WAYS} ways")
                    others = [each for each in self._holding() if each is not fault]
                    await self._networks.check(more, others)
                except errors.OrchestratorError as error:
                    _log.error("fault_not_joined", fault=fault.fault_id, why=error.message)
                    continue
                with anyio.CancelScope(shield=True):
                    await self._write(more, SYSTEM, told="joined")
                    self._unsure[network_id] = self._networks
                    await self._assert(network_id, self._networks)
            self._sooner.set()

    async def heal_all(
        self, by: Actor, network_id: str | None = None, machine_id: str | None = None
    ) -> int:
        """End all faults, or those of a network or a machine, and count them.

        One that cannot be healed now keeps none of the others. Raises: as `heal`, at the end.
        """
        wanted = [
            fault.fault_id
            for fault in self._open.values()
            if by.sees_of(fault.owner)
            and network_id in {None, *fault.network_ids}
            and (machine_id is None or machine_id in fault.machines)
        ]
        healed = 0
        async with self._turn:
            while True:
                left: list[str] = []
                failed: errors.OrchestratorError | None = None
                for fault in [self._open[each] for each in wanted if each in self._open]:
                    try:
                        await self._heal(fault, by)
                        healed += 1
                    except errors.OrchestratorError as error:
                        failed = error
                        left.append(fault.fault_id)
                # One may be in the way of another: a guest that stands still is told nothing.
                if failed is None or left == wanted:
                    break
                wanted = left
        if failed is not None:
            raise failed
        return healed

    def suffers(self, machine_id: str) -> Harm:
        """Tell what a machine is to suffer that begins to run now."""
        return suffers(self._holding(), machine_id)

    def doubt(self, machine_id: str) -> None:
        """Look soon whether a machine is as the open faults say."""
        self._unsure[machine_id] = self._machines
        self._sooner.set()

    # What happens by itself

    async def reconcile(self) -> None:
        """Make the networks what the records say, before machines are connected to them.

        The networks have to be made already. What cannot be healed now is tried again later.
        """
        async with self._turn:
            faults = await self._all(SYSTEM)
            self._open = {each.fault_id: each for each in faults if not each.state.ended}
            await self._forget_old(faults)
            for fault in list(self._open.values()):
                if fault.state is FaultState.APPLYING:
                    # Nobody was told that it is there.
                    self._blame(fault, "the daemon ended while it was applied")
            found = await self._networks.places()
            for fault in list(self._open.values()):
                gone = fault.network_ids and not set(found) & set(fault.network_ids)
                if gone and fault.state is not FaultState.APPLYING:
                    healing = fault.model_copy(update={"state": FaultState.HEALING})
                    self._blame(healing, self._networks.gone)
            self._unsure = dict.fromkeys(found, self._networks)
            self._resting.clear()
            self._ready = [self._networks]
            await self._heal_due()

    async def settle(self) -> None:
        """Make the machines what the records say, once those that run were adopted."""
        async with self._turn:
            # Nothing befalls one without a record of it; and to look at all of them takes long.
            for fault in self._open.values():
                if fault.kind.of_machines:
                    self._unsure |= dict.fromkeys(fault.machines, self._machines)
            self._ready = [self._networks, self._machines]
            await self._heal_due()

    async def notice(self) -> None:
        """End what went along with its network or its machines, whoever took those away."""
        if not self._open:
            return
        async with self._turn:
            for ground in self._ready:
                found = set(await ground.places())
                for fault in list(self._open.values()):
                    if self._ground(fault) is ground and not found & set(ground.places_of(fault)):
                        await self._heal(self._blame(fault, ground.gone), SYSTEM)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Heal what is due until the block ends; what is active then stays so.

        Machines that run have to be adopted already.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            yield
            group.cancel_scope.cancel()

    async def _watch(self) -> None:
        if self._machines not in self._ready:
            await self.settle()
        while True:
            self._sooner = anyio.Event()
            async with self._turn:
                pause = await self._heal_due()
            with anyio.move_on_after(pause):
                await self._sooner.wait()

    async def _heal_due(self) -> float:
        """Heal what is due, or was to be healed already; return how long to wait for more."""
        turns_s = self._follow(await self._store.now())
        for place, ground in sorted(self._unsure.items()):
            await self._assert(place, ground)
        now = await self._store.now()
        pause = min(turns_s, _AGAIN_S if self._unsure else math.inf)
        for fault in list(self._open.values()):
            left_s = _left_s(fault, now)
            if left_s > 0:
                pause = min(pause, left_s)
                continue
            if self._ground(fault) not in self._ready:
                continue
            try:
                await self._heal(fault, SYSTEM)
            except errors.OrchestratorError as error:
                _log.error("fault_not_healed", fault=fault.fault_id, why=error.message)
                pause = min(pause, _AGAIN_S)
        return pause

    def _follow(self, now: float) -> float:
        """See which of those that come and go hold now; return how long until that changes.

        It follows from the clock and the record alone, so a daemon that starts goes on in phase.
        """
        soonest = math.inf
        for fault in self._open.values():
            if fault.flap is None or fault.state is not FaultState.ACTIVE or not fault.active_at:
                continue
            holds, left_s = fault.flap.at(now - fault.active_at.timestamp())
            if holds is (fault.fault_id in self._resting):
                self._resting ^= {fault.fault_id}
                ground = self._ground(fault)
                self._unsure |= dict.fromkeys(ground.places_of(fault), ground)
            soonest = min(soonest, left_s)
        return soonest

    async def _assert(self, place: str, ground: Ground) -> None:
        """Let a place be as the open faults say, and as nothing else does."""
        try:
            if place in await ground.places():
                ending = [
                    each
                    for each in self._open.values()
                    if each.state.ending or each.fault_id in self._resting
                ]
                await ground.make_all_so(place, self._holding(), ending)
        except errors.OrchestratorError as error:
            _log.error("faults_not_asserted", place=place, why=error.message)
        else:
            self._unsure.pop(place, None)

    # Steps, within a turn

    def _ground(self, fault: Fault) -> Ground:
        return self._machines if fault.kind.of_machines else self._networks

    def _holding(self) -> list[Fault]:
        return [
            fault
            for fault in self._open.values()
            if fault.state is FaultState.ACTIVE and fault.fault_id not in self._resting
        ]

    async def _activate(self, fault: Fault, by: Actor) -> Fault:
        now = await self._store.now()
        fault = fault.model_copy(update={"state": FaultState.ACTIVE, "active_at": moment(now)})
        fault = fault.model_copy(update={"heals_at": _heals_at(fault, now, fault.ttl_s)})
        await self._write(fault, by, audited=True)
        self._sooner.set()
        return fault

    async def _take_back(self, fault: Fault, reason: str) -> None:
        """End a fault that did not come to hold; the first error is what the caller hears."""
        try:
            await self._heal(self._blame(fault, reason), SYSTEM)
        except errors.OrchestratorError as error:
            _log.error("fault_not_taken_back", fault=fault.fault_id, why=error.message)
            self._sooner.set()

    def _blame(self, fault: Fault, reason: str) -> Fault:
        self._open[fault.fault_id] = fault = fault.model_copy(update={"reason": reason})
        return fault

    async def _heal(self, fault: Fault, by: Actor) -> None:
        """End a fault that has not ended."""
        with anyio.CancelScope(shield=True):
            await self._end(fault, by)

    async def _end(self, fault: Fault, by: Actor) -> None:
        ended = FaultState.HEALED
        if fault.state is FaultState.APPLYING:
            ended = FaultState.FAILED
        elif fault.state is FaultState.ACTIVE:
            fault = fault.model_copy(update={"state": FaultState.HEALING})
            await self._write(fault, by)
        rest = [each for each in self._holding() if each.fault_id != fault.fault_id]
        await self._ground(fault).make_so(fault, rest)
        now = moment(await self._store.now())
        fault = fault.model_copy(update={"state": ended, "ended_at": now})
        await self._write(fault, by, audited=True)

    # The records

    async def _all(self, by: Actor) -> list[Fault]:
        return [Fault.model_validate(r.body) for r in await every_record(self._store, FAULT, by)]

    async def _write(
        self,
        fault: Fault,
        by: Actor,
        *,
        expect: int | None = None,
        audited: bool = False,
        told: str | None = None,
    ) -> None:
        # Most of what a way can meet it does not.
        kept = fault.model_dump(mode="json", exclude_defaults=True)
        record = Record(FAULT, fault.fault_id, kept)
        body: dict[str, JsonValue] = {
            "kind": fault.kind,
            "network_id": fault.network_id,
            "also_in": list(fault.also_in),
            "machines": list(fault.machines),
        }
        if fault.reason:
            body["reason"] = fault.reason
        tell = Tell(told or fault.state, body, audited=audited and by is not SYSTEM)
        await self._store.save(record, by, expect=expect, tell=tell)
        if fault.state.ended:
            self._open.pop(fault.fault_id, None)
            self._resting.discard(fault.fault_id)
        else:
            self._open[fault.fault_id] = fault

    async def _forget_old(self, faults: Collection[Fault]) -> None:
        ended = [each for each in faults if each.state.ended]
        for fault in ended[:-_KEPT]:
            await self._store.erase(FAULT, fault.fault_id, SYSTEM)


def _is_joined(fault: Fault, network_id: str, machine: Machine) -> bool:
    """Whether a fault is still to hold for a machine that has joined a network."""
    known = {each for ends in read(fault.ways, network_id) for each in ends}
    return (
        network_id in fault.network_ids
        and bool(read(fault.joining, network_id))
        and machine.machine_id not in known
        and (not fault.only_own or machine.owner == fault.owner)
        and fault.state is FaultState.ACTIVE
    )


def _heals_at(fault: Fault, now: float, ttl_s: float | None) -> Moment | None:
    """Tell when a fault heals by itself that lasts so long from now on."""
    times = [now + ttl_s] if ttl_s is not None else []
    if fault.flap is not None and fault.flap.lasts_s is not None and fault.active_at is not None:
        times.append(fault.active_at.timestamp() + fault.flap.lasts_s)
    return moment(min(times)) if times else None


def _left_s(fault: Fault, now: float) -> float:
    """Tell how long a fault lasts; one that is to be healed already lasts no longer."""
    if fault.state is not FaultState.ACTIVE:
        return 0.0
    if fault.heals_at is None:
        return math.inf
    return fault.heals_at.timestamp() - now

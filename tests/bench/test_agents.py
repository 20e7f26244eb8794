"""What an agent costs above its program, in machines of the same image, in one run.

Bare, the program is started by a command in a machine, and asks the scripted model by a forwarded
port: no proxy, no MCP server of ours, nothing that is kept. As an agent, it is spawned, or branched
off, and told something. One whose machine stood ready is set beside one whose machine is booted.
"""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest

import hosted
from bare_qemu import booting
from bench.acts import run_true
from bench.figures import median_ms, tell
from claude_image import KEY, MEMORY_MIB, OPENAI_KEY, VCPUS, Model, program_image, scripted_model
from judges.tools import CLAUDE, CODEX
from machines import LONG_S
from microvm_orchestrator.agents.drivers import find_driver
from microvm_orchestrator.agents.drivers.base import AgentTask, Endpoint, Invocation
from microvm_orchestrator.lifecycle.guest import WORKSPACE
from microvm_orchestrator.model.agent import USUAL_DISK_MIB
from model_api import say
from system.agents import let_in
from system.living import Stage, living

# Minutes without KVM.
pytestmark = pytest.mark.long

PROGRAMS = {"claude": CLAUDE, "codex": CODEX}
KEYS = {"claude": KEY, "codex": OPENAI_KEY}
HELLO = "Say hello."
# Longer than a turn takes on a busy host without KVM.
PATIENCE_S = 600.0
ROUNDS = 3
MESSAGES = 3
AGENTS = 16
# Where the model is asked for in a machine with nothing of ours in between.
PORT = 9000
# For those that are only there.
IDLE_MIB = 256
WRITE = 'mkdir -p "$(dirname "$0")" && cat >"$0"'


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with scripted_model() as model:
        model.scripts[HELLO] = [say("Hello.")]
        yield model


@pytest.fixture(scope="module")
def stage(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    room = {"vcpus": 2 * AGENTS, "count": 2 * AGENTS}
    state = tmp_path_factory.mktemp("agents") / "s"
    with living(state, machines=room, egress=model.settings) as stage:
        let_in(stage)
        stage.ask("credential_set", name="openai", kind="openai-api-key", value=OPENAI_KEY)
        yield stage


@dataclass
class Bench:
    """Agents and bare programs of one kind, and what they took."""

    stage: Stage
    model: Model
    program: str
    took_s: dict[str, list[float]] = field(default_factory=dict[str, list[float]])

    @property
    def home(self) -> dict[str, Any]:
        return {
            "image": self.program,
            "memory_mib": MEMORY_MIB,
            "vcpus": VCPUS,
            "disk_mib": USUAL_DISK_MIB,
        }

    def timed(self, what: str, act: Callable[[], object]) -> None:
        began = time.perf_counter()
        act()
        self.took_s.setdefault(what, []).append(time.perf_counter() - began)

    def spawn(self, name: str, **other: Any) -> None:
        home = {**self.home, **other}
        self.stage.done("agent_spawn", name=name, driver=self.program, **home)

    def tell_agent(self, name: str) -> None:
        told = self.stage.ask("agent_send", agent=name, text=HELLO, wait_s=PATIENCE_S)
        assert told["answer"] == "Hello.", told

    def machine_of(self, agent: str) -> str:
        return str(self.stage.ask("agent_get", agent=agent)["agent"]["machine_id"])

    def open_way(self, machine: str) -> None:
        """Have the model answer at a port of the machine, and lay what its program reads."""
        where = self.model.api.url.removeprefix("http://")
        way = {"guest": f"{PORT}", "host": where, "direction": "to_host"}
        self.stage.ask("forward_add", machine=machine, **way)
        for file in self._invocation().files:
            lay = {"argv": ["/bin/sh", "-c", WRITE, file.path], "stdin": file.content.decode()}
            wrote = self.stage.ask("machine_exec", machine=machine, wait_s=LONG_S, **lay)
            assert wrote["exit_code"] == 0, wrote

    def _invocation(self) -> Invocation:
        task = AgentTask(HELLO, session_id=str(uuid.uuid4()))
        endpoint = Endpoint(f"http://127.0.0.1:{PORT}", KEYS[self.program])
        return find_driver(self.program).prepare(task, endpoint, f"{WORKSPACE}/bare", WORKSPACE)

    def bare_turn(self, machine: str) -> None:
        given = self._invocation()
        asked = {
            "argv": [*given.argv],
            "env": {**given.env},
            "cwd": WORKSPACE,
            "stdin": given.stdin.decode(),
        }
        ran = self.stage.ask("machine_exec", machine=machine, wait_s=PATIENCE_S, **asked)
        assert ran["exit_code"] == 0, ran

    def median_s(self, what: str) -> float:
        return statistics.median(self.took_s[what])

    def show(self, name: str, what: str, floor_s: float, floor: str) -> None:
        tell(
            f"{self.program}: {name}",
            f"p50 {median_ms(self.took_s[what]) / 1000:.2f} s",
            floor=f"p50 {floor_s:.2f} s, {floor}",
            ratio=f"{self.median_s(what) / floor_s:.2f}, {self.median_s(what) - floor_s:+.2f} s",
        )


async def boot_bare(folder: Path, program: str) -> float:
    """Boot a bare QEMU of the program's image until its first command has run; how long it took."""
    image = await program_image(program)
    async with booting(folder, image, memory_mib=MEMORY_MIB) as bare, bare.shell() as shell:
        await run_true(shell)
        return time.monotonic() - bare.began


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_agent_against_its_bare_program(
    stage: Stage, model: Model, tmp_path: Path, program: str
) -> None:
    if not PROGRAMS[program].exists():
        pytest.skip(f"{program} is not installed: make judges")
    anyio.run(program_image, program)
    bench = Bench(stage, model, program)
    boots: list[float] = []
    for number in range(ROUNDS):
        folder = tmp_path / str(number)
        folder.mkdir()
        boots.append(anyio.run(boot_bare, folder, program))
        # The first turn of a program in a machine that has just booted.
        fresh = stage.boot("fresh", **bench.home)["machine_id"]
        stage.said(fresh, f"mkdir -p {WORKSPACE}")
        bench.open_way(fresh)
        bench.timed("fresh", lambda machine=fresh: bench.bare_turn(machine))
        stage.drop(fresh)

        def cold() -> None:
            bench.spawn("ada")
            bench.tell_agent("ada")

        bench.timed("cold", cold)
        bench.open_way(bench.machine_of("ada"))
        for _ in range(MESSAGES):
            bench.timed("bare", lambda: bench.bare_turn(bench.machine_of("ada")))
            bench.timed("message", lambda: bench.tell_agent("ada"))

        def branched() -> None:
            stage.done("agent_branch", agent="ada", name="ada-2")
            bench.tell_agent("ada-2")

        bench.timed("branch", branched)
        for name in ("ada", "ada-2"):
            stage.ask("agent_end", agent=name)
    least_s = statistics.median(boots) + bench.median_s("fresh")
    floor = "bare QEMU, and the first turn of the bare program"
    bench.show("spawn to the first answer, cold", "cold", least_s, floor)
    bench.show("branch to the first answer", "branch", least_s, floor)
    bench.show("message to its answer", "message", bench.median_s("bare"), "the bare program there")


def test_an_agent_whose_machine_stood_ready(
    model: Model, tmp_path_factory: pytest.TempPathFactory
) -> None:
    anyio.run(program_image, "claude")
    with living(
        tmp_path_factory.mktemp("warm") / "s",
        machines={"default_memory_mib": MEMORY_MIB},
        agents={"warm": {"claude": 1}},
        egress=model.settings,
    ) as stage:
        let_in(stage)
        bench = Bench(stage, model, "claude")

        def first_answer(disk_mib: int) -> None:
            bench.spawn("ada", vcpus=1, disk_mib=disk_mib)
            bench.tell_agent("ada")

        for _ in range(ROUNDS):
            # No machine with such a disk stands ready, so it is booted.
            for what, more_mib in (("booted", 1), ("claimed", 0)):
                until_one_is_ready(stage)
                bench.timed(what, lambda more_mib=more_mib: first_answer(USUAL_DISK_MIB + more_mib))
                claimed = stage.ask("machine_get", machine=bench.machine_of("ada"))["runtime_id"]
                assert (claimed is None) is (what == "booted")
                stage.ask("agent_end", agent="ada")
    floor_s = bench.median_s("booted")
    bench.show("spawn to the first answer, warm", "claimed", floor_s, "one that is booted")


def until_one_is_ready(stage: Stage) -> None:
    ends_at = time.monotonic() + PATIENCE_S
    while (pool := stage.ask("pool_list")["items"][0])["ready"] == 0:
        assert time.monotonic() < ends_at, pool
        time.sleep(0.5)  # it is background work, which nobody tells of


def test_the_memory_of_agents_that_are_idle(stage: Stage) -> None:
    anyio.run(program_image, "claude")
    state = stage.daemon.state_dir
    alone = pss_mib(stage.daemon.process.pid)
    home = {"image": "claude", "memory_mib": IDLE_MIB, "vcpus": 1}
    for number in range(AGENTS):
        stage.done("agent_spawn", name=f"idle-{number}", **home)
    running = hosted.processes(state)
    agents = [stage.ask("agent_get", agent=f"idle-{each}")["agent"] for each in range(AGENTS)]
    machines = [pss_mib(running[agent["machine_id"]]) for agent in agents]
    daemon = pss_mib(stage.daemon.process.pid)
    for number in range(AGENTS):
        stage.ask("agent_end", agent=f"idle-{number}")
    tell(
        f"{AGENTS} idle agents: the daemon (PSS)",
        f"{daemon:.0f} MiB",
        floor=f"{alone:.0f} MiB without them",
        ratio=f"{daemon - alone:+.1f} MiB",
    )
    tell(
        f"{AGENTS} idle agents: their machines (PSS)",
        f"{sum(machines):.0f} MiB",
        floor=f"{AGENTS * IDLE_MIB} MiB, what they may have",
        ratio=f"{sum(machines) / AGENTS:.1f} MiB each",
    )


def pss_mib(pid: int) -> float:
    """What a process has of memory, its part of what it shares."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"the kernel says nothing of the memory of {pid}")

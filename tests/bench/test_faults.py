"""What a partition of five machines costs above the bare rules of nft, in one run."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from bench.figures import median_ms, tell, timed
from faulting import ALICE, ground
from microvm_orchestrator.faults.grudges import groups_apart
from microvm_orchestrator.faults.plans import partition
from microvm_orchestrator.network.way_rules import Rule
from networking import STAGES, KernelStage
from nft_ways import nft_text

SPLIT = partition("net", groups_apart([["a", "b"], ["c", "d", "e"]]))


@pytest.mark.parametrize("kind", STAGES)
async def test_a_partition_of_five_machines(kind: str, tmp_path: Path, *, whole: bool) -> None:
    rounds = 50 if whole else 5
    async with ground(kind, tmp_path) as world:
        injected: list[float] = []
        healed: list[float] = []
        for _ in range(rounds):
            began = time.perf_counter()
            fault = await world.ledger.inject(SPLIT, ALICE)
            injected.append(time.perf_counter() - began)
            began = time.perf_counter()
            await world.ledger.heal(fault.fault_id, ALICE)
            healed.append(time.perf_counter() - began)
        raw: list[float] = []
        if isinstance(world.stage, KernelStage):
            rules = {(f"mvt{e.source}", f"mvt{e.target}"): Rule(cut=True) for e in SPLIT.ways}
            raw = bare(world.stage, nft_text("mvbraw", rules), rounds)
    for name, took in (("written down and seen", injected), ("healed, and seen", healed)):
        tell(
            f"partition of five, {name} ({kind})",
            f"{median_ms(took):.1f} ms",
            floor=f"{median_ms(raw):.1f} ms" if raw else "",
            ratio=f"{median_ms(took) / median_ms(raw):.2f}" if raw else "",
            aim="1.3" if raw else "",
        )


def bare(stage: KernelStage, text: str, rounds: int) -> list[float]:
    words = ["nsenter", f"--net={stage.netns}", "nft", "-f", "-"]
    return timed(lambda: subprocess.run(words, input=text.encode(), check=True), rounds)

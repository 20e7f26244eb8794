"""A campaign with the kinds of faults that harm guests: seen in real ones, and all healed."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from machines import LONG_S
from microvm_orchestrator.machine import cgroup
from system.living import living

if TYPE_CHECKING:
    from collections.abc import Generator

    from system.living import Stage

NODES = {"n1": "10.9.0.11", "n2": "10.9.0.12", "n3": "10.9.0.13"}
TOPOLOGY = "cluster_name: trio\nnetwork: {name: lan, subnet: 10.9.0.0/24}\nnodes:\n" + "".join(
    f"  - {{name: {name}, memory_mb: 256, disk_gb: 1, ip: {address}}}\n"
    for name, address in NODES.items()
)
KINDS = [
    *("clock_skew", "disk_error", "disk_full", "disk_slow"),
    *("dns", "flap", "memory", "slow_cpu"),
]
# Each of them at least once, and nothing is written to a disk that has failed to be.
DRAWN: dict[str, Any] = {
    "kinds": KINDS,
    "seed": "5607",
    "duration_s": 30.0,
    "interval_s": 0.5,
    "hold_s": 2.0,
}
# Each holds until the campaign is cancelled.
BY_HAND: list[dict[str, Any]] = [
    {"kind": "clock_skew", "machine": "n1", "skew_s": 3600},
    {"kind": "memory", "machine": "n1", "memory_mib": 32},
    {"kind": "dns", "machine": "n1", "network": "lan"},
    {"kind": "disk_slow", "machine": "n1", "disk_bytes_s": 1 << 20},
    {"kind": "disk_error", "machine": "n2", "fails": "reads"},
    {"kind": "disk_full", "machine": "n3", "path": "/root"},
    {"kind": "flap", "machine": "n3", "network": "lan", "down_s": 2, "up_s": 2},
    {"kind": "slow_cpu", "machine": "n2", "cpu_share": 0.5},
]
READ = "dd if=/dev/vdb of=/dev/null bs=64k count={count} iflag=direct 2>&1"
WRITE = "dd if=/dev/zero of=/var/more bs=64k count=32"
AVAILABLE = "sed -n 's/^MemAvailable: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo"
HOLDS = "tail -n 1 /run/microvm-fault-memory"
# Answers whatever comes to a port, by UDP.
ANSWERS = """
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.bind(("", int(sys.argv[1])))
while True:
    said, who = heard.recvfrom(100)
    heard.sendto(said, who)
"""
# Asks until there was an answer, or none, as it is told; ends by itself with what there was.
ASKS = """
import socket, sys, time
host, port, *wanted = sys.argv[1:]
seen, until = set(), time.monotonic() + 60
while time.monotonic() < until:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1)
        asking.sendto(b"ask", (host, int(port)))
        try:
            asking.recv(100)
            seen.add("answered")
        except TimeoutError:
            seen.add("unheard")
    if seen >= set(wanted):
        break
print(*sorted(seen))
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stage]:
    with living(tmp_path_factory.mktemp("kinds") / "s") as stage:
        stage.ask("cluster_define", topology=TOPOLOGY)
        stage.done("cluster_start", cluster="trio")
        for name in ("n2", "n3"):
            for port in ("53", "5353"):
                argv = ["python3", "-c", ANSWERS, port]
                stage.ask("machine_exec", machine=f"trio.{name}", argv=argv, wait_s=0)
        yield stage
        stage.done("cluster_destroy", cluster="trio", delete_disks=True)


def heard(stage: Stage, port: int, *wanted: str, to: str = "n2") -> list[str]:
    """Ask a node from the first one until this was seen; what was."""
    argv = ["python3", "-c", ASKS, NODES[to], str(port), *wanted]
    ran = stage.ask("machine_exec", machine="trio.n1", argv=argv, wait_s=LONG_S)
    assert ran["exit_code"] == 0, ran
    return str(ran["stdout"]).split()


def ran(stage: Stage, node: str, script: str) -> tuple[bool, str]:
    said = stage.ask("machine_exec", machine=f"trio.{node}", script=script, wait_s=LONG_S)
    return said["exit_code"] == 0, said["stdout"] + said["stderr"]


def skew_s(stage: Stage) -> float:
    before = time.time()
    return int(stage.said("trio.n1", "date +%s")) - (before + time.time()) / 2


def see_all_well(stage: Stage) -> None:
    """See that nothing befalls anybody, as guests and records tell it."""
    assert stage.ask("fault_list", cluster="trio")["items"] == []
    for node in NODES:
        assert ran(stage, node, READ.format(count=1))[0]
        assert ran(stage, node, f"{WRITE} && rm /var/more")[0]
        assert stage.said(f"trio.{node}", "ls /run | grep -c microvm-fault || true") == "0\n"
    assert heard(stage, 53, "answered") == ["answered"]
    assert heard(stage, 5353, "answered", to="n3") == ["answered"]
    assert abs(skew_s(stage)) < 5


@pytest.mark.long
def test_what_a_campaign_does_to_guests_is_seen_in_them_while_it_lasts(stage: Stage) -> None:
    see_all_well(stage)
    before = int(stage.said("trio.n1", AVAILABLE))
    schedule = [
        {"at_s": number * 0.1, "for_s": 900, "fault": fault} for number, fault in enumerate(BY_HAND)
    ]
    campaign = stage.ask("fault_campaign", cluster="trio", schedule=schedule, wait_s=0)
    campaign_id = campaign["target"]
    can = "cpu" in cgroup.describe()
    stage.hear(f"campaign.slow_cpu_{'done' if can else 'failed'}", campaign_id)
    told = stage.ask("fault_campaign_get", campaign_id=campaign_id)
    failed = [each for each in told["history"] if each["type"] == "fail"]
    # What this host cannot do is told, and what was to follow follows.
    assert [each["f"] for each in failed] == ([] if can else ["slow_cpu"])
    assert all("control group" in each["error"] for each in failed)
    assert told["injected"] == len(BY_HAND) - len(failed)

    assert abs(skew_s(stage) - 3600) < 5
    assert stage.said("trio.n1", HOLDS) == "32\n"
    assert before - int(stage.said("trio.n1", AVAILABLE)) > 24 << 10
    assert heard(stage, 53, "unheard") == ["unheard"]
    assert heard(stage, 5353, "answered") == ["answered"]
    begun = time.monotonic()
    assert ran(stage, "n1", READ.format(count=64))[0]
    # A bucket of a tenth of a second is full at first.
    assert time.monotonic() - begun > 3
    reads, why = ran(stage, "n2", READ.format(count=1))
    assert (reads, "Input/output error" in why) == (False, True)
    takes, why = ran(stage, "n3", WRITE)
    assert (takes, "No space left on device" in why) == (False, True)
    stage.said("trio.n3", "rm -f /var/more")
    both = ["answered", "unheard"]
    assert heard(stage, 5353, *both, to="n3") == both

    stage.ask("fault_campaign_cancel", campaign_id=campaign_id)
    stage.hear("campaign.cancelled", campaign_id)
    see_all_well(stage)


@pytest.mark.long
def test_a_campaign_draws_each_of_these_kinds_and_heals_them_all(stage: Stage) -> None:
    dry = stage.ask("fault_campaign", cluster="trio", **DRAWN, dry_run=True, wait_s=LONG_S)
    told = stage.done("fault_campaign", cluster="trio", **DRAWN)
    assert told["state"] == "succeeded"
    assert told["schedule"] == dry["result"]["schedule"]
    kinds = [each["fault"]["kind"] for each in told["schedule"]]
    assert sorted(set(kinds)) == KINDS
    done = [each["f"] for each in told["history"] if each["type"] == "ok" and each["f"] != "heal"]
    able = set(kinds) - (set() if "cpu" in cgroup.describe() else {"slow_cpu"})
    assert done == [kind for kind in kinds if kind in able], json.dumps(told["history"])
    see_all_well(stage)

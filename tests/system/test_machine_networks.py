"""Machines of a daemon that talk to each other, over each kind of networks and over restarts."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import hosted
from machines import LONG_S
from networking import network_settings
from system.living import Stage, furnish, living, staged
from system.test_network import ASK, SERVE

KINDS = (pytest.param("userspace", marks=pytest.mark.long), "kernel")


def addresses(machine: dict[str, Any]) -> list[str]:
    [place] = machine["networks"]
    return [text.partition("/")[0] for text in place["addresses"]]


def serve(stage: Stage, machine: str) -> None:
    ran = stage.ask("machine_exec", machine=machine, argv=["python3", "-c", SERVE], wait_s=LONG_S)
    assert ran["exit_code"] == 0, ran


def talk(stage: Stage, machine: str, to: dict[str, Any]) -> None:
    """Let a machine send to another over each of its addresses, and compare what arrived."""
    for address in addresses(to):
        words = ["python3", "-c", ASK.format(address=address)]
        ran = stage.ask("machine_exec", machine=machine, argv=words, wait_s=LONG_S)
        assert (ran["exit_code"], ran["stdout"]) == (0, "the same\n"), (address, ran)


@pytest.mark.parametrize("kind", KINDS)
def test_machines_of_a_network_talk_and_go_on_after_the_daemon_was_killed(
    tmp_path: Path, kind: str
) -> None:
    state = tmp_path / "s"
    furnish(state)
    with ExitStack() as life:
        settings = life.enter_context(network_settings(kind))
        with staged(state, networks=settings) as stage:
            stage.ask("network_create", name="lan", prefixes=["10.9.0.0/24", "fd09::/64"])
            one = stage.boot("one", networks=["lan=10.9.0.8"])
            two = stage.boot("two", networks=["lan=10.9.0.9"])
            assert addresses(two)[0] == "10.9.0.9"
            serve(stage, "two")
            talk(stage, "one", two)
            assert stage.ask("machine_usage", machine="two")["received_bytes"] > 2 << 20
            stage.daemon.kill()
        with staged(state, networks=settings) as stage:
            talk(stage, "one", two)
            [three] = stage.branch("two", "three")
            assert set(addresses(three)).isdisjoint(addresses(one) + addresses(two))
            talk(stage, "one", three)
            talk(stage, "three", two)
            assert stage.refusal("network_remove", network="lan") == "state-forbids"
            stage.clear()
            stage.ask("network_remove", network="lan")
            assert stage.ask("network_list")["items"] == []
        assert hosted.left(state) == []


@pytest.mark.long
def test_a_machine_reaches_nobody_but_the_machines_of_its_networks(tmp_path: Path) -> None:
    with living(tmp_path / "s") as stage:
        for name in ("here", "there"):
            stage.ask("network_create", name=name, prefixes=["10.9.0.0/24"])
        stage.boot("one", networks=["here=10.9.0.5"])
        stage.boot("two", networks=["there=10.9.0.6"])
        stage.boot("bare")
        seen = stage.said("one", "ping -c 1 -W 2 10.9.0.6 >/dev/null && echo reached || echo not")
        assert seen == "not\n"
        assert "eth0" in stage.said("one", "ls /sys/class/net")
        assert "eth0" not in stage.said("bare", "ls /sys/class/net")
        assert stage.ask("machine_usage", machine="bare")["received_bytes"] is None
        stage.clear()
        for name in ("here", "there"):
            stage.ask("network_remove", network=name)


@pytest.mark.long
def test_a_machine_is_held_to_the_limits_it_was_defined_with(tmp_path: Path) -> None:
    with living(tmp_path / "s") as stage:
        held = stage.boot("held", disk_mib=64, max_pids=40, max_disk_bytes_s=4 << 20)
        # The agent looks from a second after its start; what was before is not told.
        bomb = "sleep 2; while :; do sleep 1000 & done"
        ran = stage.ask("machine_exec", machine="held", script=bomb, wait_s=LONG_S)
        assert "fork" in ran["stderr"]
        assert stage.hear("machine.pids_full", held["machine_id"])["refused"] > 0
        stage.ask("machine_exec", machine="held", argv=["killall", "sleep"], wait_s=LONG_S)
        stage.said("held", "dd if=/dev/zero of=big bs=1M count=16 oflag=direct")
        read = ["dd", "if=big", "of=/dev/null", "bs=1M", "iflag=direct"]
        ran = stage.ask("machine_exec", machine="held", argv=read, wait_s=LONG_S)
        began, ended = (datetime.fromisoformat(ran[name]) for name in ("started_at", "ended_at"))
        # 16 MiB, of which the first may go at once.
        assert ended - began > timedelta(seconds=2), ran

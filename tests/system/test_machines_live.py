"""Every verb of machines through a daemon that runs: the state, the event and what the host has.

Most machines here are branches of one that was booted and saved, which takes a fraction of a boot.
What goes wrong with machines is in `test_machines_in_trouble.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest

import hosted
from machines import LONG_S
from system.living import Stage, living, template_in

# What each of them needs a machine to be.
NEED_A_GUEST = ("machine_usage", "machine_stop", "machine_kill", "snapshot_create", "machine_pause")
BRANCHES = 4
# Few, and enough to boot with.
OPERATIONS_S = 100
HAS = """
nproc; sed -n 's/MemTotal:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/meminfo
df -k / | tail -n 1 | tr -s ' ' | cut -d' ' -f2; cat /sys/fs/cgroup/commands/pids.max
"""
WRITE_MANY = f"""
import os
file = os.open("/var/many", os.O_WRONLY | os.O_CREAT)
for _ in range({4 * OPERATIONS_S}):
    os.pwrite(file, b"x", 0)
    os.fdatasync(file)
"""
MANY = 8
# Counts in a file that is always whole.
COUNT = """
import itertools, os, time
for n in itertools.count(1):
    with open("/tmp/next", "w") as file:
        print(n, file=file)
    os.replace("/tmp/next", "/tmp/n")
    time.sleep(0.1)
"""
SERVER = """
import socket
with socket.create_server(("127.0.0.1", 8000)) as server:
    print("listens", flush=True)
    client, _ = server.accept()
    with client:
        client.sendall(client.recv(100).upper())
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("live") / "state") as stage:
        yield stage


@pytest.fixture(scope="module")
def template(stage: Stage) -> str:
    return template_in(stage)


@pytest.fixture
def box(stage: Stage, template: str) -> Iterator[str]:
    """Give the id of a machine `box` that runs."""
    [machine] = stage.branch(template, "box")
    yield machine["machine_id"]
    stage.drop(machine["machine_id"])


def test_a_machine_is_defined_started_paused_stopped_and_deleted_and_each_step_is_told(
    stage: Stage,
) -> None:
    defined = stage.ask("machine_define", name="whole", memory_mib=160)
    machine = defined["machine_id"]
    assert (defined["state"], defined["started_at"]) == ("defined", None)
    for call in NEED_A_GUEST:
        assert stage.refusal(call, machine="whole") == "state-forbids", call
    console = stage.ask("machine_console", machine="whole")
    assert (console["text"], console["ended"]) == ("", True)
    started = stage.done("machine_start", machine="whole")
    assert (started["state"], started["reason"]) == ("running", "")
    assert stage.refusal("machine_start", machine="whole", wait_s=LONG_S) == "state-forbids"
    assert stage.refusal("machine_delete", machine="whole") == "state-forbids"
    assert stage.refusal("machine_resume", machine="whole") == "state-forbids"
    assert stage.ask("machine_pause", machine="whole")["state"] == "paused"
    assert stage.refusal("machine_pause", machine="whole") == "state-forbids"
    assert stage.refusal("machine_exec", machine="whole", argv=["true"]) == "state-forbids"
    assert stage.ask("machine_usage", machine="whole")["guest"] is None
    running = stage.ask("machine_list", state=["running"])["items"]
    assert machine not in [each["machine_id"] for each in running]
    assert stage.ask("machine_resume", machine="whole")["state"] == "running"
    assert stage.said("whole", "hostname") == "whole\n"
    stopped = stage.done("machine_stop", machine="whole")
    assert (stopped["state"], stopped["reason"]) == ("stopped", "it was stopped, as asked")
    listed = stage.ask("machine_list", state=["stopped"])["items"]
    assert [each["machine_id"] for each in listed] == [machine]
    for call in NEED_A_GUEST:
        assert stage.refusal(call, machine="whole") == "state-forbids", call
    assert machine not in hosted.processes(stage.daemon.state_dir)
    stage.ask("machine_delete", machine="whole")
    assert stage.refusal("machine_get", machine=machine) == "not-found"
    steps = ("defined", "booting", "running", "paused", "running", "stopped", "deleted")
    assert stage.told(machine) == [f"machine.{step}" for step in steps]
    assert not (stage.daemon.state_dir / "machines" / machine).exists()


def test_how_a_machine_was_ended_is_its_reason(stage: Stage, template: str) -> None:
    forced, killed = stage.branch(template, "end", count=2)
    stopped = stage.done("machine_stop", machine=forced["machine_id"], grace_s=0.0)
    by_force = "it had not powered off within 0 s and was ended by force"
    assert (stopped["state"], stopped["reason"]) == ("stopped", by_force)
    ended = stage.ask("machine_kill", machine=killed["machine_id"])
    at_once = "it was ended by force, as asked"
    assert (ended["state"], ended["reason"]) == ("stopped", at_once)
    for machine, reason in ((forced, by_force), (killed, at_once)):
        told = stage.hear("machine.stopped", machine["machine_id"])
        assert told == {"was": "running", "reason": reason}
        assert stage.refusal("machine_kill", machine=machine["machine_id"]) == "state-forbids"
        stage.drop(machine["machine_id"])


def test_a_console_is_read_from_any_offset_and_followed_until_the_machine_ends(
    stage: Stage, box: str
) -> None:
    end = stage.ask("machine_console", machine=box)["next"]
    with stage.started("machine", "logs", box, "--follow") as follower:
        assert follower.stdout is not None
        stage.said(box, "echo first-line >/dev/ttyS0")
        for line in follower.stdout:
            if line == b"first-line\n":
                break
        read = stage.ask("machine_console", machine=box, offset=end, timeout_s=LONG_S)
        assert (read["offset"], read["ended"]) == (end, False)
        at = end + read["text"].index("first-line") + len("first-")
        within = stage.ask("machine_console", machine=box, offset=at, limit=4)
        assert (within["text"], within["next"]) == ("line", at + 4)
        stage.said(box, "echo last-line >/dev/ttyS0")
        stage.ask("machine_kill", machine=box)
        rest = follower.stdout.read()
        assert b"last-line\n" in rest
        assert follower.wait(LONG_S) == 0
    # It is there after the end too.
    after = stage.ask("machine_console", machine=box, offset=end)
    assert after["ended"]
    assert after["text"].index("first-line") < after["text"].index("last-line")
    assert b"last-line" in stage.cli("machine", "logs", box).stdout


def test_commands_files_and_ports_reach_into_a_machine_and_are_told(
    stage: Stage, box: str, tmp_path: Path
) -> None:
    ran = stage.cli("machine", "exec", box, "--script", "cat; echo err >&2; exit 7", data=b"in")
    assert (ran.returncode, ran.stdout, ran.stderr) == (7, b"in", b"err\n")
    sent, fetched = tmp_path / "sent", tmp_path / "fetched"
    sent.write_bytes(bytes(range(256)) * 1000)
    assert stage.cli("machine", "cp", str(sent), f"{box}:/var/copy").returncode == 0
    assert stage.cli("machine", "cp", f"{box}:/var/copy", str(fetched)).returncode == 0
    assert fetched.read_bytes() == sent.read_bytes()
    stage.ask(
        "machine_exec", machine=box, argv=["python3", "-c", SERVER], exec_id="server", wait_s=0
    )
    said = stage.ask("exec_output", exec_id="server", timeout_s=LONG_S)
    assert said["pieces"][0]["text"] == "listens\n"
    forward = stage.ask("forward_add", machine=box, guest="8000")
    host, _, port = forward["host"].rpartition(":")
    with socket.create_connection((host, int(port)), LONG_S) as client:
        client.sendall(b"through the port")
        assert client.makefile("rb").read() == b"THROUGH THE PORT"
    assert stage.ask("exec_wait", exec_id="server", timeout_s=LONG_S)["exit_code"] == 0
    assert stage.told("server") == ["exec.started", "exec.exited"]
    stage.ask("forward_remove", forward_id=forward["forward_id"])


def test_what_a_machine_costs_is_measured_on_the_host_and_in_the_guest(
    stage: Stage, box: str
) -> None:
    before = stage.ask("machine_usage", machine=box)
    stage.said(box, "head -c 8388608 /dev/urandom >/var/file; sync")
    usage = stage.ask("machine_usage", machine=box)
    assert usage["cpu_s"] > before["cpu_s"]
    assert usage["peak_mib"] >= usage["rss_mib"] > 1
    assert usage["disk_mib"] >= before["disk_mib"] + 7
    assert 0 < usage["guest"]["memory_available_kib"] < usage["guest"]["memory_total_kib"]


def test_a_snapshot_is_made_listed_shown_verified_and_deleted_and_each_is_told(
    stage: Stage, box: str
) -> None:
    saved = stage.done("snapshot_create", machine=box)
    snapshot = saved["snapshot_id"]
    assert (saved["state"], saved["machine_id"]) == ("ready", box)
    assert saved["unique_mib"] > 1
    assert saved["pause_s"] > 0
    assert stage.ask("snapshot_get", snapshot_id=snapshot) == saved
    assert stage.ask("snapshot_list", machine=box)["items"] == [saved]
    assert stage.done("snapshot_verify", snapshot_id=snapshot) == saved
    assert stage.state(box) == ("running", "")
    stage.drop(box)
    # It outlives its machine.
    [machine] = stage.branch(snapshot, "later")
    assert machine["snapshot_id"] == snapshot
    stage.ask("snapshot_delete", snapshot_id=snapshot)
    assert stage.refusal("snapshot_get", snapshot_id=snapshot) == "not-found"
    assert stage.refusal("machine_branch", source=snapshot) == "not-found"
    assert stage.said("later", "hostname") == "later\n"
    steps = ("saving", "saved", "deleting", "deleted")
    assert stage.told(snapshot) == [f"snapshot.{step}" for step in steps]
    stage.drop("later")


def test_four_branches_of_a_running_machine_go_on_from_where_it_was_and_so_does_it(
    stage: Stage, box: str
) -> None:
    count = ["python3", "-c", COUNT]
    stage.ask("machine_exec", machine=box, argv=count, exec_id="counting", wait_s=0)
    stage.said(box, "echo kept >/var/file; until [ -e /tmp/n ]; do sleep 0.1; done")
    branches = stage.branch(box, "try", count=BRANCHES)
    assert [machine["name"] for machine in branches] == ["try-1", "try-2", "try-3", "try-4"]
    who = "cat /var/file; hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1"
    answers = [stage.said(machine["machine_id"], who).splitlines() for machine in branches]
    for number, lines in enumerate(answers, start=1):
        assert lines[:2] == ["kept", f"try-{number}"]
    assert len({tuple(lines[2:3]) for lines in answers}) == BRANCHES
    assert len({tuple(lines[3:]) for lines in answers}) == BRANCHES
    # What ran in the source runs on in all of them.
    for machine in (box, *(each["machine_id"] for each in branches)):
        at = int(stage.said(machine, "cat /tmp/n"))
        stage.said(machine, f"until [ $(cat /tmp/n) -gt {at} ]; do sleep 0.1; done")
    counting = stage.ask("exec_wait", exec_id="counting", timeout_s=0.0)
    assert counting["state"] == "running"
    for machine in branches:
        stage.drop(machine["machine_id"])
        steps = ("defined", "booting", "running", "stopped", "deleted")
        assert stage.told(machine["machine_id"]) == [f"machine.{step}" for step in steps]


def test_a_machine_and_a_branch_of_it_have_what_it_was_defined_with_and_no_more(
    stage: Stage,
) -> None:
    limits = {"max_pids": 40, "max_disk_operations_s": OPERATIONS_S}
    stage.boot("limited", vcpus=2, memory_mib=192, disk_mib=32, **limits)
    stage.branch("limited", "limited-too")
    for name in ("limited", "limited-too"):
        machine = stage.ask("machine_get", machine=name)
        assert {field: machine[field] for field in limits} == limits
        cpus, memory, disk, pids = stage.said(name, HAS).split()
        assert (cpus, pids) == ("2", "40")
        assert int(memory) < 192 * 1024
        assert int(disk) < 32 * 1024
        write = ["python3", "-c", WRITE_MANY]
        ran = stage.ask("machine_exec", machine=name, argv=write, wait_s=LONG_S)
        assert ran["exit_code"] == 0, ran
        began, ended = (datetime.fromisoformat(ran[at]) for at in ("started_at", "ended_at"))
        # Four seconds' worth, of which the first may go at once; a slow host makes it longer.
        assert ended - began > timedelta(seconds=2.5)
        stage.drop(name)


@pytest.mark.long
def test_eight_machines_are_booted_asked_and_stopped_at_once(stage: Stage) -> None:
    names = [f"eight-{number}" for number in range(MANY)]

    def boot(name: str) -> str:
        return str(stage.boot(name, memory_mib=128)["machine_id"])

    def ask(name: str) -> str:
        return stage.said(name, "hostname")

    def stop(name: str) -> tuple[str, str]:
        stopped = stage.done("machine_stop", machine=name, grace_s=LONG_S)
        return stopped["state"], stopped["reason"]

    with ThreadPoolExecutor(MANY) as pool:
        ids = list(pool.map(boot, names))
        slots = stage.ask("slot_list")
        assert sorted(item["name"] for item in slots["items"]) == names
        assert (slots["used"]["count"], slots["waiting"]) == (MANY, 0)
        assert set(ids) == set(hosted.processes(stage.daemon.state_dir))
        assert list(pool.map(ask, names)) == [f"{name}\n" for name in names]
        stopped = list(pool.map(stop, names))
        assert stopped == [("stopped", "it was stopped, as asked")] * MANY
    assert stage.ask("slot_list")["used"] == {"count": 0, "memory_mib": 0, "vcpus": 0}
    assert hosted.processes(stage.daemon.state_dir) == {}
    for name, machine in zip(names, ids, strict=True):
        assert hosted.in_groups(machine) == []
        stage.drop(name)
        steps = ("defined", "booting", "running", "stopped", "deleted")
        assert stage.told(machine) == [f"machine.{step}" for step in steps]


def test_a_branch_of_a_branch_of_a_branch_has_lost_nothing_and_takes_no_more(
    stage: Stage, box: str, whole: bool
) -> None:
    generations = 25 if whole else 4
    machine, sizes, snapshots = box, list[float](), list[str]()
    for number in range(generations):
        stage.said(machine, f"echo {number} | tee /var/lib/{number} >/dev/shm/{number}; sync")
        [branch] = stage.branch(machine, f"generation-{number}")
        snapshots.append(branch["snapshot_id"])
        sizes.append(stage.ask("snapshot_get", snapshot_id=snapshots[-1])["unique_mib"])
        stage.drop(machine)
        machine = branch["machine_id"]
    count = f"for n in $(seq 0 {generations - 1}); do cat /var/lib/$n /dev/shm/$n; done"
    expected = "".join(f"{number}\n" * 2 for number in range(generations))
    assert stage.said(machine, count) == expected
    assert stage.said(machine, "hostname") == f"generation-{generations - 1}\n"
    print(f"unique MiB of {generations} generations: {sizes[0]:.1f} to {max(sizes):.1f}")
    assert min(sizes) > 1
    assert max(sizes) < 1.5 * sizes[0]
    # The first ones may go: each is complete in itself.
    for snapshot in snapshots[:-1]:
        stage.ask("snapshot_delete", snapshot_id=snapshot)
    stage.done("snapshot_verify", snapshot_id=snapshots[-1])
    [last] = stage.branch(snapshots[-1], "last")
    assert stage.said("last", count) == expected
    stage.drop(machine)
    stage.drop(last["machine_id"])
    stage.ask("snapshot_delete", snapshot_id=snapshots[-1])

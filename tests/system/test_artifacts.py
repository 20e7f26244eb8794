"""What runs leave behind, from real guests to the files of whoever asked for it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from system.living import Stage, living
from system.running import alias_of, ended, output, registered, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LEAVE = """\
set -eu
echo dist >>.git/info/exclude
mkdir -p dist/deep
head -c 300000 /dev/urandom >dist/blob.bin
printf 'plain' >"dist/deep/two words.txt"
ln -s /etc/passwd dist/link
mkfifo dist/fifo
printf 'absolute' >/tmp/abs.txt
truncate -s 10G /tmp/sparse.img
printf 'more\\n' >>README
sha256sum dist/blob.bin
exit 3
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with living(tmp_path_factory.mktemp("artifacts") / "s") as stage:
        yield stage


def taken(stage: Stage, task_id: str, name: str) -> bytes:
    """What the command line writes to standard output."""
    done = stage.cli("artifact", "get", task_id, name)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_failed_run_leaves_behind_is_kept_listed_and_taken_along_byte_for_byte(
    stage: Stage, tmp_path: Path
) -> None:
    repo = registered(stage, tmp_path / "leaves")
    wanted = ["dist/", "/tmp/*.*", "none/*"]
    task_id = started(stage, repo=alias_of(stage, repo), script=LEAVE, artifacts=wanted)
    run = ended(stage, task_id)
    assert (run["result"]["exit_code"], run["result"]["rest"]) == (3, "patch")
    listed = stage.ask("artifact_list", task_id=task_id)
    assert listed["artifacts"] == run["artifacts"]
    assert {each["name"]: each["kind"] for each in listed["artifacts"]} == {
        "/tmp/abs.txt": "file",
        "console.log": "console",
        "dist/blob.bin": "file",
        "dist/deep/two words.txt": "file",
        "rest.patch": "patch",
    }
    reasons = {each["name"]: each["reason"] for each in listed["left_out"]}
    assert set(reasons) == {"dist/link", "dist/fifo", "/tmp/sparse.img", "none/*"}
    # The guest said what it has, and it came as that.
    said = output(stage, task_id).split()[0]
    assert hashlib.sha256(taken(stage, task_id, "dist/blob.bin")).hexdigest() == said
    to = tmp_path / "blob"
    words = ("artifact", "get", task_id, f"sha256:{said}", "--file", str(to))
    assert stage.cli(*words).returncode == 0
    assert hashlib.sha256(to.read_bytes()).hexdigest() == said
    piece = stage.ask(
        "artifact_get", task_id=task_id, artifact="dist/deep/two words.txt", offset=2, limit=2
    )
    assert (piece["content"], piece["next"], piece["size"]) == ("ai", 4, 5)
    # The rest fits where the run began.
    repo.git("apply", "-", stdin=taken(stage, task_id, "rest.patch"))
    assert (repo.path / "README").read_text() == "a sample\nmore\n"
    assert taken(stage, task_id, "console.log") != b""
    # What it took is measured here, and people can read it.
    usage = run["usage"]
    assert usage["wall_s"] > 0
    assert usage["cpu_s"] > 0
    assert usage["memory_peak_mib"] > 0
    shown = stage.cli("run", "get", task_id).stdout.decode()
    assert "exit 3" in shown
    assert "MiB of memory at most" in shown
    assert "dist/blob.bin" in shown
    # What was not committed is work as well.
    said_no = stage.cli("task", "delete", task_id).stderr.decode()
    assert f"what run {run['run_id']} did not commit, which is its rest.patch" in said_no
    assert stage.cli("task", "delete", task_id, "--drop-unmerged").returncode == 0


def test_what_one_run_leaves_behind_another_brings_along_even_if_its_own_time_is_up(
    stage: Stage,
) -> None:
    make = "head -c 70000 /dev/urandom >out.bin; sha256sum out.bin"
    maker = started(stage, key="maker", script=make, artifacts=["out.bin"])
    use = "sha256sum lib other >sums; echo done with it; exec sleep 600"
    user = started(
        stage,
        depends_on=["maker"],
        script=use,
        files=[
            {"path": "lib", "artifact": "maker/out.bin"},
            {"path": "other", "text": "given"},
        ],
        artifacts=["sums"],
        # Enough for the sums on a busy host; the program never ends by itself.
        timeout_s=15.0,
    )
    assert ended(stage, maker)["result"]["success"]
    run = ended(stage, user)
    assert run["result"]["timed_out"], run["result"]
    sums = [line.split() for line in taken(stage, user, "sums").decode().splitlines()]
    made = output(stage, maker).split()[0]
    assert sums == [[made, "lib"], [hashlib.sha256(b"given").hexdigest(), "other"]]

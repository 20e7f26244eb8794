"""Commands in machines, as callers meet them: on guests that only look so, with the real agent."""

from __future__ import annotations

import base64
import hashlib
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from calling import ADMIN, OPERATOR, House, house
from machines import LONG_S, fake_program, publish_no_image
from microvm_orchestrator import errors, places
from microvm_orchestrator.execs.execs import ENDED_MOST
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.exec import EXEC
from microvm_orchestrator.model.records import SYSTEM, Actor, Record
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.sqlite import SqliteStore


@dataclass(frozen=True)
class Box:
    """A machine that runs."""

    house: House

    async def run(self, *argv: str, **more: Any) -> dict[str, Any]:
        given = {"argv": list(argv)} if argv else {}
        return await self.house.ask("machine_exec", machine="box", **given, **more)

    async def wait(self, exec_id: str) -> dict[str, Any]:
        return await self.house.ask("exec_wait", exec_id=exec_id, timeout_s=LONG_S)

    async def said(self, exec_id: str, until: str) -> str:
        """Follow what a command says until it has said something."""
        text, offset = "", 0
        with anyio.fail_after(LONG_S):
            while until not in text:
                read = await self.house.ask(
                    "exec_output", exec_id=exec_id, offset=offset, timeout_s=LONG_S
                )
                text += "".join(piece["text"] for piece in read["pieces"])
                offset = read["next"]
                assert until in text or not read["ended"], text
        return text


@asynccontextmanager
async def daemon(folder: Path) -> AsyncGenerator[Box]:
    """What a daemon has, from its start to its end."""
    async with house(folder, machines={"qemu": str(folder / "fake-qemu")}) as kept:
        yield Box(kept)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncGenerator[Path]:
    """A folder of a daemon whose machine `box` runs; it goes in the end."""
    fake_program(tmp_path)
    publish_no_image(ImageStore(tmp_path / places.IMAGES), "embedded")
    async with daemon(tmp_path) as box:
        await box.house.ask("machine_define", name="box")
        await box.house.ask("machine_start", machine="box", wait_s=LONG_S)
    yield tmp_path
    async with daemon(tmp_path) as box:
        if (await box.house.ask("machine_get", machine="box"))["state"] != "stopped":
            await box.house.ask("machine_kill", machine="box")


@pytest.fixture
async def box(place: Path) -> AsyncGenerator[Box]:
    async with daemon(place) as box:
        yield box


async def test_a_command_is_told_with_its_exit_and_both_channels(box: Box) -> None:
    ran = await box.run(script="echo out; echo err >&2; exit 7")
    assert (ran["state"], ran["exit_code"], ran["signal"], ran["timed_out"]) == (
        *("exited", 7, None),
        False,
    )
    assert (ran["stdout"], ran["stderr"], ran["truncated"], ran["next"]) == (
        *("out\n", "err\n", False),
        8,
    )


async def test_a_script_and_words_arrive_byte_for_byte(box: Box) -> None:
    script = "printf '%s' 'a  b'\"$(printf '\\n$x')\"'; `no`'"
    assert (await box.run(script=script))["stdout"] == "a  b\n$x; `no`"
    odd = ["$HOME", "a b", "", "*", "--", "né\n"]
    assert (await box.run("printf", "[%s]", *odd))["stdout"] == "".join(f"[{w}]" for w in odd)


async def test_input_variables_and_folder_are_those_asked_for(box: Box, tmp_path: Path) -> None:
    ran = await box.run(
        script='cat; printf " %s %s" "$X" "$PWD"', stdin="in", env={"X": "é=1"}, cwd=str(tmp_path)
    )
    assert ran["stdout"] == f"in é=1 {tmp_path}"
    data = bytes(range(256)) * 1000
    ran = await box.run("wc", "-c", stdin_base64=base64.b64encode(data).decode())
    assert ran["stdout"].strip() == "256000"
    assert (await box.run("cat"))["stdout"] == ""


async def test_what_is_no_text_comes_in_base64_too(box: Box) -> None:
    ran = await box.run(script="printf '\\377\\000x'; echo fine >&2")
    assert base64.b64decode(ran["stdout_base64"]) == b"\xff\x00x"
    assert (ran["stdout"], ran["stderr"], ran["stderr_base64"]) == ("\ufffd\x00x", "fine\n", None)


async def test_a_signal_that_ended_it_is_told_as_that(box: Box) -> None:
    ran = await box.run(script="kill -9 $$")
    assert (ran["exit_code"], ran["signal"]) == (None, signal.SIGKILL)


async def test_a_timeout_ends_all_of_it_and_keeps_what_it_had_said(
    box: Box, tmp_path: Path
) -> None:
    told = tmp_path / "pid"
    script = f"sh -c 'echo $$ >{told}; exec sleep 1000' & echo partial; wait"
    ran = await box.run(script=script, timeout_s=1, wait_s=LONG_S)
    assert (ran["state"], ran["timed_out"], ran["stdout"]) == ("exited", True, "partial\n")
    assert ran["exit_code"] is None
    assert not _runs(told)


def _runs(told: Path) -> bool:
    """Whether the process that wrote its number there runs; one that nobody waited for does not."""
    status = Path(f"/proc/{told.read_text().strip()}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


async def test_the_answer_holds_the_last_of_what_was_said(box: Box) -> None:
    ran = await box.run(script="printf 'abcdé%s' xyz", output_cap=4)
    assert (ran["stdout"], ran["truncated"], ran["next"]) == ("xyz", True, 9)
    everything = await box.house.ask("exec_output", exec_id=ran["exec_id"])
    assert [piece["text"] for piece in everything["pieces"]] == ["abcdéxyz"]


async def test_an_id_begins_one_command_however_often_it_is_asked_for(
    box: Box, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    script = f"echo x >>{count}; wc -l <{count}"
    answers: list[dict[str, Any]] = []

    async def run() -> None:
        answers.append(await box.run(script=script, exec_id="once"))

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(run)
    await run()
    assert {answer["stdout"].strip() for answer in answers} == {"1"}
    assert len(answers) == 5
    with pytest.raises(errors.KeyReused):
        await box.run("true", exec_id="once")


async def test_what_never_ran_leaves_its_id_free(box: Box) -> None:
    with pytest.raises(errors.NotFound):
        await box.run("/no/such/program", exec_id="mine")
    assert (await box.run("true", exec_id="mine"))["exit_code"] == 0
    with pytest.raises(errors.InvalidInput):
        await box.run("true", script="true")
    with pytest.raises(errors.InvalidInput):
        await box.run()


async def test_a_command_is_spoken_to_and_followed_while_it_runs(box: Box) -> None:
    # What says that it is set is there to be interrupted.
    waits = "trap 'echo int; exit 3' INT; sh -c 'echo set; exec cat'"
    script = f"echo ready; read x; echo got $x; {waits}"
    begun = await box.run(script=script, stdin_open=True, wait_s=0, exec_id="talk")
    assert begun["state"] == "running"
    await box.said("talk", "ready")
    taken = await box.house.ask("exec_input", exec_id="talk", data="hello\n")
    assert taken["taken"] == 6
    await box.said("talk", "got hello\nset")
    listed = await box.house.ask("exec_list", machine="box", state="running")
    assert [each["exec_id"] for each in listed["items"]] == ["talk"]
    await box.house.ask("exec_signal", exec_id="talk", signal="INT")
    ended = await box.wait("talk")
    assert (ended["exit_code"], ended["stdout"].splitlines()[-1]) == (3, "int")
    with pytest.raises(errors.StateForbids):
        await box.house.ask("exec_input", exec_id="talk", data="late")
    with pytest.raises(errors.StateForbids):
        await box.house.ask("exec_signal", exec_id="talk")


async def test_two_read_the_same_command_each_at_its_own_pace(box: Box) -> None:
    script = "echo one; read x; echo two"
    await box.run(script=script, stdin_open=True, wait_s=0, exec_id="both")
    first = await box.said("both", "one")
    heard: list[str] = []

    async def read() -> None:
        heard.append(await box.said("both", "two"))

    async with anyio.create_task_group() as group:
        group.start_soon(read)
        group.start_soon(read)
        await box.house.ask("exec_input", exec_id="both", data="go\n", end=True)
    assert (first, heard) == ("one\n", ["one\ntwo\n"] * 2)


async def test_a_command_outlives_the_daemon_and_ends_once(place: Path, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo before; while ! test -e {go}; do sleep 0.05; done; echo after; exit 5"
    async with daemon(place) as box:
        await box.run(script=script, wait_s=0, exec_id="long")
        await box.said("long", "before")
        await box.run("echo", "kept", exec_id="short")
    go.touch()
    async with daemon(place) as box:
        ended = await box.wait("long")
        assert (ended["exit_code"], ended["stdout"]) == (5, "before\nafter\n")
        # What had ended is read again from what the guest holds.
        assert (await box.wait("short"))["stdout"] == "kept\n"
        assert (await box.run(script=script, exec_id="long"))["exit_code"] == 5
        with anyio.fail_after(LONG_S):
            audit = await box.house.ask("event_wait", kinds=["exec.*"], limit=200)
        kinds = [(event["kind"], event["subject"]) for event in audit["events"]]
        assert kinds.count(("exec.started", "long")) == 1
        assert kinds.count(("exec.exited", "long")) == 1


async def test_one_that_had_a_part_of_its_input_when_the_daemon_ended_gets_the_rest(
    place: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    # More than is on its way while nobody reads it.
    text = b"".join(b"%d\n" % number for number in range(130_000))
    wait = f"while ! test -e {go}; do sleep 0.05; done"
    script = f"read first; echo began; {wait}; sha256sum"
    asked = {"script": script, "stdin_base64": base64.b64encode(text).decode()}
    async with daemon(place) as box:
        await box.run(**asked, wait_s=0, exec_id="fed")
        await box.said("fed", "began")
    go.touch()
    async with daemon(place) as box:
        ended = await box.run(**asked, exec_id="fed")
        behind = text.partition(b"\n")[2]
        assert ended["stdout"].split()[1] == hashlib.sha256(behind).hexdigest()


async def test_one_that_was_written_down_and_never_sent_can_be_sent_again(
    place: Path, tmp_path: Path
) -> None:
    async with daemon(place) as box:
        await box.run("true", exec_id="ended")
        [record] = await every_record(box.house.store, EXEC, SYSTEM, "ended")
    body: dict[str, Any] = {**record.body}
    body["exec"] = {**body["exec"], "exec_id": "unsent", "state": "running", "exit_code": None}
    stranger: dict[str, Any] = {
        **body,
        "exec": {**body["exec"], "exec_id": "strange"},
        "guest": ["other", "boot"],
    }
    store = SqliteStore(place / "store.db")
    async with store.opened():
        await store.save(Record(EXEC, "unsent", body), SYSTEM)
        await store.save(Record(EXEC, "strange", stranger), SYSTEM)
    async with daemon(place) as box:
        # A guest that is another one may have run it before it was started anew.
        with pytest.raises(errors.UnknownOutcome):
            await box.wait("strange")

        async def forgotten() -> bool:
            return await every_record(box.house.store, EXEC, SYSTEM, "unsent") == []

        await box.house.until(forgotten)
        told = await box.run("touch", str(tmp_path / "sent"), exec_id="unsent")
        assert (told["exit_code"], (tmp_path / "sent").exists()) == (0, True)


async def test_a_machine_that_is_lost_makes_the_outcome_unknown(box: Box) -> None:
    await box.run(script="echo said; sleep 1000", wait_s=0, exec_id="cut")
    await box.said("cut", "said")

    async def kill() -> None:
        await box.house.ask("machine_kill", machine="box")

    async with anyio.create_task_group() as group:
        group.start_soon(kill)
        with pytest.raises(errors.UnknownOutcome):
            await box.wait("cut")
    read = await box.house.ask("exec_output", exec_id="cut")
    assert (read["state"], read["ended"], read["pieces"][0]["text"]) == ("lost", True, "said\n")
    [listed] = (await box.house.ask("exec_list"))["items"]
    assert (listed["state"], listed["exit_code"], listed["signal"]) == ("lost", None, None)
    with pytest.raises(errors.StateForbids):
        await box.run("true")


async def test_nothing_is_run_in_a_machine_that_stands_still(box: Box, tmp_path: Path) -> None:
    await box.house.ask("machine_pause", machine="box")
    with pytest.raises(errors.StateForbids):
        await box.run("touch", str(tmp_path / "touched"))
    with pytest.raises(errors.StateForbids):
        await box.house.ask("file_get", machine="box", path="/etc/passwd")
    await box.house.ask("machine_resume", machine="box")
    assert (await box.run("true"))["exit_code"] == 0
    assert not (tmp_path / "touched").exists()


async def test_commands_of_others_are_not_seen(box: Box) -> None:
    await box.run("true", exec_id="secret")
    stranger = Principal("stranger", Role.OPERATOR, Scope(everything=False))
    for call in ("exec_wait", "exec_output", "exec_signal"):
        with pytest.raises(errors.NotFound):
            await box.house.ask(call, by=stranger, exec_id="secret")
    assert (await box.house.ask("exec_list", by=stranger))["items"] == []
    with pytest.raises(errors.NotFound):
        await box.run("true", by=stranger)
    with pytest.raises(errors.Denied):
        await box.run("true", by=Principal("viewer", Role.VIEWER))
    assert (await box.run("true", by=OPERATOR))["state"] == "exited"


async def test_the_oldest_that_ended_are_forgotten_before_the_guest_is_full(box: Box) -> None:
    first = (await box.run("true"))["exec_id"]
    limiter = anyio.CapacityLimiter(8)

    async def run() -> None:
        async with limiter:
            await box.run("true", wait_s=LONG_S)

    async with anyio.create_task_group() as group:
        for _ in range(ENDED_MOST + 4):
            group.start_soon(run)
    with pytest.raises(errors.NotFound):
        await box.wait(first)
    machine = await box.house.service.host.machines.get("box", _by(ADMIN))
    shell = box.house.service.host.machines.live(machine).shell
    with anyio.fail_after(LONG_S):
        # They are forgotten behind the answers.
        while len(await shell.jobs()) > ENDED_MOST + 1:
            await anyio.lowlevel.checkpoint()


def _by(principal: Principal) -> Actor:
    return Actor(name=principal.name, role=principal.role, via="test", action="x")


async def test_small_files_are_written_and_read_whole(box: Box, tmp_path: Path) -> None:
    path = str(tmp_path / "deep" / "file")
    ask = box.house.ask
    with pytest.raises(errors.NotFound):
        await ask("file_put", machine="box", path=path, content="x")
    written = await ask(
        "file_put", machine="box", path=path, content="é", mode="0640", parents=True
    )
    assert written["size"] == 2
    read = await ask("file_get", machine="box", path=path)
    assert (read["content"], read["mode"], read["content_base64"]) == ("é", "0640", None)
    odd = base64.b64encode(b"\xff\x00").decode()
    await ask("file_put", machine="box", path=path, content_base64=odd)
    assert (await ask("file_get", machine="box", path=path))["content_base64"] == odd
    with pytest.raises(errors.TooLarge):
        await ask("file_get", machine="box", path=path, max_size=1)
    for wrong in ({"path": "relative"}, {"path": path, "mode": "999"}):
        with pytest.raises(errors.InvalidInput):
            await ask("file_put", **{"machine": "box", "content": "x", **wrong})
    with pytest.raises(errors.InvalidInput):
        await ask("file_get", machine="box", path=str(tmp_path))

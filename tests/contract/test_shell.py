"""What every way into a guest does. A new one adds a line to `guests.GUESTS`."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncGenerator
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream

from guests import GUESTS, Guest
from microvm_orchestrator import errors
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.shell import (
    Channel,
    Command,
    Exit,
    Given,
    Process,
    Shell,
    Tcp,
    Terminal,
    TreeLimits,
    Unix,
)

# Longer than anything here takes on a busy machine.
SOON_S = 30.0


@pytest.fixture(params=GUESTS)
async def guest(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Guest]:
    async with GUESTS[request.param](tmp_path) as guest:
        marker = request.node.get_closest_marker("needs")
        if marker and guest.lacks.issuperset(marker.args):
            # What a way in does not offer it must refuse, and by that name.
            refused = pytest.mark.xfail(raises=errors.NotOffered, strict=True)
            request.applymarker(refused)
        yield guest


@pytest.fixture
async def shell(guest: Guest) -> AsyncGenerator[Shell]:
    with anyio.fail_after(SOON_S):
        async with guest.shell() as shell:
            yield shell
            # What a test has left behind is being ended.
            while any(job.running for job in await shell.jobs()):
                await shell.ping()


def sh(script: str, **more: object) -> Command:
    return Command(["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]  # named as the fields are


async def said(process: Process) -> bytes:
    return b"".join([output.data async for output in process])


def ignored_signals(line: bytes) -> set[int]:
    """Read a line of a process's status."""
    mask = int(line.removeprefix(b"SigIgn:"), 16)
    return {number for number in range(1, 65) if mask >> (number - 1) & 1}


async def gone(shell: Shell, pid: int) -> bool:
    """Tell whether a process of the guest has ended; a zombie has."""
    seen = await shell.exec(Command(["cat", f"/proc/{pid}/stat"]))
    return seen.exit.code != 0 or seen.stdout.rpartition(b")")[2].split()[0] == b"Z"


async def test_the_words_of_a_command_arrive_byte_for_byte(shell: Shell) -> None:
    words = ["", " ", "a b", "it's", '"', "$HOME `id` $(id)", "new\nline", "\\", "*", "🦀", "-n"]
    raw = [b"\xff\xfe", b"\x01\x7f"]
    script = 'for word in "$@"; do printf "%s\\0" "$word"; done'
    ran = await shell.exec(Command(["/bin/sh", "-c", script, "sh", *words, *raw]))
    assert ran.stdout == b"".join(word + b"\0" for word in [*map(os.fsencode, words), *raw])


async def test_stdout_and_stderr_are_kept_apart_and_not_decoded(shell: Shell) -> None:
    ran = await shell.exec(sh(r"printf '\377\376out\0'; printf '\200err' >&2; exit 7"))
    assert (ran.stdout, ran.stderr, ran.exit) == (b"\xff\xfeout\0", b"\x80err", Exit(7))
    assert not ran.truncated


async def test_an_exit_by_a_signal_is_no_code(shell: Shell) -> None:
    ran = await shell.exec(sh("kill -SEGV $$"))
    assert ran.exit == Exit(None, signal.SIGSEGV)


async def test_a_command_gets_what_is_put_into_it_and_then_an_end(shell: Shell) -> None:
    content = os.urandom(1_000_000)
    ran = await shell.exec(Command(["cat"]), stdin=content, output_cap=len(content))
    assert ran.stdout == content


async def test_a_command_without_input_sees_an_end_at_once(shell: Shell) -> None:
    assert (await shell.exec(Command(["cat"]))).exit == Exit(0)


async def test_a_command_that_reads_no_input_does_not_hold_it_up(shell: Shell) -> None:
    ran = await shell.exec(sh("exec <&-; echo done"), stdin=bytes(2_000_000))
    assert ran.stdout == b"done\n"


async def test_variables_directory_and_ignored_signals_are_those_asked_for(
    shell: Shell,
) -> None:
    script = "echo $A; pwd; grep -h SigIgn /proc/self/status /proc/$PPID/status"
    ran = await shell.exec(sh(script, env={"A": "x y=z"}, cwd="/usr"))
    *told, ignored, by_parent = ran.stdout.splitlines()
    assert told == [b"x y=z", b"/usr"]
    # What the parent found ignored when it was started is not for it to reset. Python, in which the
    # agent is written, ignores these two by itself.
    inherited = ignored_signals(by_parent) - {signal.SIGPIPE, signal.SIGXFSZ}
    # `posix_spawn` of glibc ignores the two that only glibc uses, which sets them when it does.
    assert ignored_signals(ignored) <= inherited | {32, 33}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
async def test_a_command_runs_as_the_user_asked_for_with_nothing_of_root_left(shell: Shell) -> None:
    ran = await shell.exec(
        sh("id -u; id -G; grep CapEff /proc/self/status; echo $USER", user="nobody")
    )
    uid, groups, capabilities, name = ran.stdout.splitlines()
    assert (uid, groups, name) == (b"65534", b"65534", b"nobody")
    assert capabilities.split()[1] == b"0" * 16


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command(["there-is-no-such-program"]), errors.NotFound),
        (Command(["/etc/passwd"]), errors.GuestRefused),
        (Command(["true"], cwd="/there/is/no/such"), errors.NotFound),
        (Command(["true"], user="there-is-no-such"), errors.NotFound),
        (Command(["tr\0ue"]), errors.InvalidInput),
        (Command([]), errors.InvalidInput),
        (Command(["echo", "x" * 300_000]), errors.TooLarge),
    ],
    ids=["program", "no program", "directory", "user", "nul", "nothing", "too long"],
)
async def test_what_cannot_be_started_says_why_and_leaves_no_job(
    shell: Shell, command: Command, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await shell.exec(command)
    assert await shell.jobs() == []


async def test_a_timeout_ends_the_whole_session_and_keeps_what_was_said(shell: Shell) -> None:
    # One in the group, one in a group of its own, and one that does not heed the first signal.
    script = """
        sleep 1000 & echo $!
        python3 -c 'import os,time; os.setpgid(0,0); print(os.getpid(), flush=1); time.sleep(1e3)' &
        trap '' TERM; sh -c 'echo $$; sleep 1000' & echo $$
        wait; wait; sleep 1000
    """
    pids: list[int] = []
    for timeout_s in (1.0, 4.0, 12.0):  # until it is long enough for a busy guest to start them all
        ran = await shell.exec(sh(script, timeout_s=timeout_s))
        assert ran.exit.timed_out
        assert ran.exit.signal == signal.SIGKILL
        pids = [int(word) for word in ran.stdout.split()]
        if len(pids) == 4:
            break
    assert len(pids) == 4
    assert all([await gone(shell, pid) for pid in pids])


async def test_a_timeout_that_is_not_reached_changes_nothing(shell: Shell) -> None:
    assert (await shell.exec(sh("exit 3", timeout_s=20.0))).exit == Exit(3)


async def test_output_beyond_the_cap_is_dropped_and_flagged(shell: Shell) -> None:
    ran = await shell.exec(sh("yes | head -c 3000000; echo end >&2"), output_cap=1000)
    assert (len(ran.stdout), ran.stderr, ran.truncated) == (1000, b"end\n", True)
    assert ran.exit == Exit(0)


async def test_a_background_process_does_not_hold_up_the_end(shell: Shell) -> None:
    ran = await shell.exec(sh("sleep 1000 & echo $!"))
    pid = int(ran.stdout)
    assert not await gone(shell, pid)
    await shell.exec(sh(f"kill {pid}"))


async def test_all_that_a_command_said_before_its_end_arrives(shell: Shell) -> None:
    for _ in range(50):
        ran = await shell.exec(sh("head -c 60000 /dev/zero; echo x >&2"))
        assert (len(ran.stdout), ran.stderr) == (60000, b"x\n")


async def test_leaving_the_block_ends_the_command_and_forgets_it(shell: Shell) -> None:
    async with shell.stream(sh("echo $$; sleep 1000")) as process:
        pid = int((await anext(aiter(process))).data)
    while await shell.jobs():
        await shell.ping()
    assert await gone(shell, pid)


async def test_a_cancelled_call_ends_the_command(shell: Shell, guest: Guest) -> None:
    flag = guest.folder / "pid"
    look = Command(["cat", str(flag)])
    pid = b""
    with anyio.move_on_after(SOON_S) as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(
                shell.exec, sh(f"echo $$ >{flag}.new; mv {flag}.new {flag}; sleep 1000")
            )
            while not pid:
                pid = (await shell.exec(look)).stdout
            group.cancel_scope.cancel()
    assert not scope.cancelled_caught
    while await shell.jobs():
        await shell.ping()
    assert await gone(shell, int(pid))


@pytest.mark.needs("attach")
async def test_a_kept_command_goes_on_and_is_followed_again(shell: Shell) -> None:
    async with shell.stream(
        sh("echo one; read line; echo $line; exit 5"), exec_id="kept", keep=True
    ):
        pass
    assert [job.running for job in await shell.jobs()] == [True]
    async with shell.attach("kept") as process:
        await process.send(b"two\n")
        assert await said(process) == b"one\ntwo\n"
        assert await process.wait() == Exit(5)
    async with shell.attach("kept", offset=4) as process:
        assert (process.offset, await said(process)) == (4, b"two\n")
    await shell.forget("kept")
    assert await shell.jobs() == []
    with pytest.raises(errors.NotFound):
        async with shell.attach("kept"):
            pass


@pytest.mark.needs("attach")
async def test_a_host_that_comes_back_is_told_what_came_of_the_input(shell: Shell) -> None:
    async with shell.stream(Command(["cat"]), exec_id="fed", keep=True) as process:
        assert process.given == Given(0, over=False)
        await process.send(b"one\n")
        assert (await anext(aiter(process))).data == b"one\n"
    async with shell.attach("fed") as process:
        assert process.given == Given(4, over=False)
        await process.send(b"two\n")
        await process.end_input()
        assert await process.wait() == Exit(0)
    async with shell.attach("fed") as process:
        assert (process.given, await said(process)) == (Given(8, over=True), b"one\ntwo\n")
    async with shell.stream(sh("true"), exec_id="none", stdin=False) as process:
        assert process.given == Given(0, over=True)


@pytest.mark.needs("attach")
async def test_an_id_is_started_once(shell: Shell) -> None:
    async with shell.stream(sh("exit 1"), exec_id="once", keep=True) as process:
        await process.wait()
    with pytest.raises(errors.AlreadyExists):
        await shell.exec(sh("exit 2"), exec_id="once")
    async with shell.attach("once", keep=False) as process:
        assert await process.wait() == Exit(1)


@pytest.mark.needs("attach")
async def test_only_one_follows_a_command_at_a_time(shell: Shell) -> None:
    async with shell.stream(sh("sleep 1000"), exec_id="one"):
        with pytest.raises(errors.Unavailable):
            async with shell.attach("one"):
                pass


@pytest.mark.needs("attach")
async def test_what_was_said_to_a_lost_connection_is_said_again_from_any_offset(
    guest: Guest,
) -> None:
    """A host that breaks off in the middle of a flood loses no byte and gets none twice."""
    script = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); echo $i; done"
    have = b""
    with anyio.fail_after(SOON_S):
        async with (
            guest.shell() as shell,
            shell.stream(sh(script), exec_id="flood", keep=True) as process,
        ):
            async for output in process:
                have += output.data
                if len(have) > 20_000:
                    break
        while True:
            async with (
                guest.shell() as shell,
                shell.attach("flood", offset=len(have)) as process,
            ):
                assert process.offset == len(have)
                async for output in process:
                    assert output.offset == len(have)
                    have += output.data
                    if len(have) % 7 == 0:
                        break
                else:
                    assert await process.wait() == Exit(0)
                    await shell.forget("flood")
                    break
    assert have == b"".join(b"%d\n" % number for number in range(1, 60001))


async def test_a_signal_reaches_the_command(shell: Shell) -> None:
    async with shell.stream(
        sh("trap 'exit 9' USR1; echo; while :; do sleep 0.01; done")
    ) as process:
        await anext(aiter(process))
        await process.signal(signal.SIGUSR1)
        assert await process.wait() == Exit(9)


async def test_a_terminal_has_the_size_it_was_given_and_then_another(shell: Shell) -> None:
    script = "trap 'stty size; exit' WINCH; tty; stty size; while :; do sleep 0.01; done"
    async with shell.stream(sh(script, terminal=Terminal(30, 90))) as process:
        output = b""
        async for piece in process:
            assert piece.channel is Channel.STDOUT
            output += piece.data
            if output.endswith(b"30 90\r\n"):
                await process.resize(Terminal(41, 143))
        assert output.startswith(b"/dev/pts/")
        assert output.endswith(b"41 143\r\n")
        assert await process.wait() == Exit(0)


async def test_a_terminal_takes_typing_and_its_end(shell: Shell) -> None:
    async with shell.stream(Command(["cat"], terminal=Terminal())) as process:
        await process.send(b"typed\n")
        await process.end_input()
        assert await said(process) == b"typed\r\ntyped\r\n"
        assert await process.wait() == Exit(0)


async def test_a_hundred_commands_at_once_each_get_their_own_output(shell: Shell) -> None:
    seen: dict[int, bytes] = {}

    async def run(number: int) -> None:
        script = f"i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo {number}; done; cat"
        seen[number] = (await shell.exec(sh(script), stdin=b"%d" % number)).stdout

    async with anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(run, number)
    assert seen == {number: b"%d\n" % number * 50 + b"%d" % number for number in range(100)}


async def test_neither_a_flood_nor_a_reader_that_stands_still_keeps_others_waiting(
    shell: Shell,
) -> None:
    flooded = anyio.Event()

    async def flood() -> None:
        async with shell.stream(Command(["yes"])) as process:
            async for output in process:
                if output.offset > 2_000_000:
                    flooded.set()

    async with anyio.create_task_group() as group, shell.stream(Command(["yes"])) as _unread:
        for _ in range(4):
            group.start_soon(flood)
        await flooded.wait()
        for _ in range(20):
            assert (await shell.exec(sh("echo through"))).stdout == b"through\n"
        group.cancel_scope.cancel()


async def test_a_file_goes_in_and_out_unchanged(shell: Shell, guest: Guest) -> None:
    content = os.urandom(3_000_001)
    folder = guest.folder / "some" / "folder"
    path = str(folder / "file")
    await shell.put(path, content, mode=0o640, parents=True)
    async with shell.get(path, max_size=len(content)) as file:
        assert (file.size, file.mode) == (len(content), 0o640)
        assert b"".join([piece async for piece in file]) == content
    listed = await shell.exec(Command(["ls", "-A", str(folder)]))
    assert listed.stdout == b"file\n"


async def test_a_file_that_holds_the_protocols_own_marker_goes_in(
    shell: Shell, guest: Guest
) -> None:
    content = (b"x" + wire.MARKER + wire.MARKER) * 1000
    await shell.put(str(guest.folder / "file"), content)
    async with shell.get(str(guest.folder / "file"), max_size=1 << 20) as file:
        assert b"".join([piece async for piece in file]) == content


async def test_an_empty_file_goes_in_and_out(shell: Shell, guest: Guest) -> None:
    await shell.put(str(guest.folder / "empty"), b"")
    async with shell.get(str(guest.folder / "empty"), max_size=0) as file:
        assert [piece async for piece in file] == []


async def test_a_file_that_comes_in_pieces_must_be_of_its_size(shell: Shell, guest: Guest) -> None:
    async def pieces() -> AsyncGenerator[bytes]:
        for _ in range(10):
            yield bytes(10_000)

    path = guest.folder / "file"
    await shell.put(str(path), pieces(), size=100_000)
    for wrong in (99_999, 100_001):
        with pytest.raises(errors.InvalidInput):
            await shell.put(f"{path}.{wrong}", pieces(), size=wrong)
    await shell.ping()
    assert (await shell.exec(Command(["ls", "-A", str(guest.folder)]))).stdout == b"file\n"


@pytest.mark.parametrize(
    ("path", "error"),
    [("/there/is/no/such", errors.NotFound), ("/dev/zero", errors.InvalidInput)],
)
async def test_what_is_no_file_cannot_be_fetched(
    shell: Shell, path: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        async with shell.get(path, max_size=1000):
            pass


async def test_a_fifo_is_refused_and_not_waited_for(shell: Shell, guest: Guest) -> None:
    fifo = str(guest.folder / "fifo")
    await shell.exec(Command(["mkfifo", fifo]))
    with pytest.raises(errors.InvalidInput):
        async with shell.get(fifo, max_size=1000):
            pass


async def test_a_file_above_the_limit_is_refused_before_it_travels(
    shell: Shell, guest: Guest
) -> None:
    path = str(guest.folder / "sparse")
    await shell.exec(Command(["truncate", "-s", "4G", path]))
    with pytest.raises(errors.TooLarge):
        async with shell.get(path, max_size=1 << 20):
            pass


async def test_a_put_that_the_guest_refuses_says_so_early_and_leaves_nothing(
    shell: Shell, guest: Guest
) -> None:
    with pytest.raises(errors.NotFound):
        await shell.put(str(guest.folder / "no" / "such" / "file"), bytes(5_000_000))
    assert (await shell.exec(Command(["ls", "-A", str(guest.folder)]))).stdout == b""


async def test_a_tree_goes_in_and_out_unchanged(shell: Shell, guest: Guest, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in ("a/b/c", "empty", "🦀"):
        (source / folder).mkdir(parents=True)
    content = {"a/b/c/file": os.urandom(300_000), "a/none": b"", "🦀/x y\nz": b"1", "run": b"2"}
    for name, data in content.items():
        (source / name).write_bytes(data)
    (source / os.fsdecode(b"a/\xff")).write_bytes(b"3")
    (source / "run").chmod(0o755)
    (source / "a" / "link").symlink_to("/etc/passwd")
    target.mkdir()
    inside = str(guest.folder / "tree")
    await shell.put_tree(source, inside)
    await shell.exec(sh(f"ln -s /etc/passwd {inside}/link; mkfifo {inside}/a/fifo"))
    fetched = await shell.get_tree(inside, target)
    assert (fetched.files, fetched.folders, fetched.size) == (5, 5, 300_003)
    assert (fetched.skipped, sorted(fetched.skips)) == (2, ["a/fifo", "link"])
    assert {name: (target / name).read_bytes() for name in content} == content
    assert (target / os.fsdecode(b"a/\xff")).read_bytes() == b"3"
    assert (target / "empty").is_dir()
    assert (target / "run").stat().st_mode & 0o777 == 0o755
    assert (target / "a/none").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("limits", [TreeLimits(size=1000), TreeLimits(entries=3)])
async def test_a_tree_above_the_limits_is_refused(
    shell: Shell, guest: Guest, tmp_path: Path, limits: TreeLimits
) -> None:
    await shell.exec(sh(f"cd {guest.folder}; for i in 1 2 3 4; do head -c 300 /dev/zero >$i; done"))
    (tmp_path / "target").mkdir()
    with pytest.raises(errors.TooLarge):
        await shell.get_tree(str(guest.folder), tmp_path / "target", limits)
    await shell.ping()


async def _shout(stream: ByteStream) -> None:
    heard = b""
    async for data in stream:
        heard += data
    await stream.send(heard.upper())


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_a_socket_of_the_guest_is_served_by_the_host_and_reached_by_it(
    shell: Shell, guest: Guest, kind: str
) -> None:
    path = Unix(str(guest.folder / "socket"))
    async with shell.reverse(Tcp(0) if kind == "tcp" else path, _shout) as port:
        address = Tcp(port) if kind == "tcp" else path
        async with shell.forward(address) as socket:
            await socket.send(b"x" * 500_000)
            await socket.send_eof()
            assert b"".join([data async for data in socket]) == b"X" * 500_000
    with pytest.raises((errors.GuestRefused, errors.NotFound)):
        async with shell.forward(address):
            pass


async def test_many_connections_of_the_guest_are_served_at_once(shell: Shell) -> None:
    script = """
import socket, sys
open_now = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(50)]
for number, one in enumerate(open_now):
    one.sendall(b"word %d" % number)
    one.shutdown(socket.SHUT_WR)
for number, one in enumerate(open_now):
    assert b"".join(iter(lambda: one.recv(100), b"")) == b"WORD %d" % number
print("served")
"""
    async with shell.reverse(Tcp(0), _shout) as port:
        ran = await shell.exec(Command(["python3", "-c", script, str(port)]))
    assert (ran.stdout, ran.stderr) == (b"served\n", b"")


async def test_what_the_host_wrote_before_it_closed_reaches_the_guest(shell: Shell) -> None:
    async def give(stream: ByteStream) -> None:
        await stream.send(bytes(700_000))

    script = """
import socket, sys, time
one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
time.sleep(0.3)
print(sum(map(len, iter(lambda: one.recv(4096), b""))))
"""
    async with shell.reverse(Tcp(0), give) as port:
        ran = await shell.exec(Command(["python3", "-c", script, str(port)]))
    assert ran.stdout == b"700000\n"


async def test_a_guest_says_who_it_is_and_what_it_uses(shell: Shell, guest: Guest) -> None:
    usage = await shell.usage()
    assert usage.memory_total_kib > usage.memory_available_kib > 0
    assert usage.pids > 1
    assert usage.cpu_busy_s > 0
    boot_id = await shell.exec(Command(["cat", "/proc/sys/kernel/random/boot_id"]))
    assert shell.guest.boot_id == boot_id.stdout.decode().strip()
    assert {"exec", "put", "fresh", "attach"} - guest.lacks <= shell.guest.verbs
    assert not guest.lacks & shell.guest.verbs
    assert 0 < await shell.ping() < SOON_S

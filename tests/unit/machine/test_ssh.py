"""SSH beyond the contract: who answers, how it breaks, and servers and guests that lie."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import stat
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import asyncssh
import pytest
from anyio.abc import ByteStream, UNIXSocketStream

from guests import on_socketpair
from lying_sshd import Told, begin, lying
from microvm_orchestrator import errors
from microvm_orchestrator.machine.shell import Command, Exit, Identity, Terminal, Unix
from microvm_orchestrator.machine.ssh import fingerprint, keep_keys, open_ssh
from microvm_orchestrator.machine.ssh.keys import make_key
from microvm_orchestrator.machine.ssh.line import Line
from sshd import SOON_S, Sshd, set_up_sshd, shell_with

TRUE = Command(["true"])


@pytest.fixture
def server(tmp_path: Path) -> Sshd:
    return set_up_sshd(tmp_path / "sshd")


def sh(script: str, timeout_s: float | None = None) -> Command:
    return Command(["/bin/sh", "-c", script], timeout_s=timeout_s)


# Who answers, and who comes.


async def test_another_host_key_is_refused_and_both_are_named(server: Sshd) -> None:
    pinned = make_key("pinned")
    login = replace(server.login, host_keys=(pinned.public,))
    with anyio.fail_after(SOON_S):
        async with server.connect() as stream:
            with pytest.raises(errors.HostKeyWrong) as raised:
                async with open_ssh(stream, login):
                    pass
    assert fingerprint(server.keys.host.public) in str(raised.value)
    assert fingerprint(pinned.public) in str(raised.value)


async def test_a_host_key_of_another_kind_is_refused_and_both_are_named(server: Sshd) -> None:
    key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")  # pyright: ignore[reportUnknownMemberType]  # asyncssh leaves it untyped
    pinned = key.export_public_key().decode()
    login = replace(server.login, host_keys=(pinned,))
    with anyio.fail_after(SOON_S):
        async with server.connect() as stream:
            with pytest.raises(errors.HostKeyWrong) as raised:
                async with open_ssh(stream, login):
                    pass
    assert fingerprint(server.keys.host.public) in str(raised.value)
    assert fingerprint(pinned) in str(raised.value)


async def test_without_a_pinned_key_nobody_is_trusted(server: Sshd) -> None:
    with anyio.fail_after(SOON_S):
        async with server.connect() as stream:
            with pytest.raises(errors.HostKeyWrong):
                async with open_ssh(stream, replace(server.login, host_keys=())):
                    pass


async def test_a_guest_that_does_not_know_our_key_lets_nobody_in(server: Sshd) -> None:
    login = replace(server.login, key=make_key("somebody else's"))
    with anyio.fail_after(SOON_S):
        async with server.connect() as stream:
            with pytest.raises(errors.GuestRefused, match="does not let us in"):
                async with open_ssh(stream, login):
                    pass


async def test_a_server_that_does_not_begin_is_not_waited_for(server: Sshd) -> None:
    ours, theirs = socket.socketpair()
    with theirs, anyio.fail_after(SOON_S):
        stream = await UNIXSocketStream.from_socket(ours)
        with pytest.raises(errors.MachineUnreachable, match="does not say a word"):
            async with open_ssh(stream, server.login, first_word_s=0.1):
                pass
        assert theirs.recv(100) == b""  # nor was it told anything


async def test_keys_are_made_once_and_only_we_read_them(tmp_path: Path) -> None:
    first = keep_keys(tmp_path / "ssh", "m1")
    assert keep_keys(tmp_path / "ssh", "m1") == first
    assert first.client != first.host
    for path in (tmp_path / "ssh").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(first)
    (tmp_path / "ssh" / "client").write_bytes(b"damaged")
    with pytest.raises(errors.Unavailable):
        keep_keys(tmp_path / "ssh", "m1")


async def test_no_network_is_needed_where_our_agent_forwards_a_socket(
    server: Sshd, tmp_path: Path
) -> None:
    content = os.urandom(500_000)
    left = anyio.Event()

    async def serve(theirs: socket.socket) -> None:
        async with server.running(theirs):
            await left.wait()

    with anyio.fail_after(SOON_S), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        async with on_socketpair() as (agent, _), anyio.create_task_group() as tasks:
            async with agent.forward(Unix(str(tmp_path / "socket"))) as tunnel:
                tasks.start_soon(serve, listener.accept()[0])
                async with open_ssh(tunnel, server.login) as shell:
                    ran = await shell.exec(Command(["cat"]), stdin=content)
                    assert ran.stdout == content
            left.set()
            assert agent.guest.verbs > shell.guest.verbs


# How it breaks.


async def test_a_server_killed_in_mid_command_leaves_its_outcome_unknown(
    server: Sshd, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    with anyio.fail_after(SOON_S):
        async with server.connect() as stream, open_ssh(stream, server.login) as shell:
            script = f"echo ran >>{runs}; echo $$; read x; echo ended"
            async with shell.stream(sh(script)) as process:
                assert (await anext(aiter(process))).data.strip().isdigit()
                os.killpg(server.processes[0].pid, signal.SIGKILL)
                with pytest.raises(errors.UnknownOutcome):
                    await process.wait()
            for again in (shell.ping, shell.usage, lambda: shell.exec(TRUE)):
                with pytest.raises(errors.MachineUnreachable):
                    await again()
            with pytest.raises(errors.MachineUnreachable):
                await shell.jobs()
    assert runs.read_text() == "ran\n"


async def test_a_signal_that_the_server_has_no_name_for_is_still_no_code(server: Sshd) -> None:
    async with server.shell() as shell:
        assert (await shell.exec(sh("kill -SYS $$"))).exit == Exit(None, None)
        assert (await shell.exec(sh("kill -PIPE $$"))).exit == Exit(None, signal.SIGPIPE)
        assert (await shell.exec(sh("exit 159"))).exit == Exit(159)


async def test_a_server_that_stands_still_is_taken_for_dead(server: Sshd) -> None:
    with anyio.fail_after(SOON_S):
        async with (
            server.connect() as stream,
            open_ssh(stream, server.login, keepalive_s=0.3) as shell,
        ):
            os.killpg(server.processes[0].pid, signal.SIGSTOP)
            try:
                with pytest.raises(errors.MachineUnreachable):
                    await shell.exec(TRUE)
            finally:
                os.killpg(server.processes[0].pid, signal.SIGKILL)


async def _silent(_: ByteStream) -> None:
    await anyio.sleep_forever()


async def _one_line_of_a_megabyte(stream: ByteStream) -> None:
    await stream.send(b"x" * 1_000_000)
    await anyio.sleep_forever()


async def _endless_lines(stream: ByteStream) -> None:
    while True:
        await stream.send(b"welcome\r\n" * 1000)


async def _endless_noise(stream: ByteStream) -> None:
    await stream.send(b"SSH-2.0-x\r\n")
    while True:
        await stream.send(os.urandom(10_000))


async def _huge_packet(stream: ByteStream) -> None:
    await stream.send(b"SSH-2.0-x\r\n" + b"\xff\xff\xff\x00" + bytes(1_000_000))
    await anyio.sleep_forever()


async def _another_protocol(stream: ByteStream) -> None:
    await stream.send(b"SSH-1.5-x\r\n")
    await anyio.sleep_forever()


async def _hangs_up(stream: ByteStream) -> None:
    await stream.send(b"SSH-2.0-x\r\n")


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (_silent, errors.MachineUnreachable),
        (_one_line_of_a_megabyte, errors.ProtocolBroken),
        (_endless_lines, errors.ProtocolBroken),
        (_endless_noise, errors.ProtocolBroken),
        (_huge_packet, errors.ProtocolBroken),
        (_another_protocol, errors.ProtocolBroken),
        (_hangs_up, errors.MachineUnreachable),
    ],
)
async def test_what_is_no_ssh_server_is_left(
    server: Sshd, act: Callable[[ByteStream], Awaitable[None]], error: type[Exception]
) -> None:
    ours, theirs = socket.socketpair()

    async def serve() -> None:
        async with await UNIXSocketStream.from_socket(theirs) as stream:
            with suppress(anyio.BrokenResourceError, OSError):  # we have hung up
                await act(stream)

    with anyio.fail_after(SOON_S):
        stream = await UNIXSocketStream.from_socket(ours)
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            with pytest.raises(error):
                async with open_ssh(stream, server.login, greeting_s=2.0):
                    pass
            tasks.cancel_scope.cancel()


# Servers that lie.


async def test_a_command_whose_channel_is_never_closed_still_ends() -> None:
    async def act(told: Told) -> None:
        begin(told)
        if "exec '/bin/sh'" in (told.command or ""):
            told.stdout.write(b"said")
            told.channel.exit(5)
            told.channel.write_eof()
            await anyio.sleep_forever()
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            ran = await shell.exec(sh("x"))
            assert (ran.stdout, ran.exit) == (b"said", Exit(5))


async def test_a_command_that_is_closed_without_an_end_has_none() -> None:
    async def act(told: Told) -> None:
        begin(told)
        told.stdout.write(b"said")
        told.close()

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises(errors.UnknownOutcome):
                await shell.exec(TRUE)
            with pytest.raises(errors.UnknownOutcome):
                await shell.put("/x", b"content")


async def test_a_command_that_no_force_ends_does_not_keep_us_for_ever() -> None:
    async def act(told: Told) -> None:
        begin(told)
        if "exec '/bin/sh'" in (told.command or ""):
            await anyio.sleep_forever()
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises(errors.UnknownOutcome):
                await shell.exec(sh("x", timeout_s=0.1))


async def test_a_flood_before_the_command_is_not_listened_to_for_ever() -> None:
    async def act(told: Told) -> None:
        while True:
            told.stdout.write(b"welcome\n" * 1000)
            await told.stdout.drain()

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises(errors.UnknownOutcome, match="before the command"):
                await shell.exec(TRUE)


async def test_a_flood_of_output_is_held_to_the_cap_and_to_the_window() -> None:
    async def act(told: Told) -> None:
        begin(told)
        for _ in range(200):
            told.stdout.write(b"x" * 100_000)
            await told.stdout.drain()
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            ran = await shell.exec(TRUE, output_cap=1000)
            assert (len(ran.stdout), ran.truncated, ran.exit) == (1000, True, Exit(0))
            async with shell.stream(TRUE) as process:
                await anext(aiter(process))
                await shell.exec(TRUE, output_cap=0)  # while that one stands still


@pytest.mark.parametrize("words", ["0", "1", "-1", "x", "", "99999999999", "4242 1e9 644", "1 2 3"])
async def test_a_begin_that_cannot_be_is_not_believed(words: str) -> None:
    async def act(told: Told) -> None:
        command = told.command or ""
        nonce = command.partition("ok %s\\n' ")[2][:16]
        told.stdout.write(f"{nonce} ok {words}\n".encode())
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises((errors.UnknownOutcome, errors.ProtocolBroken)):
                async with shell.get("/file", max_size=10):
                    pass


@pytest.mark.parametrize(
    "figures",
    [b"", b"x", b"1.0 2.0\n", b"9" * 60_000, b"\xff\xfe\n" * 100, b"1 2\ncpu 1 2\n/ 1 2 3"],
)
async def test_figures_that_are_none_are_not_believed(figures: bytes) -> None:
    async def act(told: Told) -> None:
        begin(told)
        told.stdout.write(figures)
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises(errors.ProtocolBroken):
                await shell.usage()


async def test_a_file_is_as_long_as_it_was_announced_or_refused() -> None:
    announced = b"10 644"

    async def act(told: Told) -> None:
        begin(told, announced.decode())
        told.stdout.write(b"x" * 11)
        told.exit(0)

    with anyio.fail_after(SOON_S):
        async with lying(act) as shell:
            with pytest.raises(errors.ProtocolBroken):
                async with shell.get("/file", max_size=10) as file:
                    _ = [piece async for piece in file]
            announced = b"12 644"
            with pytest.raises(errors.TooLarge):
                async with shell.get("/file", max_size=10):
                    pass
            with pytest.raises(errors.GuestRefused, match="shorter"):
                async with shell.get("/file", max_size=20) as file:
                    _ = [piece async for piece in file]


# Guests that are not as we like them.


async def test_what_an_image_says_at_every_login_is_not_of_the_command(tmp_path: Path) -> None:
    noise = "echo welcome; echo and mind the step >&2; exec /bin/sh -c"
    server = set_up_sshd(tmp_path / "sshd", f'ForceCommand {noise} "$SSH_ORIGINAL_COMMAND"')
    async with server.shell() as shell:
        ran = await shell.exec(sh("echo out; echo err >&2; exit 3"))
    assert (ran.stdout, ran.stderr, ran.exit) == (b"out\n", b"err\n", Exit(3))


@pytest.mark.parametrize("program", ["/bin/false", "echo this account is not available; exit 1"])
async def test_a_login_shell_that_is_none_is_refused_with_what_it_said(
    tmp_path: Path, program: str
) -> None:
    server = set_up_sshd(tmp_path / "sshd", f"ForceCommand {program}")
    with pytest.raises(errors.GuestRefused, match="login shell"):
        async with server.shell():
            pass


async def test_commands_get_a_session_where_the_server_gives_none(tmp_path: Path) -> None:
    """As Dropbear does it: then a timeout must end the command, and not the connection."""
    held = '/bin/sh -c "$SSH_ORIGINAL_COMMAND"; exit $?'
    server = set_up_sshd(tmp_path / "sshd", f"ForceCommand {held}")
    async with server.shell() as shell, shell.stream(sh("echo; sleep 1000")) as other:
        await anext(aiter(other))
        ran = await shell.exec(sh("echo said; sleep 1000", timeout_s=0.5))
        assert (ran.stdout, ran.exit.timed_out) == (b"said\n", True)
        assert len(await shell.jobs()) == 1
        assert (await shell.exec(sh("exit 7"))).exit == Exit(7)


async def test_a_guest_reports_nothing_until_its_connection_ends(server: Sshd) -> None:
    async with server.shell() as shell:
        server.processes[0].kill()
        assert [event async for event in shell.events()] == []
        with pytest.raises(errors.MachineUnreachable, match="has ended"):
            await shell.ping()


async def test_what_ssh_lacks_is_refused_by_name(server: Sshd) -> None:
    async with server.shell() as shell:
        with pytest.raises(errors.NotOffered):
            await shell.fresh(Identity(hostname="other"))
        for name in ("-x", "a=b"):
            with pytest.raises(errors.NotOffered):
                await shell.exec(Command([name]))


@pytest.mark.parametrize("program", ["poweroff", "reboot"])
async def test_a_guest_is_told_to_go_down_by_its_own_program(tmp_path: Path, program: str) -> None:
    os.mkfifo(tmp_path / "asked")
    script = f"echo asked >{tmp_path}/asked"
    async with shell_with(tmp_path, program, script) as shell:
        await shell.shutdown(reboot=program == "reboot")
        told = await anyio.to_thread.run_sync((tmp_path / "asked").read_text)
    assert told == "asked\n"


async def test_variables_of_any_name_reach_the_command(server: Sshd) -> None:
    env = {"UID": "1", "a.b": "c d", "IFS": "x", "_": "'", "PATH": "/bin:/usr/bin"}
    async with server.shell() as shell:
        ran = await shell.exec(Command(["env"], env=env))
    assert {f"{name}={value}" for name, value in env.items()} <= {*ran.stdout.decode().splitlines()}


async def test_a_terminal_is_hung_up_with_its_command(server: Sshd) -> None:
    async with server.shell() as shell:
        command = Command(["/bin/sh", "-c", "echo $$; sleep 1000"], terminal=Terminal())
        async with shell.stream(command) as process:
            pid = int((await anext(aiter(process))).data)
        while await shell.jobs():
            await shell.ping()
        assert (await shell.exec(Command(["test", "-e", f"/proc/{pid}"]))).exit == Exit(1)


# What is left.


async def test_a_put_that_is_broken_off_leaves_nothing(server: Sshd, tmp_path: Path) -> None:
    async def stuck() -> AsyncGenerator[bytes]:
        yield b"begin"
        begun.set()
        await anyio.sleep_forever()

    begun = anyio.Event()
    folder = tmp_path / "folder"
    folder.mkdir()
    async with server.shell() as shell:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: shell.put(str(folder / "file"), stuck(), size=10))
            await begun.wait()
            tasks.cancel_scope.cancel()
        look = Command(["ls", "-A", str(folder)])
        while (await shell.exec(look)).stdout:
            pass


async def test_the_end_of_a_connection_ends_what_was_left_and_nothing_else(
    server: Sshd, tmp_path: Path
) -> None:
    for name in ("left", "in-background"):
        os.mkfifo(tmp_path / name)
    async with server.shell() as shell:
        left = f"echo; cat {tmp_path}/left"
        async with shell.stream(sh(left)) as process:
            await anext(aiter(process))
        await shell.exec(sh(f"cat {tmp_path}/in-background >{tmp_path}/copy &"))
    async with server.shell() as shell:
        await shell.exec(sh(f"echo heard >{tmp_path}/in-background"))
        while (await shell.exec(sh(f"cat {tmp_path}/copy"))).stdout != b"heard\n":
            pass
        # Nobody reads it any more, so nobody can open it to write without waiting.
        nobody = "import os; os.open('{}', os.O_WRONLY | os.O_NONBLOCK)"
        command = Command(["python3", "-c", nobody.format(tmp_path / "left")])
        while b"ENXIO" not in (await shell.exec(command)).stderr.replace(b"Errno 6", b"ENXIO"):
            pass


async def test_calls_cancelled_at_any_moment_leave_no_command(server: Sshd, tmp_path: Path) -> None:
    seed = random.Random(7)
    async with server.shell() as shell:
        for number in range(40):
            with anyio.move_on_after(seed.random() * 0.05):
                await shell.exec(sh(f"echo $$ >{tmp_path}/pid{number}; exec sleep 1000"))
        assert (await shell.exec(sh("echo through"))).stdout == b"through\n"
        alive = f"for f in {tmp_path}/pid*; do kill -0 $(cat $f) && echo $f; done 2>/dev/null"
        # One that was not heard of yet is ended as soon as it is.
        while (await shell.exec(sh(alive))).stdout:
            pass
        assert await shell.jobs() == []


async def test_thousands_of_small_commands_leak_nothing(server: Sshd, *, whole: bool) -> None:
    async with server.shell(within_s=600) as shell:
        await shell.exec(TRUE)
        before = await _held_at_rest()
        for _ in range(300 if whole else 20):
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(shell.exec, TRUE)
        assert await _held_at_rest() == before


async def _held_at_rest() -> tuple[int, int]:
    """Count tasks and descriptors, once nothing holds a line any more."""
    while gc.collect() >= 0 and any(isinstance(thing, Line) for thing in gc.get_objects()):
        await anyio.lowlevel.checkpoint()
    return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names are all that is counted

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from microvm_orchestrator import errors, proc

SOON_S = 20.0


def python(script: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script]


async def line_of(reader: proc.Reader | None) -> str:
    assert reader is not None
    said = b""
    while not said.endswith(b"\n"):
        chunk = await reader.read()
        assert chunk, f"it ended after {said!r}"
        said += chunk
    return said.decode().strip()


async def ended(pid: int) -> None:
    """Wait until a process that is no child of ours has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(handle)
    finally:
        os.close(handle)


async def test_a_command_that_ends_well_gives_its_output_and_the_end_of_its_complaints() -> None:
    done = await proc.run(
        python("import sys; print('out'); print('err', file=sys.stderr)"), timeout_s=SOON_S
    )
    assert done == proc.Finished(0, b"out\n", "err\n", truncated=False)


async def test_a_command_that_fails_tells_its_words_its_status_and_its_last_lines() -> None:
    script = "import sys; [print('line', n, file=sys.stderr) for n in range(99)]; sys.exit(7)"
    with pytest.raises(errors.CommandFailed, match="ended with status 7") as caught:
        await proc.run(python(script), timeout_s=SOON_S)
    assert caught.value.argv == tuple(python(script))
    assert caught.value.status == 7
    assert caught.value.message.endswith("line 98")
    assert "line 80" not in caught.value.message
    assert "line 0" in caught.value.stderr


async def test_a_status_that_was_expected_is_no_failure() -> None:
    done = await proc.run(python("raise SystemExit(3)"), timeout_s=SOON_S, statuses=(0, 3))
    assert done.status == 3


async def test_a_command_ended_by_a_signal_is_told_by_its_name() -> None:
    with pytest.raises(errors.CommandFailed, match="was ended by SIGSEGV") as caught:
        await proc.run(python("import os; os.kill(os.getpid(), 11)"), timeout_s=SOON_S)
    assert caught.value.status == -signal.SIGSEGV


async def test_a_program_that_does_not_exist_is_told_by_its_name() -> None:
    with pytest.raises(errors.CommandFailed, match="no-such-program cannot be started"):
        await proc.run(["no-such-program"], timeout_s=SOON_S)


async def test_a_folder_that_does_not_exist_is_told_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(errors.CommandFailed, match="no-such-folder"):
        await proc.run(python("pass"), timeout_s=SOON_S, cwd=tmp_path / "no-such-folder")


async def test_a_command_gets_its_input_its_folder_its_environment_and_its_files(
    tmp_path: Path,
) -> None:
    handle = os.memfd_create("given")
    os.write(handle, b"passed on")
    script = (
        "import os, sys; print(os.getcwd(), sorted(os.environ), len(sys.stdin.read()),"
        f"os.pread({handle}, 99, 0))"
    )
    try:
        done = await proc.run(
            python(script),
            timeout_s=SOON_S,
            cwd=tmp_path,
            env={"ONLY": "this", "LC_ALL": "C.UTF-8"},
            stdin=b"x" * 1_000_000,
            pass_fds=[handle],
        )
    finally:
        os.close(handle)
    assert done.stdout.decode() == f"{tmp_path} ['LC_ALL', 'ONLY'] 1000000 b'passed on'\n"


async def test_a_command_may_leave_its_input_unread() -> None:
    done = await proc.run(python("print('enough')"), timeout_s=SOON_S, stdin=b"x" * 10_000_000)
    assert done.stdout == b"enough\n"


async def test_a_flood_on_both_streams_is_read_to_its_end_and_kept_within_bounds() -> None:
    script = (
        "import os, threading\n"
        "def flood(fd, mark):\n"
        "    for _ in range(300): os.write(fd, mark * 65536)\n"
        "    os.write(fd, b'end')\n"
        "threads = [threading.Thread(target=flood, args=a) for a in ((1, b'o'), (2, b'e'))]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    done = await proc.run(python(script), timeout_s=SOON_S, cap=1000)
    assert done.stdout == b"o" * 1000
    assert done.truncated
    assert done.stderr.endswith("eend")
    assert len(done.stderr) <= 1 << 16


async def test_output_of_exactly_the_cap_is_not_truncated() -> None:
    done = await proc.run(python("print('x' * 99)"), timeout_s=SOON_S, cap=100)
    assert len(done.stdout) == 100
    assert not done.truncated


async def test_a_command_may_close_its_output_long_before_it_ends(tmp_path: Path) -> None:
    # It ends when the test writes into the pipe, which happens after its output has closed.
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = "import os, sys; os.close(1); os.close(2); open(sys.argv[1]).read(); os._exit(5)"
    argv = [*python(script), fifo]
    async with proc.spawn(argv, stdout=proc.PIPE) as process:
        assert process.stdout is not None
        with anyio.fail_after(SOON_S):
            assert await process.stdout.read() == b""
            assert process.status is None
            fifo.write_text("end")
            assert await process.wait() == 5


async def test_a_command_that_takes_too_long_is_stopped_with_its_children() -> None:
    script = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if child: print(child, file=sys.stderr, flush=True)\n"
        "time.sleep(1000)\n"
    )
    with pytest.raises(errors.CommandFailed, match="took longer than 2 s") as caught:
        await proc.run(python(script), timeout_s=2)
    assert caught.value.status is None
    with anyio.fail_after(SOON_S):
        await ended(int(caught.value.stderr))


async def test_grandchildren_end_with_the_one_who_started_them() -> None:
    script = (
        "import os, sys, time\n"
        "child = os.fork()\n"
        "if not child: time.sleep(1000)\n"
        "print(child, flush=True)\n"
    )
    with anyio.fail_after(SOON_S):
        done = await proc.run(python(script), timeout_s=SOON_S)
        await ended(int(done.stdout))


async def test_a_stray_that_holds_the_output_open_does_not_hold_up_the_caller() -> None:
    script = (
        "import os, time\n"
        "child = os.fork()\n"
        "if not child: os.setsid(); os.write(1, b'%d ' % os.getpid()); time.sleep(1000)\n"
        "os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG)\n"
        "while os.getsid(child) != child: time.sleep(0.001)\n"
        "print(child)\n"
    )
    with anyio.fail_after(SOON_S):
        done = await proc.run(python(script), timeout_s=SOON_S)
    stray = int(done.stdout.split()[0])
    os.kill(stray, signal.SIGKILL)
    with anyio.fail_after(SOON_S):
        await ended(stray)


async def test_leaving_the_block_asks_first_and_kills_who_does_not_listen() -> None:
    script = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(1, b'asked\\n'))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1000)\n"
    )
    async with proc.spawn(python(script), stdout=proc.PIPE) as process:
        with anyio.fail_after(SOON_S):
            assert await line_of(process.stdout) == "ready"
            process.signal(signal.SIGTERM)
            assert await line_of(process.stdout) == "asked"
            assert await process.stop(grace_s=0.2) == -signal.SIGKILL
    assert process.status == -signal.SIGKILL


async def test_one_who_listens_ends_with_its_own_status() -> None:
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(1000)\n"
    )
    async with proc.spawn(python(script), stdout=proc.PIPE) as process:
        with anyio.fail_after(SOON_S):
            assert await line_of(process.stdout) == "ready"
    assert process.status == 4


async def test_cancelling_stops_the_process_before_the_cancelling_goes_on() -> None:
    pid = 0
    with anyio.move_on_after(SOON_S) as scope:
        async with proc.spawn(python("import time; time.sleep(1000)")) as process:
            pid = process.pid
            scope.cancel()
            await process.wait()
    assert scope.cancelled_caught
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_cancelling_a_command_leaves_nothing_running(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = "import os, sys, time; print(os.getpid(), file=open(sys.argv[1], 'w')); time.sleep(99)"
    pid = 0

    async def run() -> None:
        await proc.run([*python(script), fifo], timeout_s=SOON_S)

    with anyio.fail_after(SOON_S):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            pid = int(await anyio.to_thread.run_sync(fifo.read_text))
            group.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_an_error_in_the_block_stops_the_process_and_goes_on() -> None:
    class Oops(Exception):
        pass

    process = None
    with pytest.raises(Oops):
        async with proc.spawn(python("import time; time.sleep(1000)")) as process:
            raise Oops
    assert process is not None
    assert process.status == -signal.SIGTERM


async def test_several_may_wait_for_one_process() -> None:
    seen: list[int] = []

    async def wait(process: proc.Process) -> None:
        seen.append(await process.wait())

    async with proc.spawn(python("input()"), stdin=proc.PIPE) as process:
        with anyio.fail_after(SOON_S):
            async with anyio.create_task_group() as group:
                for _ in range(5):
                    group.start_soon(wait, process)
                await anyio.lowlevel.checkpoint()
                assert process.stdin is not None
                await process.stdin.write(b"\n")
    assert seen == [0] * 5


async def test_a_process_leads_a_session_of_its_own() -> None:
    done = await proc.run(
        python("import os; print(os.getpid() == os.getsid(0) == os.getpgid(0))"), timeout_s=SOON_S
    )
    assert done.stdout == b"True\n"


async def test_a_signal_after_the_end_reaches_nobody() -> None:
    async with proc.spawn(python("pass")) as process:
        with anyio.fail_after(SOON_S):
            assert await process.wait() == 0
        process.signal(signal.SIGKILL)
    assert process.status == 0


async def test_a_command_writes_files_with_the_rights_it_is_given(tmp_path: Path) -> None:
    script = f"import os; os.close(os.open({str(tmp_path / 'made')!r}, os.O_CREAT, 0o777))"
    await proc.run(python(script), timeout_s=SOON_S, umask=0o027)
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may act as another user")
async def test_a_command_runs_as_the_user_it_is_given_and_in_no_other_group() -> None:
    # Not this Python, which may lie where nobody else can read.
    done = await proc.run(["id"], timeout_s=SOON_S, user=(12345, 54321))
    assert done.stdout == b"uid=12345 gid=54321 groups=54321\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may act as anybody")
async def test_to_act_as_another_user_is_refused_to_whoever_is_not_root() -> None:
    with pytest.raises(errors.CommandFailed):
        await proc.run(["id"], timeout_s=SOON_S, user=(12345, 54321))

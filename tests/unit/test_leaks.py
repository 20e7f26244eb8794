"""The check that nothing is left behind sees each kind of thing, and no more."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio.to_thread
from anyio.from_thread import start_blocking_portal

import leaks


def test_a_running_child_is_named_by_its_command_and_ended(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    with subprocess.Popen(["sleep", "60"]) as child:
        # The kernel shows a name only some time after the exec that gives it.
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            os.sched_yield()
        assert before.find(grace_s=0.01) == [f"process {child.pid}: sleep 60"]
        assert before.find() == []


def test_a_daemonised_grandchild_is_seen(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    # For a moment after it has become another program it has no words.
    script = (
        "import pathlib, subprocess as s; c = s.Popen(['sleep', '60'], stdout=-3, stderr=-3)\n"
        "while not pathlib.Path(f'/proc/{c.pid}/cmdline').read_bytes(): pass\n"
        "print(c.pid)"
    )
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert before.find(grace_s=0.01) == [f"process {int(ran.stdout)}: sleep 60"]


def test_a_child_that_is_ending_is_waited_for(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    with subprocess.Popen(["sleep", "60"]) as child:
        child.send_signal(signal.SIGTERM)
        assert before.find() == []


def test_a_running_thread_is_named(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait, name="forgotten")
    thread.start()
    assert before.find(grace_s=0.01) == ["thread forgotten in wait < wait < run"]
    go_on.set()
    thread.join()
    assert before.find() == []


def test_a_thread_of_a_loops_own_is_no_leak_as_long_as_the_loop_is_open(scratch: Path) -> None:
    go_on = threading.Event()
    loop = asyncio.new_event_loop()
    before = leaks.Before.take(scratch)
    waiting = loop.run_in_executor(None, go_on.wait)
    assert before.find(grace_s=0.01) == []
    waiting.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert before.find(grace_s=0.01) == ["thread asyncio_0 in wait < wait < run"]
    go_on.set()
    assert before.find() == []


def test_a_worker_of_an_open_loop_is_a_leak_while_a_call_is_in_it(scratch: Path) -> None:
    go_on = threading.Event()
    with start_blocking_portal() as portal:
        before = leaks.Before.take(scratch)
        portal.call(anyio.to_thread.run_sync, threading.get_ident)
        assert before.find(grace_s=0.01) == []
        called = portal.start_task_soon(anyio.to_thread.run_sync, go_on.wait)
        while not (found := before.find(grace_s=0.01)):
            assert not called.done()
        assert found == ["thread AnyIO worker thread in wait < wait < run"]
        go_on.set()
        called.result()
        assert before.find() == []


def test_a_thread_is_not_taken_for_one_of_a_loop_by_its_name(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    go_on = threading.Event()
    with ThreadPoolExecutor(1, thread_name_prefix="asyncio") as executor:
        executor.submit(go_on.wait)
        assert before.find(grace_s=0.01) == ["thread asyncio_0 in wait < wait < run"]
        go_on.set()
    assert before.find() == []


def test_an_open_socket_is_named_with_its_address(scratch: Path, tmp_path: Path) -> None:
    before = leaks.Before.take(scratch)
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        (found,) = before.find()
        assert found.startswith(f"open file {listener.fileno()}: socket:[")
        assert found.endswith(f"AF_UNIX '{path}'")
    assert before.find() == []


def test_a_temporary_file_of_a_child_is_named(scratch: Path) -> None:
    before = leaks.Before.take(scratch)
    script = "import tempfile; print(tempfile.mkdtemp(prefix='lost-'))"
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    path = ran.stdout.strip()
    assert before.find() == [f"temporary file {path}"]
    Path(path).rmdir()


def test_what_was_there_before_is_no_leak(scratch: Path) -> None:
    reading, writing = os.pipe()
    with tempfile.TemporaryFile():
        assert leaks.Before.take(scratch).find() == []
    os.close(reading)
    os.close(writing)

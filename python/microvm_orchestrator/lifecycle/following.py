"""Hearing a program out while what it says is written down, on this host's disk.

Above are the steps of a run and the turns of an agent; below, the commands and the file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from microvm_orchestrator.lifecycle.output import OutputFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from microvm_orchestrator.execs.job import Job
    from microvm_orchestrator.lifecycle.program import Listener


async def follow(job: Job, path: Path, listener: Listener, on_heard: Callable[[str], None]) -> None:
    """Hear a command until its end, and tell each time what it said last to whom it works for.

    What an earlier daemon had written down is heard first.
    """
    output = await anyio.to_thread.run_sync(OutputFile, path)
    try:
        for piece in output.before():
            listener.feed(piece.channel, piece.data)
        with job.tap(output.kept) as tap:
            async for piece in tap.pieces():
                output.add(piece.channel, piece.data)
                listener.feed(piece.channel, piece.data)
                on_heard(listener.saying)
    finally:
        output.close()
    await job.ended.wait()

"""The commands of this guest by their ids: `exec`, `attach`, `jobs`, and FORGET.

An id is started once. A job stays, with how it ended, until the host forgets it; so a host that
lost its connection can ask, and the answer `not-found` means that it never started.
"""

from __future__ import annotations

import os

import wire
from job import Job, size
from stream import Refused, Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from children import Children
    from engine import Engine
    from link import Link, Opener

MAX_JOBS = 256
_ID = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")


class Jobs:
    """Every job that the host has not forgotten."""

    def __init__(self, engine: Engine, children: Children) -> None:
        self.engine = engine
        self.children = children
        self.by_name: dict[str, Job] = {}
        # Told when a command was killed: perhaps the kernel was out of memory.
        self.on_killed = lambda: None

    @property
    def openers(self) -> dict[str, Opener]:
        return {"exec": self.open_exec, "attach": self.open_attach, "jobs": self.open_jobs}

    def open_exec(self, link: Link, number: int, fields: wire.Fields) -> Stream:
        name = _name(fields)
        if name in self.by_name:
            raise Refused("exists", f"the job {name} was started before")
        if len(self.by_name) >= MAX_JOBS:
            raise Refused("busy", f"{MAX_JOBS} jobs are kept; forget some")
        keep = _keep(fields)
        job = Job(self.engine, name)
        job.start(self.children, fields)
        job.on_killed = self.on_killed
        self.by_name[name] = job
        return Attached(link, number, job, 0, keep=keep)

    def open_attach(self, link: Link, number: int, fields: wire.Fields) -> Stream:
        name = _name(fields)
        job = self.by_name.get(name)
        if job is None:
            raise Refused("not-found", f"there is no job {name}")
        if job.attached:
            raise Refused("busy", f"the job {name} is attached already")
        offset = wire.integer(fields, "offset", 0, job.output.end, 0)
        return Attached(link, number, job, offset, keep=_keep(fields))

    def open_jobs(self, link: Link, number: int, _: wire.Fields) -> None:
        """List every job: id, offset behind its output, and whether it runs."""
        jobs = [
            b"%s %d %s" % (name.encode(), job.output.end, b"ended" if job.over else b"running")
            for name, job in self.by_name.items()
        ]
        Stream(link, number).result({"jobs": jobs})

    def forget(self, name: str) -> None:
        """Let go of a job that has ended; one that runs stays."""
        job = self.by_name.get(name)
        if job and job.over:
            del self.by_name[name]


class Attached(Stream):
    """A host that follows a job."""

    def __init__(self, link: Link, number: int, job: Job, offset: int, *, keep: bool) -> None:
        super().__init__(link, number)
        self.job = job
        self._keep = keep  # the job goes on when the host lets go of the stream
        self._told = False
        self._cancelled = False
        self._offset = job.attach(self, offset)

    def produce(self) -> None:
        job = self.job
        if job.starting:
            return
        if not self._told and not job.failure:
            self._told = True
            given = {"input": job.input_bytes, "input_over": int(job.input_over)}
            self.note({"pid": job.pid, "offset": self._offset, **given})
        if self._cancelled:
            job.quiet()
        elif job.output.waits:
            channel, payload = job.output.peek()
            if self.affords(payload):
                self.data(payload, channel)
                job.sent()
                self.link.enqueue(self)
            return
        if job.over:
            self._finish()

    def on_data(self, channel: int, payload: bytes) -> None:
        if channel != wire.MAIN:
            raise wire.Broken("input on a channel of output")
        self.job.input_bytes += len(payload)
        self.job.type(self, payload)

    def on_note(self, fields: wire.Fields) -> None:
        if signal := wire.integer(fields, "signal", 0, 64, 0):
            self.job.signal(signal)
        if "rows" in fields:
            self.job.resize(size(fields))

    def on_end(self) -> None:
        self.job.end_typing(self)

    def on_cancel(self) -> None:
        if self._keep:
            self.fail("cancelled", "detached by the host")
            return
        self._cancelled = True
        self.job.stop(b"cancelled")
        self.link.enqueue(self)

    def on_over(self) -> None:
        if self.job.attached is self:
            self.job.detach()

    def _finish(self) -> None:
        job = self.job
        if job.failure:
            self.fail(job.failure.code, job.failure.message)
            return
        code = os.waitstatus_to_exitcode(job.status or 0)
        end = {"offset": job.output.end, "why": job.why}
        self.result({"code": max(code, 0), "signal": max(-code, 0), **end})


def _name(fields: wire.Fields) -> str:
    name = wire.blob(fields, "id", 64).decode("ascii", "replace")
    if not name or not _ID.issuperset(name):
        raise wire.Broken("an id is 1 to 64 of A-Z a-z 0-9 . _ -")
    return name


def _keep(fields: wire.Fields) -> bool:
    return bool(wire.integer(fields, "keep", 0, 1, 0))

"""Kernel logs of machines: marked, collected from a mark on, and made events of.

Above are the front ends; below, the kernel logs of this host.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from microvm_orchestrator.clusters.kernel_log import at_least
from microvm_orchestrator.clusters.kernel_ring import PREFIX, is_mark
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.kernel_log import (
    KernelLine,
    KernelMark,
    KernelReport,
    Level,
    Since,
    Source,
    Trouble,
)
from microvm_orchestrator.model.values import Flag
from microvm_orchestrator.service.calls import Answer, Call, Caller, Effect, declare
from microvm_orchestrator.service.clusters import NamedCluster
from microvm_orchestrator.service.machines import NamedMachine
from microvm_orchestrator.service.service import Service, actor

_MOST_REPORTS = 50
_MOST_REPORT_LINES = 50


class LevelFilter(StrEnum):
    """Which lines are shown."""

    ALL = "all"
    WARN = "warn+"
    ERR = "err+"


FLOORS = {LevelFilter.ALL: Level.DEBUG, LevelFilter.WARN: Level.WARN, LevelFilter.ERR: Level.ERR}


class MarkKernelLog(NamedMachine):
    """A machine whose kernel log gets a mark."""


class CollectKernelLog(NamedMachine):
    """Which part of a kernel's log."""

    since: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="a mark of this machine; without it, all that there is"
    )
    level: LevelFilter = Field(
        default=LevelFilter.ALL,
        description="only lines as grave as that; reports and counts are of all. A console does "
        "not tell how grave a line is: all of it is shown",
    )
    limit: Annotated[int, Field(strict=True, ge=1, le=5000)] = Field(
        default=1000, description="at most so many lines, the newest"
    )


class KernelLogEvents(NamedCluster):
    """A cluster whose kernels are to be heard."""

    off: Flag = Field(default=False, description="no more, instead of from now on")


class KernelEvents(Answer):
    """Whether trouble in the kernels of a cluster becomes events."""

    cluster_id: str
    on: bool
    nodes: list[str] = Field(description="those that are heard")


class KernelLogRead(Answer):
    """What a kernel has said, and what that tells."""

    machine_id: str
    source: Source = Field(
        description="ring: of the kernel itself; console: the last words of one that answers no "
        "more"
    )
    since: Since = Field(
        description="lost: the mark is gone from the ring, or of an earlier boot; what is shown "
        "came after it, and some may be lacking"
    )
    reason: str = Field(description="why it is the console's, or what is lost")
    panic_detected: bool
    oops_detected: bool
    warning_count: int = Field(description="lines by which the kernel begins a warning of its own")
    error_count: int = Field(
        description="lines as grave as err; on a console, those that begin a report"
    )
    reports: list[KernelReport] = Field(
        description="what went wrong, each once, the first lines of each"
    )
    more_reports: int = Field(description="reports beyond those; the gravest are shown")
    lines: list[KernelLine]
    cut: bool = Field(description="something older than the lines is not shown")


@declare("kernel_log_mark", "POST /v1/machines/{machine}/kernel-log/marks", role=Role.OPERATOR)
async def kernel_log_mark(service: Service, caller: Caller, request: MarkKernelLog) -> KernelMark:
    """Write a mark into the log of a machine's kernel, and see that it stands there.

    What comes later is collected by `kernel_log_collect` with `since`.
    """
    by = actor(caller, "kernel_log_mark")
    machine = await service.host.machines.get(request.machine, by)
    return await service.host.kernel_logs.mark(machine, by)


@declare(
    "kernel_log_collect",
    "GET /v1/machines/{machine}/kernel-log",
    role=Role.VIEWER,
    effect=Effect.READ,
    waits=True,
)
async def kernel_log_collect(
    service: Service, caller: Caller, request: CollectKernelLog
) -> KernelLogRead:
    """Read what a machine's kernel has said, and find panics, oopses and the like in it.

    Of a machine that answers no more it is what the console kept, where that tells of trouble; if
    it does not, the call fails: silence is no clean log.
    """
    machine = await service.host.machines.get(request.machine, actor(caller, "kernel_log_collect"))
    since = request.since.removeprefix(PREFIX) if request.since else None
    log = await service.host.kernel_logs.collect(machine, since)
    floor = FLOORS[request.level]
    shown = [line for line in log.lines if at_least(line, floor)]
    reports = sorted(log.reports, key=lambda report: report.trouble.rank)[:_MOST_REPORTS]
    return KernelLogRead(
        machine_id=machine.machine_id,
        source=log.source,
        since=log.since,
        reason=log.reason,
        panic_detected=log.has(Trouble.PANIC),
        oops_detected=log.has(Trouble.OOPS),
        warning_count=sum(line.trouble is Trouble.WARN and line.from_kernel for line in log.lines),
        error_count=sum(_is_error(line) for line in log.lines),
        reports=[short(report) for report in log.reports if report in reports],
        more_reports=log.more_reports + max(0, len(log.reports) - _MOST_REPORTS),
        lines=shown[-request.limit :],
        cut=log.cut or len(shown) > request.limit,
    )


@declare(
    "kernel_log_events",
    "POST /v1/clusters/{cluster}/kernel-log/events",
    role=Role.OPERATOR,
    idempotent=True,
)
async def kernel_log_events(
    service: Service, caller: Caller, request: KernelLogEvents
) -> KernelEvents:
    """Let trouble in the kernels of a cluster's nodes become events, from now on or no more.

    `kernel-log.trouble` tells of a panic, an oops, a hung task and the like, once for each boot;
    `kernel-log.silent` that a node has ended or does not answer, `kernel-log.heard` that it does
    again, `kernel-log.dropped` that it says more than is read. `event_wait` waits for them, with
    the cluster's id as subject. A node that makes trouble without end has an allowance: what goes
    beyond it is counted in `untold` of its next event. It lasts until it is switched off or the
    cluster is destroyed.
    """
    by = actor(caller, "kernel_log_events")
    events = service.host.kernel_events
    if request.off:
        cluster = await service.host.clusters.records.get(request.cluster, by)
        await events.switch_off(cluster, by)
        return KernelEvents(cluster_id=cluster.cluster_id, on=False, nodes=[])
    cluster = await service.host.clusters.records.standing(request.cluster, by)
    heard = await events.switch_on(cluster, by)
    names = [node.name for node in heard.nodes]
    return KernelEvents(cluster_id=cluster.cluster_id, on=True, nodes=names)


def _is_error(line: KernelLine) -> bool:
    if is_mark(line):
        return False
    if line.level is None:
        return line.from_kernel and line.trouble not in {None, Trouble.WARN}
    return at_least(line, Level.ERR)


def short(report: KernelReport) -> KernelReport:
    lines = report.lines[:_MOST_REPORT_LINES]
    return replace(
        report, lines=lines, more_lines=report.more_lines + len(report.lines) - len(lines)
    )


CALLS: tuple[Call, ...] = (kernel_log_mark, kernel_log_collect, kernel_log_events)

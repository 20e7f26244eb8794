"""`kernel-log`: what the kernels of machines say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from microvm_orchestrator import errors
from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.cluster import ClusterRef
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.duplex import Cut, lines_of, open_duplex
from microvm_orchestrator.cli.machine import MachineRef

app = typer.Typer(help="Kernel logs: what the kernels of machines say, and what that tells.")

BRIEF = ("trouble", "headline", "process", "rip", "count")
_SAID = (
    *("machine_id", "source", "since", "reason", "panic_detected", "oops_detected"),
    *("warning_count", "error_count", "cut"),
)


class Level(StrEnum):
    ALL = "all"
    WARN = "warn+"
    ERR = "err+"


@command(app, "mark", example="kernel-log mark box")
def mark(here: Session, machine: MachineRef) -> None:
    """Write a mark into the log of a machine's kernel, and see that it stands there."""
    here.tell("kernel_log_mark", {"machine": machine}, output.show)


@command(
    app,
    "collect",
    example="kernel-log collect box\nkernel-log collect box --since MARK --level warn+",
)
def collect(
    here: Session,
    machine: MachineRef,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="MARK", help="Only what came after this mark."),
    ] = None,
    level: Annotated[
        Level | None, typer.Option("--level", help="Only lines as grave as that; all by default.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="At most so many lines, the newest.")
    ] = None,
) -> None:
    """Read what a machine's kernel has said, and find panics, oopses and the like in it.

    Of a machine that answers no more it is what the console kept, where that tells of trouble.
    """
    given = {"machine": machine, "since": since, "level": level, "limit": limit}
    here.tell("kernel_log_collect", given, _show)


@command(
    app,
    "events",
    example="kernel-log events trio\nkernel-log events trio --off",
)
def events(
    here: Session,
    cluster: ClusterRef,
    off: Annotated[bool | None, typer.Option("--off", help="No more.", show_default=False)] = None,
) -> None:
    """Let trouble in the kernels of a cluster's nodes become events, from now on."""
    here.tell("kernel_log_events", {"cluster": cluster, "off": off})


@command(
    app,
    "watch",
    example="kernel-log watch trio\nkernel-log watch trio --node n1 --level warn+ --since MARK",
)
def watch(
    here: Session,
    cluster: ClusterRef,
    nodes: Annotated[
        list[str] | None,
        typer.Option("--node", metavar="NODE", help="Only this one; may be repeated."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="MARK", help="From a mark that all were given; from now by default."
        ),
    ] = None,
    level: Annotated[
        Level | None, typer.Option("--level", help="Only lines as grave as that; all by default.")
    ] = None,
) -> int:
    """Watch what the kernels of a cluster's nodes say, line by line, as they say it.

    What they tell by it is told beside: a panic, an oops, a hung task, once each; also what was
    dropped because a node says too much, and that one has ended or does not answer. It goes on
    until Ctrl-C. With --json each is an object.
    """
    given = {"cluster": cluster, "nodes": nodes, "since": since, "level": level}
    try:
        for news in lines_of(open_duplex(here.client, "kernel_log_watch", given)):
            if here.json:
                output.emit_value(news)
            else:
                output.line(_news_line(news))
    except Cut as cut:
        raise errors.Unavailable("the daemon went away", hint="watch again") from cut
    return failure.OK


def _news_line(news: dict[str, Any]) -> str:
    name = f"{news['node']:<12} "
    if news["what"] == "line":
        times = f" ({news['count']} times)" if news["count"] > 1 else ""
        return name + _line(news["line"]) + times
    if news["what"] == "report":
        report = news["report"]
        who = ", ".join(report[word] for word in ("process", "rip") if report.get(word))
        return f"{name}*** {report['trouble']}: {report['headline']}{who and f' ({who})'}"
    if news["what"] == "dropped":
        what = "bytes of its console" if news["source"] == "console" else "lines"
        return f"{name}*** {news['count']} {what} were not read: it says too much"
    how = news.get("state", "gone") if news["answers"] else f"{news.get('state', 'gone')}, silent"
    return f"{name}*** {how}{': ' * bool(news['reason'])}{news['reason']}"


def _line(line: dict[str, Any]) -> str:
    at = line.get("timestamp")
    when = " " * 15 if at is None else f"[{at:12.6f}] "
    return f"{when}{line.get('level') or '-':<6} {line['text']}"


def _show(answer: dict[str, Any]) -> None:
    for line in answer["lines"]:
        output.line(_line(line))
    if answer["lines"]:
        output.line("")
    output.record({name: answer[name] for name in _SAID})
    if answer["reports"]:
        output.line("")
        output.table(BRIEF, answer["reports"])

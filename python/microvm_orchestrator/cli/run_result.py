"""How a run is shown to people: how it stands, what came of it, what it used, what was merged.

Above sits the command; below, the drawing of records and tables.
"""

from __future__ import annotations

import signal
from typing import Any

from microvm_orchestrator.cli import artifact, output

Json = dict[str, Any]

# What has a place of its own below.
_APART = {"result", "merge", "usage", "artifacts", "left_out"}
_LISTS = {"commits", "files_changed", "commit_count", "file_count", "exit_code", "signal"}
_SHORT = 12


def show(answer: Json) -> None:
    """Show what `run_get` answers."""
    task, run = answer["task"], answer["run"]
    output.record({"task_id": task["task_id"], "state": task["state"], "title": task["title"]})
    if run is not None:
        plain = {name: value for name, value in run.items() if name not in _APART}
        output.record({**plain, "used": used(run["usage"])}, title="run")
        if run["result"]:
            _show_result(run["result"])
        _show_merge(run["merge"])
        if run["artifacts"] or run["left_out"]:
            output.line("\nartifacts")
            artifact.show(run)
    if answer["saying"]:
        output.line(answer["saying"])


def ended(result: Json) -> str:
    """Say how a program ended, as its status or its signal."""
    if result["signal"] is not None:
        number = int(result["signal"])
        known = number in {each.value for each in signal.Signals}
        how = f"signal {number}" + (f" ({signal.Signals(number).name})" if known else "")
    elif result["exit_code"] is not None:
        how = f"exit {result['exit_code']}"
    else:
        return ""
    return f"{how}, as its time was up" if result["timed_out"] else how


def used(usage: Json) -> str:
    """Say what a run used; what nothing was measured of is left out."""
    parts = [f"{usage['wall_s']:.1f} s"] if usage["wall_s"] else []
    if usage["cpu_s"] is not None:
        parts.append(f"{usage['cpu_s']:.1f} s of processors")
    if usage["memory_peak_mib"] is not None:
        parts.append(f"{usage['memory_peak_mib']:.0f} MiB of memory at most")
    if usage["requests"]:
        counted = " ".join(
            f"{usage[f'tokens_{name}']} {name}"
            for name in ("in", "out", "cached")
            if usage[f"tokens_{name}"]
        )
        parts.append(f"{usage['requests']} requests" + (f", tokens {counted}" if counted else ""))
    if usage["cost_usd"]:
        parts.append(f"${usage['cost_usd']:.4f}")
    return ", ".join(parts)


def _show_result(result: Json) -> None:
    plain = {name: value for name, value in result.items() if name not in _LISTS}
    output.record({"ended": ended(result), **plain}, title="result")
    if result["commits"]:
        output.line("\ncommits")
        rows = [{**each, "commit": each["commit"][:_SHORT]} for each in result["commits"]]
        output.table(("commit", "subject", "author", "at"), rows)
        _say_more(len(rows), result["commit_count"])
    if result["files_changed"]:
        output.line("\nfiles changed")
        for each in result["files_changed"]:
            before = f" (was {each['old_path']})" if each["old_path"] else ""
            output.line(f"{each['status']:<8}  {each['path']}{before}")
        _say_more(len(result["files_changed"]), result["file_count"])


def _show_merge(merge: Json) -> None:
    output.record(
        {name: value for name, value in merge.items() if name != "conflicts"}, title="merge"
    )
    for each in merge["conflicts"]:
        output.line(f"\nconflict in {each['path']}: {each['kind']}")
        for hunk in each["hunks"]:
            output.line(hunk.rstrip("\n"))


def _say_more(shown: int, count: int) -> None:
    if count > shown:
        output.line(f"and {count - shown} more")

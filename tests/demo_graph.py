"""The task graph at work, in a few seconds: `make demo` runs this after the machines.

Starts a daemon in a temporary directory, submits setup -> (build, lint) -> deploy over MCP, lets
two worker processes claim and complete it over MCP, and prints the journal while it is written.
Everything that speaks to the daemon here is standard library: a line of JSON out, a line in.
The exit status is 0 only if what was promised was seen.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from demo_stage import PATIENCE_S, PROGRAM, Mcp, daemon

GROUP = "demo"
PYTHON = "python3"
# What each task is: a command that a worker runs in the demo's directory.
COMMANDS = {
    "setup": "mkdir -p app out && echo 'print(\"Hello from a task graph\")' > app/__main__.py",
    "build": f"{PYTHON} -m zipapp app -o app.pyz",
    "lint": f"{PYTHON} -m tabnanny app && {PYTHON} -m compileall -q app",
    "deploy": f"cp app.pyz out/hello.pyz && {PYTHON} out/hello.pyz",
}
# Who comes after whom, and who can do it.
AFTER = {"build": ["setup"], "lint": ["setup"], "deploy": ["build", "lint"]}
NEEDS = {"build": ["compiler"], "lint": ["linter"]}
WORKERS = {"ada": "compiler", "bob": "linter"}
DRAWING = """
            ┌── build (needs a compiler) ──┐
   setup ───┤                              ├─── deploy
            └── lint (needs a linter) ─────┘
"""
COLOURS = {"done": "32", "claimed": "34", "progress": "34", "ready": "36", "failed": "31"}


def work(path: Path, name: str) -> None:
    """Be a worker: claim what can be done until the graph has no more tasks."""
    mcp = Mcp(path)
    mcp.call("worker_register", worker=name, capabilities=[WORKERS[name]])
    while True:
        cursor = mcp.call("event_wait", after="now")["cursor"]
        claim = mcp.call("task_claim", worker=name, groups=[GROUP])
        for claimed in claim["tasks"]:
            task, token = claimed["task"], claimed["lease"]["token"]
            held = {"task_id": task["task_id"], "token": token, "worker": name}
            said = f"runs {task['input']['command']}"
            mcp.call("task_heartbeat", **held, progress={"fraction": 0.5, "message": said})
            do(mcp, held, task["input"]["command"])
        if claim["verdict"] == "all_done":
            mcp.close()
            return
        if claim["verdict"] != "claimed":
            # Others are at work: what they do may free something.
            mcp.call("event_wait", after=cursor, groups=[GROUP], timeout_s=PATIENCE_S / 2)


def do(mcp: Mcp, held: dict[str, Any], command: str) -> None:
    ran = subprocess.run(
        ["sh", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if ran.returncode:
        mcp.call("task_fail", **held, message=ran.stderr[-1000:], retryable=False)
    else:
        mcp.call("task_complete", **held, result={"said": ran.stdout.strip()})


def submit(mcp: Mcp) -> None:
    tasks = [
        {
            "key": key,
            "input": {"command": command},
            "depends_on": AFTER.get(key, []),
            "capabilities": NEEDS.get(key, []),
        }
        for key, command in COMMANDS.items()
    ]
    mcp.call("graph_submit", tasks=tasks, group=GROUP)


def journal(mcp: Mcp) -> Iterator[dict[str, Any]]:
    """Yield the events of the daemon as they are written, until the last task has ended."""
    cursor, left = "begin", set(COMMANDS)
    while left:
        read = mcp.call("event_wait", after=cursor, timeout_s=PATIENCE_S / 2)
        if not read["events"]:
            raise RuntimeError(f"nothing happens any more, and {', '.join(left)} are left")
        cursor = read["cursor"]
        for event in read["events"]:
            yield event
            if event["kind"] in {"task.done", "task.failed", "task.cancelled"}:
                left.discard(event["body"]["key"])


def written(event: dict[str, Any], began: datetime) -> str:
    body: dict[str, Any] = event["body"]
    noun, _, kind = event["kind"].partition(".")
    seconds = (datetime.fromisoformat(event["at"]) - began).total_seconds()
    what = body.get("key", "")
    who = event["subject"] if noun == "worker" else body.get("worker", "")
    progress: dict[str, Any] = body.get("progress", {})
    more = progress.get("message") or body.get("reason", "")
    line = f"{event['seq']:>4}  {seconds:6.3f} s  {kind:<10}  {what:<6}  {who:<3}  {more}"
    if not sys.stdout.isatty():
        return line.rstrip()
    shown = line[: shutil.get_terminal_size().columns].rstrip()
    return f"\x1b[{COLOURS[kind]}m{shown}\x1b[0m" if kind in COLOURS else shown


def broken_promises(events: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> list[str]:
    """Hold what was seen against what was promised."""
    seen = [(event["kind"], event["body"].get("key")) for event in events]
    claims = Counter(key for kind, key in seen if kind == "task.claimed")
    wrong = [f"{task['key']} is {task['state']}" for task in tasks if task["state"] != "done"]
    wrong += [f"{key} was claimed {claims[key]} times" for key in COMMANDS if claims[key] != 1]
    wrong += [
        f"{key} was claimed before {first} was done"
        for key, before in AFTER.items()
        for first in before
        if seen.index(("task.claimed", key)) < seen.index(("task.done", first))
    ]
    if [event["seq"] for event in events] != list(range(1, len(events) + 1)):
        wrong.append("the journal has gaps")
    if {task["worker"] for task in tasks} != set(WORKERS):
        wrong.append("one worker did everything")
    return wrong


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        print(f"A graph of four tasks, and two workers: {' and '.join(WORKERS)}.\n{DRAWING}")
        with daemon(folder) as (path, process):
            mcp = Mcp(path)
            submit(mcp)
            command = [sys.executable, Path(__file__).resolve(), "work", path]
            # What they run is the Python of this environment, whatever the machine has.
            env = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
            workers = [
                subprocess.Popen([*command, worker], cwd=folder, env=env) for worker in WORKERS
            ]
            try:
                events: list[dict[str, Any]] = []
                print("The journal:\n\n   #     after    event       task    who")
                for event in journal(mcp):
                    events.append(event)
                    print(written(event, datetime.fromisoformat(events[0]["at"])), flush=True)
                ended = [worker.wait(PATIENCE_S) for worker in workers]
            finally:
                for worker in workers:
                    worker.kill()
                    worker.wait()
            tasks = mcp.call("group_tasks", group=GROUP)["items"]
            mcp.close()
        wrong = broken_promises(events, tasks)
        wrong += [f"a worker ended with {status}" for status in ended if status]
        wrong += [f"the daemon ended with {process.returncode}"] if process.returncode else []
    for promise in wrong:
        print(f"demo: {promise}", file=sys.stderr)
    if wrong:
        return 1
    said = next(task["result"]["said"] for task in tasks if task["key"] == "deploy")
    print(f'\ndemo: 4 tasks done by 2 workers, each claimed once, in order; deploy said "{said}"')
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(Path(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())

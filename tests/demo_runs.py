"""Three tasks in machines and their commits merged: `make demo` runs this first.

Makes a repository, starts a daemon in a temporary directory, and asks it over MCP to run a script,
a command and Claude Code on it at once, each in a machine of its own. The agent is the real one, as
npm has it; the model that it asks is a list of turns here, behind a real HTTP server. It has no
key: the daemon adds one on the way. Then all three are merged, and each step's time is shown.
The exit status is 0 only if what was promised was seen.
"""

from __future__ import annotations

import itertools
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

import git_repos
from demo_stage import (
    LONG_S,
    PATIENCE_S,
    Mcp,
    daemon,
    left_behind,
    share_images,
)
from model_api import ModelApi, open_model_api, say, turn, use

# The release that the driver was written for and the tests run.
_PACKAGE = json.loads((Path(__file__).parent / "judges/package.json").read_text())
CLAUDE = _PACKAGE["optionalDependencies"]["@anthropic-ai/claude-code-linux-x64"]
# In the daemon's store and nowhere else; the model answers nobody who comes without it.
KEY = "sk-ant-api03-the-key-of-the-demo-" + "0123456789" * 4
IMAGE = "claude"

FILES = {
    "README.md": "# Greetings\n\nA program that greets.\n",
    "VERSION": "1.0.0\n",
    "greet.py": 'import sys\n\nprint("Hello")\n',
    "release.py": """\
import subprocess, sys

with open("VERSION", "w") as file:
    print(sys.argv[1], file=file)
subprocess.run(["git", "commit", "-qam", f"Release {sys.argv[1]}"], check=True)
print("released", sys.argv[1])
""",
}
SCRIPT = """\
set -eu
git ls-files | while read -r file; do echo "$file: $(wc -l <"$file") lines"; done >INDEX
git add INDEX
git commit -q -m 'List the files'
echo "$(wc -l <INDEX) files listed"
"""
PROMPT = "Let greet.py greet people by the name that it is given. Try it, and commit."
_GREET = "/workspace/repo/greet.py"
MODEL = [
    turn(say("I look at the program first."), use("Read", file_path=_GREET)),
    turn(
        use("Edit", file_path=_GREET, old_string='"Hello"', new_string='f"Hello, {sys.argv[1]}"'),
        use("Bash", command="python3 greet.py Ada && git commit -qam 'Greet people by name'"),
    ),
    say("It greets by name now: Hello, Ada."),
]
# By what each is called here: what is asked for. An agent takes more of a machine.
TASKS: dict[str, dict[str, Any]] = {
    "script": {"script": SCRIPT, "memory_mib": 256},
    "command": {"argv": ["python3", "release.py", "1.1.0"], "memory_mib": 256},
    "agent": {"prompt": PROMPT, "max_turns": 10, "memory_mib": 768, "vcpus": 2},
}
# What the work tree has in the end, and what it says.
RESULTS = {"INDEX": "VERSION: 1 lines", "VERSION": "1.1.0", "greet.py": "Hello, {sys.argv[1]}"}
# In their order: the event that begins a step, and what that is.
STEPS = {
    "run.preparing": "looks at the repository",
    "run.starting": "starts a machine",
    "run.sending": "sends the work tree into it",
    "run.performing": "runs the program",
    "run.collecting": "takes the commits in",
    "run.merging": "merges them",
    "run.over": "is over",
}
COLOURS = {"script": "33", "command": "36", "agent": "35"}

Event = dict[str, Any]
Run = dict[str, Any]


@contextmanager
def model() -> Generator[ModelApi]:
    """Answer for a model until the block ends, in a thread of its own."""
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_model_api(MODEL, keys=[KEY])) as api,
    ):
        yield api


def build(mcp: Mcp) -> None:
    print(f"The guest: packages of Debian, and Claude Code {CLAUDE} as npm has it.", flush=True)
    began = time.perf_counter()
    image = mcp.finish("image_build", name=IMAGE, claude=CLAUDE)
    took = time.perf_counter() - began
    print(f"{took:8.3f} s  built, or found: {image['size_mib']} MiB, {image['digest'][:12]}\n")


def start(mcp: Mcp, repo: str) -> dict[str, str]:
    """Start all three; their names by the ids of their runs."""
    names: dict[str, str] = {}
    for name, what in TASKS.items():
        task = mcp.call("run_start", repo=repo, image=IMAGE, title=f"the {name}", **what)
        names[f"{task['task_id']}.1"] = name
    return names


def follow(mcp: Mcp, names: dict[str, str], cursor: str) -> list[Event]:
    """Print the steps of all runs as they are taken, until the last is over."""
    seen: list[Event] = []
    left = set(names)
    while left:
        asked = {"kinds": list(STEPS), "subjects": list(names), "timeout_s": LONG_S}
        read = mcp.call("event_wait", after=cursor, **asked)
        if not read["events"]:
            raise RuntimeError(f"nothing happens any more, and {len(left)} runs are left")
        cursor = read["cursor"]
        for event in read["events"]:
            seen.append(event)
            name = names[event["subject"]]
            after = (_at(event) - _at(seen[0])).total_seconds()
            print(_coloured(f"{after:8.3f} s  {name:<8}  {STEPS[event['kind']]}", name), flush=True)
            if event["kind"] == "run.over":
                left.discard(event["subject"])
    return seen


def _at(event: Event) -> datetime:
    return datetime.fromisoformat(event["at"])


def _coloured(line: str, name: str) -> str:
    if not sys.stdout.isatty():
        return line
    return f"\x1b[{COLOURS[name]}m{line[: shutil.get_terminal_size().columns]}\x1b[0m"


def show_times(events: list[Event], names: dict[str, str]) -> None:
    print("\nSeconds       prepare    boot    send    work  collect   merge     all")
    for run_id, name in names.items():
        times = [_at(event) for event in events if event["subject"] == run_id]
        took = [(end - begin).total_seconds() for begin, end in itertools.pairwise(times)]
        cells = "".join(f"{seconds:>8.2f}" for seconds in [*took, sum(took)])
        print(f"{name:<12} {cells}")


def show_results(runs: dict[str, Run]) -> None:
    print("\nResults")
    for name, run in runs.items():
        result: dict[str, Any] = run["result"] or {}
        merge, usage = run["merge"], run["usage"]
        files = ", ".join(file["path"] for file in result.get("files_changed", []))
        print(f"{name:<8}  {merge['state']} into {merge['into']} by {merge['how']}: {files}")
        summary = (result.get("summary") or result.get("error") or "").strip()
        print(f"          {summary}" if summary else "", end="\n" if summary else "")
        cpu_s, memory_mib = usage["cpu_s"] or 0.0, usage["memory_peak_mib"] or 0.0
        tokens = usage["tokens_in"] + usage["tokens_out"] + usage["tokens_cached"]
        asked = f", {usage['requests']} requests to a model, {tokens} tokens" if tokens else ""
        print(f"          {cpu_s:.1f} s of CPU, {memory_mib:.0f} MiB{asked}")


def show_graph(repo: git_repos.Repo) -> None:
    shown = repo.git("log", "--graph", "--decorate", "--stat=72", "--format=%h %s%d%n%an, %cr")
    print(f"\n$ git log --graph --stat\n{shown}")


def broken_promises(
    repo: git_repos.Repo, runs: dict[str, Run], states: dict[str, str], api: ModelApi
) -> list[str]:
    """Hold what was seen against what was promised."""
    wrong = [f"the {name} is {state}" for name, state in states.items() if state != "done"]
    wrong += [
        f"the {name} is not merged: {run['merge']}, {run['result']}"
        for name, run in runs.items()
        if run["merge"]["state"] != "merged"
    ]
    wrong += [
        f"{name} does not say {words!r}"
        for name, words in RESULTS.items()
        if words not in _text(repo.path / name)
    ]
    if repo.git("status", "--porcelain"):
        wrong.append("the work tree is not as its branch")
    if len(repo.git("rev-list", "HEAD").splitlines()) != 1 + len(TASKS):
        wrong.append("there are not as many commits as were made")
    if not api.conversation or any(each.key != KEY for each in api.requests):
        wrong.append("the model was asked by somebody without the key, or by nobody")
    return wrong


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def show(mcp: Mcp, repo: git_repos.Repo, api: ModelApi) -> list[str]:
    """Do what the demo promises, and return the promises that were broken."""
    build(mcp)
    mcp.call("credential_set", name="demo", kind="anthropic-api-key", value=KEY)
    alias = mcp.call("repo_add", path=str(repo.path))["alias"]
    cursor = mcp.call("event_wait", after="now")["cursor"]
    print(f"Three tasks on the repository {alias}, at once: {', '.join(TASKS)}.")
    names = start(mcp, alias)
    events = follow(mcp, names, cursor)
    runs: dict[str, Run] = {}
    states: dict[str, str] = {}
    for run_id, name in names.items():
        task_id = run_id.removesuffix(".1")
        mcp.call("task_wait", task_id=task_id, timeout_s=PATIENCE_S)
        told = mcp.call("run_get", task_id=task_id)
        runs[name], states[name] = told["run"], told["task"]["state"]
    show_times(events, names)
    show_results(runs)
    show_graph(repo)
    return broken_promises(repo, runs, states, api)


def end_runs(mcp: Mcp) -> None:
    """Cancel what is still under way; whoever runs it takes its machine away."""
    under_way = mcp.call("run_list", state="under_way")["items"]
    for run in under_way:
        mcp.call("task_cancel", task_id=run["task_id"])
    for run in under_way:
        asked = {"kinds": ["run.over"], "subjects": [run["run_id"]], "timeout_s": LONG_S}
        mcp.call("event_wait", after="begin", **asked)


def main() -> int:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="demo-") as name:
        folder = Path(name)
        state = folder / "state"
        share_images(state)
        repo = git_repos.Repo.make(folder / "greetings")
        repo.commit(FILES, "Greet")
        with (
            model() as api,
            daemon(folder, f'[egress]\nanthropic_url = "{api.url}"\n') as (path, process),
        ):
            mcp = Mcp(path, 2 * LONG_S)
            try:
                wrong = show(mcp, repo, api)
            finally:
                end_runs(mcp)
                mcp.close()
        wrong += [f"the daemon ended with {process.returncode}"] if process.returncode else []
        wrong += left_behind(state)
    for promise in wrong:
        print(f"demo: {promise}", file=sys.stderr)
    if wrong:
        return 1
    print(
        f"\ndemo: 3 tasks done and merged in {time.perf_counter() - began:.0f} s with all around; "
        "the agent never had a key, and nothing is left behind"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What agents have at home, from outside: files, a program beside them, and what they say."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from judges.tools import CLAUDE
from machines import LONG_S
from microvm_orchestrator.cli.client import Client
from microvm_orchestrator.cli.duplex import DATA, END, open_duplex
from model_api import say, use
from system.agents import HOME, said_to
from system.living import PROGRAM

if TYPE_CHECKING:
    from pathlib import Path

    from claude_image import Model
    from system.living import Stage
    from system.world import World


def beside(client: Client, agent: str, **asked: Any) -> tuple[str, int | None]:
    """Run a program beside an agent; what it says, and how it exits."""
    duplex = open_duplex(client, "agent_shell", {"agent": agent, **asked})
    duplex.sock.settimeout(LONG_S)
    said = b""
    with duplex.sock:
        while True:
            for kind, payload in duplex.frames():
                if kind == END:
                    return said.decode(), json.loads(payload)["exit_code"]
                said += payload if kind == DATA else b""


def test_files_are_copied_and_programs_run_by_the_name_of_an_agent(
    world: World, tmp_path: Path
) -> None:
    def mo(*words: str, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        noun, verb, *rest = words
        told = [PROGRAM, noun, verb, "--socket", str(world.daemon.socket), *rest]
        return subprocess.run(told, input=data, capture_output=True, timeout=LONG_S, check=False)

    spawned = world.ask("agent_spawn", name="ada", wait_s=LONG_S)
    assert spawned["state"] == "succeeded", spawned
    source, there, back = tmp_path / "source", tmp_path / "there", tmp_path / "back"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "a").write_text("one")
    assert mo("agent", "cp", "-r", str(source), f"ada:{there}").returncode == 0
    assert mo("agent", "cp", "-", f"ada:{there}/b", data=b"two").returncode == 0
    listed = mo("agent", "file-list", "ada", "--path", str(there))
    assert listed.stdout.decode() == "         3  b\n         3  deep/a\n"
    assert mo("agent", "cp", "-r", f"ada:{there}", str(back)).returncode == 0
    assert ((back / "deep" / "a").read_text(), (back / "b").read_text()) == ("one", "two")
    assert mo("agent", "file-get", "ada", f"{there}/b").stdout == b"two"
    refused = mo("agent", "cp", "ada:../etc/passwd", "-")
    assert (refused.returncode, b"leads upwards" in refused.stderr) == (2, True), refused
    assert b"NAME:PATH" in mo("agent", "cp", "here", "elsewhere").stderr
    assert b"no terminal" in mo("agent", "shell", "ada").stderr
    client = Client(world.daemon.socket)
    script = 'printf "%s %s %s" "$PWD" "$HOME" "$X"'
    ran = beside(client, "ada", script=script, path=str(there), env={"X": "y"})
    assert ran == (f"{there} /workspace/home y", 0)
    world.ask("agent_send", agent="ada", text="hello", wait_s=LONG_S)
    followed = mo("agent", "follow", "ada", "--cursor", "begin", "--timeout-s", "0")
    heard, answered = followed.stdout.decode().splitlines()
    assert (heard.partition(": ")[2], answered.partition(":")[0]) == ("hello", "= failed")
    world.ask("agent_end", agent="ada")


@pytest.mark.long
@pytest.mark.skipif(not CLAUDE.exists(), reason="Claude Code is not installed: make judges")
def test_what_an_agent_made_is_there_in_its_workspace_and_comes_back(
    stage: Stage, model: Model, tmp_path: Path
) -> None:
    model.scripts["Write a poem."] = [
        use("Write", file_path="/workspace/out/poem.txt", content="Roses.\n"),
        say("It is written."),
    ]
    stage.done("agent_spawn", name="ada", **HOME)
    stage.ask("agent_file_put", agent="ada", path="notes/read me.md", content="Read me.")
    said_to(stage, "ada", "Write a poem.")
    files = stage.ask("agent_file_list", agent="ada")["files"]
    assert [(each["path"], each["size"]) for each in files] == [
        ("notes/read me.md", 8),
        ("out/poem.txt", 7),
    ]
    # What its program remembers is not of its work, and is there for who asks.
    assert stage.ask("agent_file_list", agent="ada", path="home")["files"]
    told = stage.ask("agent_follow", agent="ada", cursor="begin")["pieces"]
    assert [(each["kind"], each["text"]) for each in told] == [
        ("message", "Write a poem."),
        ("does", "Write: /workspace/out/poem.txt"),
        ("says", "It is written."),
        ("answer", "It is written."),
    ]
    assert stage.done("agent_suspend", agent="ada")["state"] == "suspended"
    back = tmp_path / "back"
    assert stage.cli("agent", "cp", "-r", "ada:out", str(back)).returncode == 0
    assert (back / "poem.txt").read_text() == "Roses.\n"
    assert stage.ask("agent_get", agent="ada")["agent"]["state"] == "idle"
    assert beside(stage.client, "ada", argv=["cat", "out/poem.txt"]) == ("Roses.\n", 0)
    stage.ask("agent_end", agent="ada")

"""The token that `claude setup-token` prints, found however it is drawn."""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path

import pytest

from answering import answering
from microvm_orchestrator.cli import claude_token

TOKEN = "sk-ant-oat01-" + "aB3_-" * 19


@pytest.mark.parametrize(
    "said",
    [
        TOKEN,
        f"Your token:\n\n{TOKEN}\n\nStore it.",
        f"\x1b[1m\x1b[38;5;4m{TOKEN}\x1b[0m\r\n",
        f"\x1b]0;claude\x07\x1b[2J\x1b[H  {TOKEN}  \r\nDone",
        f"{TOKEN[:79]}\r\n{TOKEN[79:]}\r\n\r\nUse this token",
        f"{TOKEN[:40]}\n{TOKEN[40:80]}\n{TOKEN[80:]}\nDone.",
        f"│ {TOKEN[:60]} │\n│ {TOKEN[60:]} │\n╰──────╯",
        f"\x1b[33m{TOKEN[:70]}\x1b[0m\r\n\x1b[33m{TOKEN[70:]}\x1b[39m\r\n",
        f"export CLAUDE_CODE_OAUTH_TOKEN={TOKEN}",
        f"sk-ant-oat01-old\n\n{TOKEN}\n",
    ],
)
def test_a_token_is_found_in_what_was_drawn(said: str) -> None:
    assert claude_token.find(said.encode()) == TOKEN


@pytest.mark.parametrize("said", ["", "no token here", "sk-ant-api03-" + "a" * 95, "\x1b[" * 99])
def test_where_there_is_none_none_is_found(said: str) -> None:
    assert claude_token.find(said.encode()) is None


def test_the_words_behind_a_whole_token_are_not_part_of_it() -> None:
    assert claude_token.find(f"{TOKEN}\nDone\n".encode()) == TOKEN
    assert claude_token.find(f"{TOKEN} Done".encode()) == TOKEN


# Plays the part of Claude Code: it wants a terminal, asks for a code, and draws the token.
CLAUDE = f"""#!{sys.executable}
import os, sys
assert sys.argv[1:] == ["setup-token"], sys.argv
assert os.isatty(0) and os.isatty(1)
width = os.get_terminal_size().columns
code = input("Paste code: ")
token = "{TOKEN}" if code == "1234" else "none"
print("\\x1b[32mYour token:\\x1b[0m\\n")
while token:
    print("\\x1b[33m" + token[:width] + "\\x1b[0m")
    token = token[width:]
sys.exit(0 if code == "1234" else 3)
"""


def _on_a_terminal(folder: Path, typed: bytes) -> tuple[int, bytes]:
    """Run `setup-token` on a terminal that is 50 columns wide."""
    program = folder / "bin" / "claude"
    program.parent.mkdir()
    program.write_text(CLAUDE)
    program.chmod(0o755)
    said = bytearray()
    sent = False

    def read(terminal: int) -> bytes:
        nonlocal sent
        data = os.read(terminal, 65_536)
        said.extend(data)
        if b"Paste code" in said and not sent:
            sent = True
            os.write(terminal, typed)
        return data

    words = ["microvm-orchestrator", "setup-token", "--socket", str(folder / "socket"), "--json"]
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    path = f"{program.parent}:{os.environ['PATH']}"
    wide = ["sh", "-c", 'stty cols 50 && exec "$@"', "sh", "env", f"PATH={path}", *command]
    status = pty.spawn(wide, read, lambda _: b"")
    return os.waitstatus_to_exitcode(status), bytes(said)


def test_it_runs_claude_on_the_terminal_and_keeps_what_that_prints(tmp_path: Path) -> None:
    with answering(tmp_path / "socket") as here:
        status, said = _on_a_terminal(tmp_path, b"1234\n")
    [asked] = here.asked
    assert (asked.method, asked.target) == ("PUT", "/v1/credentials/claude")
    assert json.loads(asked.body) == {"kind": "anthropic-oauth", "value": TOKEN}
    # The answer of what stands for the daemon here.
    assert (status, b"as scripted" in said) == (2, True)


def test_when_claude_fails_nothing_is_kept(tmp_path: Path) -> None:
    with answering(tmp_path / "socket") as here:
        status, said = _on_a_terminal(tmp_path, b"wrong\n")
    assert here.asked == []
    assert b"claude setup-token ended with status 3" in said
    assert status != 0

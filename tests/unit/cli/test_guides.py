"""Commands that the documentation shows without running them: each is one that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer.main

from microvm_orchestrator.cli.program import application

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"^[$#] (?:.*?[|&] ?)?microvm-orchestrator (.*)")
_ENDS = re.compile(r"#|\||&&?|;|\d?[<>].*")


def _commands(page: Path) -> list[list[str]]:
    """Read the words behind the program's name, of each command in blocks of a page."""
    # What a shell puts in is one word to us.
    text = re.sub(r"\$\([^()]*\)", "WORD", page.read_text())
    lines = [
        line for block in _BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()
    ]
    found: list[list[str]] = []
    for line in lines:
        if shown := _COMMAND.match(line):
            words = shlex.split(shown[1])
            ends = [place for place, word in enumerate(words) if _ENDS.fullmatch(word)]
            found.append(words[: ends[0]] if ends else words)
    return found


def _parse(words: list[str]) -> None:
    """Fail when there is no such command, or it takes no such words."""
    # Typer brings its click along under no public name.
    node: Any = typer.main.get_command(application(drawn=False))
    while hasattr(node, "commands"):
        name, *words = words
        node = node.commands[name]
    node.make_context(node.name, words)


def test_the_documentation_shows_commands() -> None:
    assert sum(len(_commands(page)) for page in PAGES) > 100


@pytest.mark.parametrize(
    "page", [page for page in PAGES if _commands(page)], ids=lambda page: page.stem
)
def test_each_command_that_a_page_shows_is_one_that_there_is(page: Path) -> None:
    for words in _commands(page):
        try:
            _parse(words)
        except Exception as error:  # noqa: BLE001 - its class has no public name either
            pytest.fail(f"{shlex.join(words)}: {error}")


def test_a_command_that_there_is_not_is_found() -> None:
    with pytest.raises(Exception, match="rum"):
        _parse(["machine", "rum"])
    with pytest.raises(Exception, match="--colour"):
        _parse(["machine", "start", "box", "--colour"])

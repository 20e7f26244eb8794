"""Roles of agents: those that ship, those of a folder, and what is wrong with a file of one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.agents.roles.shelf import read_shelf, shipped_roles
from microvm_orchestrator.agents.roles.text import parse_role
from microvm_orchestrator.agents.written import MAX_ALIASES, MAX_DESCRIPTION, MAX_PROMPT
from microvm_orchestrator.model.agent_role import Source

NAMES = {
    "general",
    "frontend_developer",
    "backend_developer",
    "testing_specialist",
    "documentation_writer",
    "code_reviewer",
    "architect",
    "debugger",
    "security_analyst",
    "data_analyst",
}
ALIASES = {
    "security": "security_analyst",
    "qa_engineer": "testing_specialist",
    "tester": "testing_specialist",
    "data_scientist": "data_analyst",
    "reviewer": "code_reviewer",
    "docs": "documentation_writer",
    "technical_writer": "documentation_writer",
}
SECTIONS = ["What you attend to", "How you work", "How you report", "What you never do"]
LEAD = """---
description: Leads a team.
aliases: boss, technical_lead
---

You lead.
"""


def test_ten_roles_ship() -> None:
    assert set(shipped_roles()) == NAMES


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_shipped_role_says_what_it_attends_to_and_never_does(name: str) -> None:
    role = shipped_roles()[name]
    assert role.source is Source.SHIPPED
    assert role.description.endswith(".")
    assert 150 <= len(role.prompt.split()) <= 350
    headings = [line for line in role.prompt.splitlines() if line.startswith("#")]
    assert headings == [f"## {section}" for section in SECTIONS]


def test_no_two_shipped_roles_say_the_same() -> None:
    roles = shipped_roles().values()
    said = [line for role in roles for line in role.prompt.splitlines() if len(line) > 40]
    assert len(said) == len(set(said))


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_a_shipped_role_is_found_by_an_alias(tmp_path: Path, alias: str, name: str) -> None:
    found = read_shelf(tmp_path).find(alias)
    assert found.name == name
    assert alias in found.aliases


@pytest.mark.parametrize("name", ["technical_lead", "devops_engineer", "", "../general"])
def test_a_role_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.NotFound) as refused:
        read_shelf(tmp_path / "absent").find(name)
    assert refused.value.hint == f"there are: {', '.join(sorted(NAMES))}"


def test_a_file_of_the_folder_is_a_role_as_soon_as_it_lies_there(tmp_path: Path) -> None:
    assert "lead" not in read_shelf(tmp_path).known
    (tmp_path / "lead.md").write_text(LEAD)
    (tmp_path / "notes.txt").write_text("x")
    shelf = read_shelf(tmp_path)
    assert set(shelf.known) == NAMES | {"lead"}
    assert not shelf.broken
    lead = shelf.find("technical_lead")
    assert lead.model_dump(mode="json") == {
        "name": "lead",
        "description": "Leads a team.",
        "aliases": ["boss", "technical_lead"],
        "source": "user",
        "prompt": "You lead.",
    }


def test_a_role_of_the_folder_takes_the_place_of_the_one_that_ships(tmp_path: Path) -> None:
    (tmp_path / "security_analyst.md").write_text(LEAD)
    shelf = read_shelf(tmp_path)
    assert set(shelf.known) == NAMES
    found = shelf.find("security")
    assert (found.source, found.prompt) == (Source.USER, "You lead.")
    assert found.aliases == ("boss", "security", "technical_lead")


def test_a_name_or_alias_of_the_folder_goes_before_an_alias_that_ships(tmp_path: Path) -> None:
    (tmp_path / "docs.md").write_text(LEAD)
    (tmp_path / "breaker.md").write_text(LEAD.replace("boss, technical_lead", "tester"))
    shelf = read_shelf(tmp_path)
    assert shelf.find("docs").name == "docs"
    assert shelf.find("technical_writer").aliases == ("technical_writer",)
    assert shelf.find("tester").name == "breaker"
    assert shelf.find("qa_engineer").aliases == ("qa_engineer",)


def test_a_broken_file_is_named_and_takes_no_other_role_away(tmp_path: Path) -> None:
    (tmp_path / "lead.md").write_text(LEAD)
    (tmp_path / "security_analyst.md").write_text("You are careful.")
    shelf = read_shelf(tmp_path)
    assert set(shelf.known) == NAMES - {"security_analyst"} | {"lead"}
    why = "line 1: is not ---, with which a role begins"
    assert [(each.file, each.reason) for each in shelf.broken.values()] == [
        ("security_analyst.md", why)
    ]
    # What ships is not what the user wants under this name.
    for word in ("security_analyst", "security"):
        with pytest.raises(errors.InvalidInput, match=rf"security_analyst\.md: {why}"):
            shelf.find(word)


def test_an_alias_has_one_role(tmp_path: Path) -> None:
    (tmp_path / "chief.md").write_text(LEAD)
    (tmp_path / "lead.md").write_text(LEAD)
    (tmp_path / "safe.md").write_text(LEAD.replace("boss, technical_lead", "debugger"))
    shelf = read_shelf(tmp_path)
    assert shelf.find("boss").name == "chief"
    assert {each.file: each.reason for each in shelf.broken.values()} == {
        "lead.md": "its alias boss is an alias of chief already",
        "safe.md": "its alias debugger is the name of a role already",
    }
    assert shelf.find("debugger").source is Source.SHIPPED


def test_what_is_no_file_of_text_is_told_as_broken(tmp_path: Path) -> None:
    (tmp_path / "folder.md").mkdir()
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.md")
    (tmp_path / "bytes.md").write_bytes(b"---\ndescription: \xff\n---\nx\n")
    (tmp_path / "large.md").write_bytes(b"\n" * 300_000)
    (tmp_path / "two words.md").write_text(LEAD)
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.md")).write_text(LEAD)
    shelf = read_shelf(tmp_path)
    assert set(shelf.known) == NAMES
    reasons = {each.file: each.reason for each in shelf.broken.values()}
    name = "its name is none of a role: letters, digits, dots, dashes and underscores, at most 64"
    assert reasons == {
        "folder.md": "is no file",
        "gone.md": "is no file",
        "pipe.md": "is no file",
        "bytes.md": "is not UTF-8",
        "large.md": "has more than 262144 bytes",
        "two words.md": name,
        r"\udcff.md": name,
    }


def test_a_folder_that_cannot_be_read_is_told_and_takes_nothing_away(tmp_path: Path) -> None:
    (tmp_path / "roles").write_text("x")
    shelf = read_shelf(tmp_path / "roles")
    assert set(shelf.known) == NAMES
    [broken] = shelf.broken.values()
    assert broken.model_dump() == {
        "file": "roles",
        "reason": "the folder cannot be read: Not a directory",
    }


def test_a_file_may_come_from_an_editor_that_marks_and_ends_lines_otherwise() -> None:
    text = "\ufeff" + LEAD.replace("\n", "\r\n")
    assert parse_role("lead", text, Source.USER) == parse_role("lead", LEAD, Source.USER)


def test_a_prompt_may_have_lines_of_dashes() -> None:
    text = "---\ndescription: x: y\n---\none\n---\ntwo\n"
    role = parse_role("x", text, Source.USER)
    assert (role.description, role.prompt, role.aliases) == ("x: y", "one\n---\ntwo", ())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "line 1: is not ---, with which a role begins"),
        ("# Lead\n\nYou lead.\n", "line 1: is not ---, with which a role begins"),
        ("---\ndescription: x\n", "its head does not end: there is no second ---"),
        ("---\n---\nx\n", "its head has no description"),
        ("---\naliases: y\n---\nx\n", "its head has no description"),
        ("---\ndescription:\n---\nx\n", "line 2: says no description"),
        ("---\n\n---\nx\n", "line 2: is neither `key: value` nor ---, which ends the head"),
        (
            "---\nname: lead\n---\nx\n",
            "line 2: there is no key 'name'; there are description and aliases",
        ),
        (
            "---\ndescription: x\n  more: y\n---\nx\n",
            "line 3: there is no key '  more'; there are description and aliases",
        ),
        (
            "---\ndescription: x\ndescription: y\n---\nx\n",
            "line 3: says description once more",
        ),
        (
            f"---\ndescription: {'x' * (MAX_DESCRIPTION + 1)}\n---\nx\n",
            f"line 2: the description has more than {MAX_DESCRIPTION} characters",
        ),
        ("---\ndescription: x\n---\n \n\n", "it has no prompt behind its head"),
        (
            f"---\ndescription: x\n---\n{'é' * (MAX_PROMPT + 1)}",
            f"its prompt has more than {MAX_PROMPT} characters",
        ),
        ("---\ndescription: x\n---\nred \x1b[31m\n", "line 4: has a control character"),
        (
            "---\ndescription: x\naliases: [a, b]\n---\nx\n",
            "line 3: '[a' is no name; write `aliases: one, two`",
        ),
        (
            "---\ndescription: x\naliases: a,\n---\nx\n",
            "line 3: '' is no name; write `aliases: one, two`",
        ),
        (
            "---\ndescription: x\naliases: a, a\n---\nx\n",
            "line 3: says the name a twice, or that of the role itself",
        ),
        (
            "---\ndescription: x\naliases: lead\n---\nx\n",
            "line 3: says the name lead twice, or that of the role itself",
        ),
        (
            f"---\ndescription: x\naliases: {', '.join(map(str, range(MAX_ALIASES + 1)))}\n---\nx",
            f"line 3: says more than {MAX_ALIASES} aliases",
        ),
    ],
)
def test_what_is_wrong_with_a_role_is_said_with_its_line(text: str, reason: str) -> None:
    with pytest.raises(errors.InvalidInput) as refused:
        parse_role("lead", text, Source.USER)
    assert refused.value.message == reason

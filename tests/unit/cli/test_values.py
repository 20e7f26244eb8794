from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.cli import values
from microvm_orchestrator.model.task import TaskSpec

DEPENDENCIES: dict[str, Any] = {
    "build": "build",
    "build:failure": {"task": "build", "on": "failure"},
    "build:finish": {"task": "build", "on": "finish"},
    "ns:build": "ns:build",
    "build?coverage>=80": {
        "task": "build",
        "where": {"field": "coverage", "op": "ge", "value": 80},
    },
    "build?tests.failed == 0": {
        "task": "build",
        "where": {"field": "tests.failed", "op": "eq", "value": 0},
    },
    "build?branch!=main": {
        "task": "build",
        "where": {"field": "branch", "op": "ne", "value": "main"},
    },
    "build?url": {"task": "build", "where": {"field": "url", "op": "exists"}},
    "build?n<5": {"task": "build", "where": {"field": "n", "op": "lt", "value": 5}},
    "any:a,b": {"of": ["a", "b"], "need": "any"},
    "all:a, b:finish": {"of": ["a", {"task": "b", "on": "finish"}], "need": "all"},
    "2:a,b,c": {"of": ["a", "b", "c"], "need": 2},
    "60%:a,b,c": {"of": ["a", "b", "c"], "need": "60%"},
    '{"task": "a:failure"}': {"task": "a:failure"},
}


@pytest.mark.parametrize("word", DEPENDENCIES)
def test_a_dependency_can_be_written_short(word: str) -> None:
    found = values.dependency(word)
    assert found == DEPENDENCIES[word]
    TaskSpec.model_validate({"depends_on": [found]})  # the daemon takes every form


@pytest.mark.parametrize("word", ["build", "build:failure", "any:a,b:finish", "2:a,b,c", "a?x>=3"])
def test_a_dependency_reads_as_it_was_written(word: str) -> None:
    assert values.shorthand(values.dependency(word)) == word


def test_pairs_keep_what_stands_behind_the_first_sign() -> None:
    assert values.pairs(["a=b=c", "d="], "--label") == {"a": "b=c", "d": ""}
    assert values.pairs(None, "--label") is None
    for wrong in (["a"], ["=b"], ["a=1", "a=2"]):
        with pytest.raises(errors.InvalidInput, match="--label"):
            values.pairs(wrong, "--label")


def test_json_comes_from_the_word_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "input.json"
    file.write_text('{"ä": [1, null]}')
    assert values.json_value("[true]", "--input") == [True]
    assert values.json_value(f"@{file}", "--input") == {"ä": [1, None]}
    assert values.json_value(None, "--input") is None


def test_mcp_servers_may_come_as_a_whole_file_of_them() -> None:
    servers = {"files": {"command": "serve"}}
    assert values.mcp_servers('{"files": {"command": "serve"}}') == servers
    assert values.mcp_servers('{"mcpServers": {"files": {"command": "serve"}}}') == servers


@pytest.mark.parametrize("wrong", ["", "text", "NaN", '{"a": Infinity}', "[" * 100_000, "{'a': 1}"])
def test_what_is_no_json_is_refused_here(wrong: str) -> None:
    with pytest.raises(errors.InvalidInput, match="--input"):
        values.json_value(wrong, "--input")


def test_a_document_is_toml_by_its_name(tmp_path: Path) -> None:
    toml, json = tmp_path / "g.toml", tmp_path / "g.json"
    toml.write_text('[[tasks]]\nkey = "a"\nnot_before = 2026-12-24T18:00:00Z\n')
    json.write_text('[{"key": "a"}]')
    assert values.document(str(toml)) == {
        "tasks": [{"key": "a", "not_before": "2026-12-24T18:00:00+00:00"}]
    }
    assert values.document(str(json)) == [{"key": "a"}]
    with pytest.raises(errors.InvalidInput, match="no object"):
        values.fields(str(json))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b'{"a": "\xff"}')
    (tmp_path / "broken.toml").write_text("[[")
    for name, why in (
        ("missing.json", "No such file"),
        ("bytes.json", "not UTF-8 at byte 7"),
        ("broken.toml", "not TOML"),
        (".", "Is a directory"),
    ):
        with pytest.raises(errors.InvalidInput, match=why):
            values.document(str(tmp_path / name))


def test_parameters_are_read_as_the_template_declares_them() -> None:
    declared = {
        "n": {"type": "integer"},
        "v": {"type": "string"},
        "c": {"type": "choice"},
        "hosts": {"type": "strings"},
    }
    assert values.parameters(["n=3", "v=1.10", "c=2", "hosts=a", "hosts=b"], declared) == {
        "n": 3,
        "v": "1.10",
        "c": "2",
        "hosts": ["a", "b"],
    }
    assert values.parameters(['hosts=["a", "b"]'], declared) == {"hosts": ["a", "b"]}
    assert values.parameters(["unknown=3"], declared) == {"unknown": "3"}
    for wrong in (["n=three"], ["n"], ["v=1", "v=2"]):
        with pytest.raises(errors.InvalidInput):
            values.parameters(wrong, declared)


def test_priority_and_retry_have_a_short_form() -> None:
    assert values.priority("urgent") == "urgent"
    assert values.priority("-5") == -5
    assert values.retry("3") == {"max_attempts": 3}
    assert values.retry('{"factor": 2.5}') == {"factor": 2.5}
    with pytest.raises(errors.InvalidInput, match="soon"):
        values.priority("soon")


def test_a_secret_is_one_line_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789abcdef\n")
    assert values.secret(str(file)) == "0123456789abcdef"
    file.write_text("two\nlines\n")
    with pytest.raises(errors.InvalidInput, match="one line"):
        values.secret(str(file))

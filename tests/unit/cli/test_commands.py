from __future__ import annotations

import shlex
from typing import Any

import pytest

from commands import SPOKEN, leaves, tree
from microvm_orchestrator import places
from microvm_orchestrator.cli import connect, task, token, webhook
from microvm_orchestrator.cli.routes import QUESTIONS, ROUTES, Route
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.run import Kind
from microvm_orchestrator.model.task import OnExpiry, TaskState, Unmet
from microvm_orchestrator.model.webhook import DeliveryState
from microvm_orchestrator.service.calls import Effect
from microvm_orchestrator.service.table import BY_NAME, CALLS

TREE = tree()
LEAVES = dict(leaves(TREE))
# Options that lead to the daemon or choose how it is shown; no fields of any request.
CONNECTION = {"json", "socket", "address", "token_file"}
# Fields that are read from the file a command takes, and options that make one field together.
FROM_FILE = {
    "graph_submit": {"tasks"},
    "plan_tasks": {"documents", "tasks"},
    "plan_submit": {"documents", "tasks"},
    "template_save": {"description", "parameters", "tasks", "group_prefix"},
    "cluster_define": {"topology"},
    # What comes on standard input.
    "machine_exec": {"stdin", "stdin_base64"},
    # Files of here are sent as bytes.
    "machine_run": {"stdin_base64", "files_base64"},
}
ONE_FIELD = {
    "token_create": {"scope_labels": "scope", "own": "scope"},
    "task_heartbeat": {"fraction": "progress", "message": "progress"},
    "template_preview": {"params": "parameters"},
    "template_run": {"params": "parameters"},
    "machine_exec": {"tty": "terminal", "no_stdin": "stdin_open"},
}
# What makes up the field `changes`.
CHANGES = {"task_update"}


def command_of(call: str) -> Any:
    noun, _, verb = call.partition("_")
    found = LEAVES.get(SPOKEN.get(call, (noun, verb))) or LEAVES.get((noun,))
    assert found is not None, f"no command makes the call {call}"
    return found


def test_the_routes_are_those_of_the_daemon() -> None:
    assert {name: (route.method, route.path) for name, route in ROUTES.items()} == {
        call.name: (call.method, call.path) for call in CALLS
    }


def test_what_only_asks_is_known() -> None:
    reads = {call.name for call in CALLS if call.effect is Effect.READ}
    assert {name for name, route in ROUTES.items() if route.method == "GET"} | QUESTIONS == reads


@pytest.mark.parametrize("call", [call.name for call in CALLS])
def test_every_field_of_a_call_is_an_option_or_a_word_of_its_command(call: str) -> None:
    options = {param.name for param in command_of(call).params} - CONNECTION - {"help", "file"}
    renamed = ONE_FIELD.get(call, {})
    fields = {renamed.get(name, name) for name in options} | FROM_FILE.get(call, set())
    asked = set(BY_NAME[call].request.model_fields)
    if call in CHANGES:
        assert "changes" in fields
        assert fields - asked == set(BY_NAME["task_submit"].request.model_fields) - {
            "key",
            "group",
            "idempotency_key",
        }
        fields &= asked
    assert fields == asked


def test_the_choices_are_those_of_the_model() -> None:
    def choices(call: str, name: str) -> set[str]:
        param = next(param for param in command_of(call).params if param.name == name)
        return {str(choice) for choice in param.type_descriptor.choices}

    assert choices("task_submit", "on_unmet") == set(Unmet)
    assert choices("task_submit", "on_expiry") == set(OnExpiry)
    assert choices("plan_submit", "kind") == set(Kind)
    assert choices("token_create", "role") == set(Role)
    assert choices("delivery_list", "state") == set(DeliveryState)
    assert set(task.State) == set(TaskState)
    assert set(task.ENDS) == {state for state in TaskState if state.finished}
    assert token.app is not webhook.app


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_and_option_is_described(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    assert command.help
    assert command.help.strip().endswith((".", "connect"))
    assert [param.name for param in command.params if not param.help] == []
    assert "For example:" in command.epilog


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_example_is_a_command_that_can_be_read(path: tuple[str, ...]) -> None:
    command = LEAVES[path]
    examples = [line.strip() for line in command.epilog.splitlines() if places.NAME in line]
    assert examples
    for example in examples:
        parts = shlex.shlex(example, posix=True, punctuation_chars="|&;<>")
        parts.whitespace_split = True
        words: list[str] = []
        for word in parts:
            if word in {"|", "||", "&&", ">", "<", ";", "&"}:
                break
            words.append(word)
        assert words[0] == places.NAME
        assert tuple(words[1 : len(path) + 1]) == path, example
        context = command.make_context(places.NAME, words[len(path) + 1 :])
        assert context.params


def test_every_command_that_talks_to_the_daemon_can_print_json() -> None:
    silent = {
        path for path, command in LEAVES.items() if "json" not in {p.name for p in command.params}
    }
    # Those that have the terminal to themselves, and those that have no answer.
    interactive = {("machine", "shell"), ("machine", "attach"), ("exec", "attach")}
    interactive |= {("agent", "shell")}
    interactive |= {("madrox",)}
    assert silent == {("serve",), ("connect",), ("web",), ("completion",)} | interactive


def test_the_fast_way_of_the_bridge_takes_the_options_of_its_command() -> None:
    names = {param.name for param in LEAVES["connect",].params} - {"help"}
    words = [word for name in sorted(names) for word in (f"--{name.replace('_', '-')}", "x")]
    assert connect.options(words) == dict.fromkeys(sorted(names), "x")
    assert connect.options(["--wait=3", "--socket", "s"]) == {"wait": "3", "socket": "s"}
    for strange in (["--help"], ["--profile"], ["x"], ["--no-such", "x"], ["-p", "x"]):
        assert connect.options(strange) is None


def test_secrets_are_not_taken_from_the_list_of_processes() -> None:
    for path, command in LEAVES.items():
        for param in command.params:
            if param.name in {"secret", "token_file"}:
                assert param.opts[0].endswith("-file"), (path, param.opts)


def test_a_route_knows_its_parameters() -> None:
    route = Route("PATCH", "/v1/a/{one}/b/{two}")
    assert route.parameters == ["one", "two"]
    assert route.has_body

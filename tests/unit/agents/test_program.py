from __future__ import annotations

from pathlib import Path

import pytest

from microvm_orchestrator import errors, proc
from microvm_orchestrator.agents.devshell import choose_devshell, wrap
from microvm_orchestrator.agents.drivers.base import Cause, File, Invocation
from microvm_orchestrator.agents.drivers.program import (
    ProgramReader,
    prepare_command,
    prepare_script,
)
from microvm_orchestrator.model.run import Devshell

pytestmark = pytest.mark.anyio
ODD = "\"'`$(touch never) ${HOME} \\ \n\t -x é 🦀 %s *"


def lay(file: File) -> None:
    path = Path(file.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)
    path.chmod(file.mode)


async def performed(invocation: Invocation) -> proc.Finished:
    for file in invocation.files:
        lay(file)
    return await proc.run(
        invocation.argv, timeout_s=20, stdin=invocation.stdin, statuses=range(256)
    )


async def test_each_word_of_a_command_arrives_as_it_is() -> None:
    done = await performed(prepare_command(["/usr/bin/printf", "%s|", ODD, "", "-n", "🦀"]))
    assert done.stdout.decode() == f"{ODD}||-n|🦀|"


async def test_a_script_arrives_as_it_is_and_runs_by_its_interpreter(tmp_path: Path) -> None:
    text = f"cat <<'END'\n{ODD}\nEND\necho \"$0\"; cat\r\n"
    invocation = prepare_script(text, str(tmp_path), stdin=ODD.encode())
    (file,) = invocation.files
    assert file.content == text.encode()
    # `cat\r` is no program: a line's end is not repaired either.
    done = await performed(invocation)
    assert done.stdout.decode() == f"{ODD}\n{file.path}\n"
    assert done.status == 127


async def test_an_interpreter_may_have_words_of_its_own(tmp_path: Path) -> None:
    invocation = prepare_script("print(__name__)", str(tmp_path), interpreter=["python3", "-I"])
    assert (await performed(invocation)).stdout == b"__main__\n"


@pytest.mark.parametrize(
    ("argv", "error"),
    [
        ([], errors.InvalidInput),
        ([""], errors.InvalidInput),
        (["a", "b\0c"], errors.InvalidInput),
        (["a", "\ud800"], errors.InvalidInput),
        (["a", "é" * 65_536], errors.TooLarge),
    ],
)
def test_what_cannot_be_a_command_is_refused(
    argv: list[str], error: type[errors.OrchestratorError]
) -> None:
    with pytest.raises(error):
        prepare_command(argv)


async def test_the_longest_word_that_is_let_through_is_one_that_linux_takes() -> None:
    done = await performed(prepare_command(["/usr/bin/printf", "%s", "é" * 65_535 + "x"]))
    assert len(done.stdout) == 131_071


def test_a_program_that_ends_well_has_its_last_line_as_summary() -> None:
    reader = ProgramReader()
    reader.feed(b"one\ntw")
    reader.feed(b"o\x1b[2J\n \n\n")
    ended = reader.finish(0, stderr=b"warning\n")
    assert (ended.success, ended.summary, ended.error) == (True, "two\ufffd[2J", None)


@pytest.mark.parametrize(
    ("code", "signal", "cause"),
    [(3, None, Cause.EXIT_STATUS), (None, 9, Cause.SIGNAL), (None, None, Cause.NO_RESULT)],
)
def test_a_program_that_fails_has_what_it_complained_of_as_summary(
    code: int | None, signal: int | None, cause: Cause
) -> None:
    reader = ProgramReader()
    reader.feed(b"working")
    ended = reader.finish(code, signal, b"Traceback\nKeyError: 'x'\n")
    assert ended.error is not None
    assert (ended.success, ended.summary, ended.error.code) == (False, "KeyError: 'x'", cause)


@pytest.mark.parametrize(
    ("policy", "has_flake", "has_nix", "chosen"),
    [
        ("auto", True, True, True),
        ("auto", True, False, False),
        ("auto", False, True, False),
        ("never", True, True, False),
        ("require", True, True, True),
    ],
)
def test_the_development_shell_is_taken_where_policy_and_facts_allow(
    policy: str, has_flake: bool, has_nix: bool, chosen: bool
) -> None:
    found = choose_devshell(Devshell(policy), has_flake=has_flake, has_nix=has_nix)
    assert found is chosen


@pytest.mark.parametrize(
    ("has_flake", "has_nix", "what"),
    [(False, True, "no flake.nix"), (True, False, "no Nix"), (False, False, "no flake.nix")],
)
def test_a_development_shell_that_is_required_and_missing_is_an_error(
    has_flake: bool, has_nix: bool, what: str
) -> None:
    with pytest.raises(errors.DevshellMissing, match=what) as caught:
        choose_devshell(Devshell.REQUIRE, has_flake=has_flake, has_nix=has_nix)
    assert caught.value.hint


async def test_a_program_in_a_development_shell_gets_its_words_as_they_are(
    tmp_path: Path,
) -> None:
    plain = Invocation(("/usr/bin/printf", "%s|", ODD), {"A": "b"}, (File("/f", b"x"),), b"in")
    assert wrap(plain, devshell=False) == plain
    wrapped = wrap(plain, devshell=True)
    assert (wrapped.env, wrapped.files, wrapped.stdin) == (plain.env, plain.files, plain.stdin)
    # In the place of Nix, which is not here, a program that starts what stands behind --command.
    nix = tmp_path / "nix"
    nix.write_text('#!/bin/sh\nwhile [ "$1" != --command ]; do shift; done; shift; exec "$@"\n')
    nix.chmod(0o755)
    assert wrapped.argv[0] == "nix"
    done = await proc.run([str(nix), *wrapped.argv[1:]], timeout_s=20)
    assert done.stdout.decode() == f"{ODD}|"

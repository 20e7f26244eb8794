"""Files of guests on their way to the artifacts: which are asked for, which come, what is told."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from guests import behind_socket
from microvm_orchestrator import errors
from microvm_orchestrator.artifacts import Artifacts, Quotas
from microvm_orchestrator.lifecycle.collect import Gathered, gather
from microvm_orchestrator.machine import wire
from microvm_orchestrator.machine.shell import Shell
from microvm_orchestrator.model.artifact import MAX_ARTIFACTS, MAX_LEFT_OUT, Glob, Patterns
from scripted_guest import ScriptedGuest, greeted

RUN = "t_run.1"
PATIENCE_S = 60
ROOMY = Quotas(file=1 << 20, run=1 << 21, total=1 << 22)


@pytest.fixture
async def kept(tmp_path: Path) -> Artifacts:
    artifacts = Artifacts(tmp_path / "state/artifacts", tmp_path / "state/runs", ROOMY)
    await artifacts.reconcile(())
    return artifacts


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncGenerator[Shell]:
    """The way into a real agent, which sees this host."""
    async with behind_socket(tmp_path) as guest, guest.shell() as shell:
        yield shell


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree


def write(tree: Path, **files: str) -> None:
    for name, text in files.items():
        path = tree / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


async def gathered(
    shell: Shell, tree: Path, artifacts: Artifacts, *patterns: str
) -> tuple[dict[str, bytes], dict[str, str]]:
    """Bring what fits; give what came by its name, and what did not with the reason."""
    found = Gathered()
    with anyio.fail_after(PATIENCE_S):
        globs = [Glob(pattern) for pattern in patterns]
        await gather(shell, str(tree), globs, artifacts, RUN, found)
    datas = [await artifacts.read(RUN, each.digest, 0, 1 << 20) for each in found.artifacts]
    assert [len(data) for data in datas] == [each.size for each in found.artifacts]
    came = {each.name: data for each, data in zip(found.artifacts, datas, strict=True)}
    return came, {each.name: each.reason for each in found.all_left_out()}


# Which


@pytest.mark.parametrize(
    ("pattern", "fit", "other"),
    [
        ("dist", "dist dist/a dist/b/c", "distant a/dist"),
        ("dist/", "dist/a dist/b/c", "distant/a"),
        ("dist/**", "dist/a dist/b/c", "distant a"),
        ("*.log", "a.log .log", "a/b.log a.logs /a.log"),
        ("**/*.xml", "a.xml a/b.xml a/b/c.xml", "a.xmls /a.xml"),
        ("a/**/b/*", "a/b/c a/x/b/c a/b/b/b", "a/b a/b/c/d b/c"),
        ("a/*/c", "a/b/c", "a/c a/b/b/c"),
        ("a?[0-9]", "ab1 a-9", "a1 ab/1 abx"),
        ("[!a]*", "b bc", "a ab"),
        ("/var/log/*.log", "/var/log/x.log", "var/log/x.log /var/log/a/x.log"),
        ("/var/log", "/var/log/x /var/log/a/b", "/var/logs"),
        ("**", "a a/b/c .x", "/a"),
        ("*/", "a/b a/b/c", "a"),
    ],
)
def test_a_pattern_asks_for_these_and_not_for_others(pattern: str, fit: str, other: str) -> None:
    glob = Glob(pattern)
    assert [name for name in fit.split() if not glob.fits(name)] == []
    assert [name for name in other.split() if glob.fits(name)] == []


@pytest.mark.parametrize("pattern", ["", "/", "../x", "a/../../x", "./a", "a\nb", "\x1b[2J", "//"])
def test_a_pattern_that_reaches_elsewhere_or_names_nothing_is_refused(pattern: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Patterns).validate_python([pattern])


def test_no_name_and_no_pattern_make_the_comparison_take_long() -> None:
    names = ["/".join("a" * 2000), "a" * 255 + "/" + "a" * 255, "a/b" * 300]
    patterns = ["**/" * 100 + "x", "*a" * 100 + "x", "**/*a*a*a*a*a*a*b"]
    # It would not come back within the life of anybody.
    assert [Glob(pattern).fits(name) for pattern in patterns for name in names] == [False] * 9


NAMES = st.text("ab.[]*?!-\\", min_size=1, max_size=4).filter(lambda name: name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
GLOBS = st.lists(
    st.one_of(NAMES, st.just("**"), st.text("ab*?[]!", min_size=1, max_size=4)),
    min_size=1,
    max_size=4,
).map("/".join)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(PATHS, max_size=6), pattern=GLOBS)
async def test_all_that_fits_is_found_in_the_guest_by_what_it_is_asked(
    tmp_path_factory: pytest.TempPathFactory, shell: Shell, paths: set[str], pattern: str
) -> None:
    folder = tmp_path_factory.mktemp("fit")
    tree = folder / "tree"
    tree.mkdir()
    made: list[str] = []
    for path in sorted(paths):
        try:
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(path)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            continue
        made.append(path)
    artifacts = Artifacts(folder / "artifacts", folder / "runs", ROOMY)
    await artifacts.reconcile(())
    came, _ = await gathered(shell, tree, artifacts, pattern)
    assert came == {path: path.encode() for path in made if Glob(pattern).fits(path)}


# What comes


async def test_files_come_with_their_names_and_bytes_and_what_is_missing_is_told(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    write(tree, dist__a_dot_txt="a", dist__deep__b="", out_dot_log="said", other="no")
    write(tree, _dot_git__config="secret")
    outside = tree.parent / "outside"
    outside.write_text("absolute")
    came, left_out = await gathered(
        shell, tree, kept, "dist", "*.log", "*.log", "none/*", "**/config", str(outside)
    )
    assert came == {
        "dist/a.txt": b"a",
        "dist/deep/b": b"",
        "out.log": b"said",
        str(outside): b"absolute",
    }
    assert left_out == {"none/*": "no file fits it", "**/config": "no file fits it"}
    came, _ = await gathered(shell, tree, kept, ".git/config")
    assert came == {".git/config": b"secret"}


async def test_a_file_with_a_name_of_the_runs_own_gets_another(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    write(tree, console_dot_log="mine", a__rest_dot_patch="mine too")
    came, _ = await gathered(shell, tree, kept, "**")
    assert sorted(came) == ["./console.log", "a/rest.patch"]


async def test_links_devices_and_odd_names_do_not_come_and_are_told_without_harm(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    write(tree, out__good="good")
    out = tree / "out"
    (tree.parent / "secret").write_text("of the host")
    (out / "link").symlink_to(tree.parent / "secret")
    (out / "loop").symlink_to(out)
    os.mkfifo(out / "fifo")
    (out / "two\nlines").write_text("x")
    (out / "\x1b[2J\u202e").write_text("x")
    (out / "\N{SNOWMAN} snow").write_text("snow")
    (out / os.fsdecode(b"\xff\xfe")).write_text("x")
    came, left_out = await gathered(shell, tree, kept, "out/")
    assert came == {"out/good": b"good", "out/\N{SNOWMAN} snow": b"snow"}
    links = {name for name, reason in left_out.items() if "link or a device" in reason}
    assert links == {"out/link", "out/loop", "out/fifo"}
    odd = [name for name, reason in left_out.items() if "no plain text" in reason]
    assert len(odd) == 3
    assert all(name.isprintable() for name in left_out)


async def test_what_is_too_large_is_left_out_and_the_rest_comes(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    write(tree, small="small")
    for name, size in (("big", ROOMY.file + 1), ("sparse", 1 << 40), ("fits", ROOMY.file)):
        with (tree / name).open("wb") as file:
            file.truncate(size)
    for number in range(3):
        (tree / f"half{number}").write_bytes(os.urandom(ROOMY.file // 2))
    came, left_out = await gathered(shell, tree, kept, "*")
    assert sorted(came) == ["fits", "half0", "half1", "small"] or "small" not in came
    assert "1099511627776 bytes" in left_out["sparse"]
    assert {"big", "sparse", "half2"} <= left_out.keys()
    assert kept.total <= ROOMY.run


async def test_of_a_flood_of_files_so_many_come_as_a_run_may_have(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    for number in range(MAX_ARTIFACTS + 90):
        (tree / f"{number:04}").write_text(f"{number}")
    came, left_out = await gathered(shell, tree, kept, "*")
    assert sorted(came) == [f"{number:04}" for number in range(MAX_ARTIFACTS)]
    assert len(left_out) == MAX_LEFT_OUT + 1
    assert left_out["*"] == f"and {90 - MAX_LEFT_OUT} more"


async def test_of_a_file_that_becomes_shorter_while_it_is_read_nothing_is_kept(
    shell: Shell, tree: Path, kept: Artifacts
) -> None:
    big = tree / "shrinks"
    big.write_bytes(b"x" * ROOMY.file)
    write(tree, stays="here")
    stop = anyio.Event()

    async def shrink() -> None:
        while not stop.is_set():
            await anyio.to_thread.run_sync(os.truncate, big, 10)
            await anyio.to_thread.run_sync(os.truncate, big, ROOMY.file)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shrink)
        for _ in range(20):
            came, left_out = await gathered(shell, tree, kept, "*")
            assert came["stays"] == b"here"
            # Whole by its own word each time, or not there.
            assert ("shrinks" in came) != ("shrinks" in left_out)
            if "shrinks" in came:
                assert len(came["shrinks"]) in {10, ROOMY.file}
        stop.set()


# A guest that lies


@asynccontextmanager
async def listing(*names: bytes, files: dict[str, list[bytes]]) -> AsyncGenerator[Shell]:
    """A guest that says these names whatever it is asked, and of files what it likes."""
    async with greeted() as (guest, shell), anyio.create_task_group() as tasks:

        async def answer() -> None:
            # The host hangs up on who lies.
            with suppress(anyio.EndOfStream, anyio.BrokenResourceError):
                await _answer(guest, names, files)

        tasks.start_soon(answer)
        yield shell
        tasks.cancel_scope.cancel()


async def _answer(
    guest: ScriptedGuest, names: Sequence[bytes], files: dict[str, list[bytes]]
) -> None:
    while True:
        number, asked = await guest.hear(wire.OPEN)
        if wire.blob(asked, "verb", 16) == b"exec":
            said = b"".join(name + b"\0" for name in names)
            await guest.say(wire.NOTE, number, {"pid": 1, "offset": 0})
            for start in range(0, len(said), 30_000):
                await guest.say(wire.DATA, number, said[start : start + 30_000], 1)
            ended: wire.Fields = {"code": 0, "signal": 0, "why": b"", "offset": len(said)}
            await guest.say(wire.RESULT, number, ended)
        else:
            path = wire.blob(asked, "path", 4096).decode()
            size, *pieces = files[path]
            await guest.say(wire.NOTE, number, {"size": int(size), "mode": 0o644})
            for piece in pieces:
                await guest.say(wire.DATA, number, piece)
            await guest.say(wire.RESULT, number, {})


async def test_names_that_nobody_asked_for_are_not_asked_for_in_turn(
    tmp_path: Path, kept: Artifacts
) -> None:
    names = [b"../../etc/shadow", b"/etc/shadow", b"a/../../b", b"./out/../../x", b"", b"out//x"]
    names += [b"./out/fine", b"out", b"elsewhere/fine", b"out/" + b"n" * 5000, b"./out/cut\xff"]
    async with listing(*names, files={f"{tmp_path}/out/fine": [b"2", b"ok"]}) as shell:
        came, left_out = await gathered(shell, tmp_path, kept, "out/*")
    assert came == {"out/fine": b"ok"}
    assert all(len(name) <= 200 and name.isprintable() for name in left_out)
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    "lie", [[b"5", b"12"], [b"5", b"123456"], [b"0", b"1"], [str(ROOMY.file + 1).encode(), b"x"]]
)
async def test_a_guest_whose_files_are_not_as_it_says_is_believed_nothing_more(
    tmp_path: Path, kept: Artifacts, lie: list[bytes]
) -> None:
    files = {f"{tmp_path}/out/a": [b"2", b"ok"], f"{tmp_path}/out/b": lie}
    found = Gathered()
    async with listing(b"out/a", b"out/b", b"out/c", files=files) as shell:
        with pytest.raises(errors.MachineFailed):
            await gather(shell, str(tmp_path), [Glob("out/*")], kept, RUN, found)
    assert [each.name for each in found.artifacts] == ["out/a"]
    assert kept.total == 2

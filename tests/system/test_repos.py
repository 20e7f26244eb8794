"""Repositories registered over every door of a daemon, and what each caller sees of them."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, cast

import pytest

from daemon import COMMAND, Daemon, running_daemon
from git_repos import Repo, look_of, raw, sample
from microvm_orchestrator import places
from microvm_orchestrator.cli import failure
from microvm_orchestrator.model.repo import RepoDefaults
from microvm_orchestrator.service.repos import RepoSettings
from system import doors

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

PATIENCE_S = 30.0
TCP = {"listen": "127.0.0.1:0"}

Json = dict[str, Any]


def place_of(daemon: Daemon) -> doors.Place:
    assert daemon.tcp is not None
    return doors.Place(daemon.socket, daemon.tcp)


@pytest.fixture(scope="module")
def long_lived(tmp_path_factory: pytest.TempPathFactory) -> Generator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("state"), tcp=TCP) as daemon:
        yield daemon


@pytest.fixture
def daemon(long_lived: Daemon) -> Generator[Daemon]:
    """A daemon that knows no repository."""
    yield long_lived
    place = place_of(long_lived)
    for repo in ask(place, "repo_list")["items"]:
        ask(place, "repo_remove", repo=repo["repo_id"], drop_unmerged=True)


@pytest.fixture
def place(daemon: Daemon) -> doors.Place:
    return place_of(daemon)


@pytest.fixture
def site(tmp_path: Path) -> Repo:
    return sample(tmp_path / "site")


def say(
    place: doors.Place, call: str, token: str | None = None, **arguments: object
) -> doors.Reply:
    return doors.rest(place, token, call, json.dumps(arguments).encode())


def ask(place: doors.Place, call: str, token: str | None = None, **arguments: object) -> Json:
    reply = say(place, call, token, **arguments)
    assert reply.code == "ok", reply
    return reply.value


def typed(
    place: doors.Place, *words: str, at: Path | None = None, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Type a command as a person does, in a folder."""
    ran = subprocess.run(
        [COMMAND, *words, "--socket", place.socket],
        cwd=at,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert ran.returncode == status, ran
    return ran


def by_command(place: doors.Place, call: str, arguments: Json) -> Json:
    noun, verb = call.split("_")
    words = [noun, verb]
    for name, value in arguments.items():
        option = f"--{name.replace('_', '-')}"
        if name == "repo" or (verb == "add" and name == "path"):
            words.insert(2, value)
        elif value is True:
            words.append(option)
        else:
            given = cast("list[object]", value if isinstance(value, list) else [value])
            words += [word for each in given for word in (option, str(each))]
    reply = doors.command(place, None, words)
    assert reply.code == "ok", reply
    return reply.value


def through(
    door: Callable[[doors.Place, str | None, str, bytes], doors.Reply],
) -> Callable[[doors.Place, str, Json], Json]:
    def ask(place: doors.Place, call: str, arguments: Json) -> Json:
        reply = door(place, None, call, json.dumps(arguments).encode())
        assert reply.code == "ok", reply
        return reply.value

    return ask


DOORS: dict[str, Callable[[doors.Place, str, Json], Json]] = {
    "cli": by_command,
    "rest": through(doors.rest),
    "mcp": through(doors.stream),
    "mcp-http": through(doors.streamable),
}


def bring(daemon: Daemon, site: Repo, repo_id: str, ref: str) -> str:
    """Let the daemon's mirror have a commit that the user has not, as a run leaves it."""
    mirror = daemon.state_dir / places.REPOS / f"{repo_id}.git"
    raw(daemon.state_dir, "clone", "--quiet", "--bare", site.path, mirror)
    tree = site.git("rev-parse", "HEAD^{tree}")
    made = raw(mirror, "commit-tree", tree, "-p", site.oid(), "-m", "x")
    commit = made.decode().strip()
    raw(mirror, "update-ref", ref, commit)
    return commit


@pytest.mark.parametrize("door", DOORS)
def test_a_repository_is_registered_changed_and_forgotten_over_every_door(
    place: doors.Place, site: Repo, door: str
) -> None:
    say = DOORS[door]
    before = look_of(site.path)
    given = {"merge": "squash", "vcpus": 2, "egress": ["a.org", "*.b.org"]}
    added = say(place, "repo_add", {"path": str(site.path), **given})
    assert (added["alias"], added["path"]) == ("site", str(site.path))
    assert {name: added["defaults"][name] for name in given} == given
    changed = say(place, "repo_update", {"repo": "site", "alias": "web", "unset": ["vcpus"]})
    assert (changed["alias"], changed["defaults"]["vcpus"]) == ("web", None)
    assert changed["defaults"]["merge"] == "squash"
    told = say(place, "repo_get", {"repo": "web"})
    assert told["repo"] == changed
    assert told["facts"]["head"] == site.oid()
    assert (told["facts"]["kind"], told["facts"]["branch"]) == ("main", "main")
    assert (told["facts"]["dirty"], told["facts"]["empty"], told["problem"]) == (False, False, None)
    [checkout] = told["facts"]["checkouts"]
    assert (checkout["path"], checkout["branch"]) == (str(site.path), "main")
    assert (told["unmerged"], told["unmerged_count"]) == ([], 0)
    assert say(place, "repo_list", {})["items"] == [changed]
    removed = say(place, "repo_remove", {"repo": added["repo_id"]})
    assert removed == {"repo_id": added["repo_id"], "alias": "web"}
    assert say(place, "repo_list", {})["items"] == []
    assert look_of(site.path) == before


def test_every_default_of_a_repository_can_be_given_and_unset(
    place: doors.Place, site: Repo
) -> None:
    assert set(RepoSettings.model_fields) == set(RepoDefaults.model_fields)
    usual = ask(place, "repo_add", path=str(site.path))["defaults"]
    given: Json = {
        "branch": "other",
        "image": "node",
        "memory_mib": 512,
        "vcpus": 2,
        "disk_mib": 64,
        "timeout_s": 60.0,
        "driver": "codex",
        "model": "m",
        "merge": "branch",
        "check": "make test",
        "checkout": "leave",
        "devshell": "never",
        "rest": "commit",
        "egress": ["a.org"],
    }
    assert ask(place, "repo_update", repo="site", **given)["defaults"] == given
    # Said again without a word of them, it has them still.
    assert ask(place, "repo_add", path=str(site.path))["defaults"] == given
    assert ask(place, "repo_update", repo="site", unset=list(given))["defaults"] == usual
    assert say(place, "repo_update", repo="site", unset=["alias"]).code == "invalid-input"


def test_the_words_of_the_older_tool_are_understood(place: doors.Place, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        sample(tmp_path / parent / "site")
    here = tmp_path / "a" / "site"
    assert typed(place, "allow", at=here).stdout == "Registered: site\n"
    assert typed(place, "allow", "b/site", at=tmp_path).stdout == "Registered: site-2\n"
    assert typed(place, "allow", ".", at=here).stdout == "Registered: site\n"
    assert typed(place, "allow", "-a", "web", at=here).stdout == "Registered: web\n"
    rows = [line.split()[:2] for line in typed(place, "list").stdout.splitlines()[1:]]
    assert rows == [["web", str(here)], ["site-2", str(tmp_path / "b" / "site")]]
    assert typed(place, "remove", "web").stdout == "Removed: web\n"
    assert "(not-found)" in typed(place, "remove", "web", status=failure.NOT_FOUND).stderr
    typed(place, "remove", "site-2")
    assert "no repositories" in typed(place, "list").stderr


def test_people_see_how_a_repository_is(daemon: Daemon, site: Repo) -> None:
    place = place_of(daemon)
    typed(place, "repo", "add", at=site.path)
    site.write({"README": "changed\n"})
    repo_id = ask(place, "repo_get", repo="site")["repo"]["repo_id"]
    commit = bring(daemon, site, repo_id, "refs/tasks/t_1")
    said = typed(place, "repo", "show", "site").stdout
    assert typed(place, "repo", "get", "site").stdout == said
    words = [line.split() for line in said.splitlines()]
    for expected in (["alias", "site"], ["merge", "auto"], ["dirty", "yes"]):
        assert expected in words, said
    assert ["refs/tasks/t_1", commit] in words


def test_what_is_no_repository_is_refused_with_the_reason(
    place: doors.Place, site: Repo, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    raw(tmp_path, "clone", "--quiet", "--depth=1", f"file://{site.path}", "shallow")
    for path in ("plain", "shallow", "site/src", "missing"):
        assert say(place, "repo_add", path=str(tmp_path / path)).code == "repo-refused"
    assert say(place, "repo_add", path="site").code == "repo-refused"
    for alias in ("-x", "a/b", "", "x" * 65, "a b"):
        assert say(place, "repo_add", path=str(site.path), alias=alias).code == "invalid-input"
    told = typed(place, "repo", "add", at=site.path / "src", status=failure.INVALID)
    assert f"{site.path} is one" in told.stderr
    assert ask(place, "repo_list")["items"] == []


def test_a_repository_that_was_moved_is_told_and_found_again(
    place: doors.Place, site: Repo, tmp_path: Path
) -> None:
    ask(place, "repo_add", path=str(site.path))
    site.path.rename(tmp_path / "moved")
    told = ask(place, "repo_get", repo="site")
    assert told["facts"] is None
    assert "repo site" in told["problem"]
    typed(place, "repo", "update", "site", "--path", "moved", at=tmp_path)
    told = ask(place, "repo_get", repo="site")
    assert (told["repo"]["path"], told["problem"]) == (str(tmp_path / "moved"), None)


def test_what_was_not_merged_is_told_and_lost_only_if_it_may(daemon: Daemon, site: Repo) -> None:
    place = place_of(daemon)
    repo_id = ask(place, "repo_add", path=str(site.path))["repo_id"]
    commit = bring(daemon, site, repo_id, "refs/tasks/t_1")
    told = ask(place, "repo_get", repo="site")
    assert told["unmerged"] == [{"ref": "refs/tasks/t_1", "commit": commit}]
    assert told["unmerged_count"] == 1
    refused = typed(place, "repo", "remove", "site", status=failure.CONFLICT).stderr
    assert "refs/tasks/t_1" in refused
    assert "(state-forbids)" in refused
    typed(place, "repo", "remove", "site", "--drop-unmerged")
    assert list((daemon.state_dir / places.REPOS).iterdir()) == []


def test_repositories_and_what_is_kept_of_them_outlive_the_daemon(
    tmp_path: Path, site: Repo
) -> None:
    state = tmp_path / "state"
    with running_daemon(state, tcp=TCP) as daemon:
        added = ask(place_of(daemon), "repo_add", path=str(site.path), alias="web", merge="branch")
        commit = bring(daemon, site, added["repo_id"], "refs/tasks/t_1")
        daemon.kill()
    with running_daemon(state, tcp=TCP) as daemon:
        told = ask(place_of(daemon), "repo_get", repo="web")
        assert told["repo"] == added
        assert told["unmerged"] == [{"ref": "refs/tasks/t_1", "commit": commit}]


def test_whoever_sees_only_its_own_learns_nothing_of_the_repositories_of_others(
    place: doors.Place, site: Repo
) -> None:
    scope = {"labels": {"team": ["red"]}}
    narrow = str(ask(place, "token_create", name="red", role="operator", scope=scope)["token"])
    wide = str(ask(place, "token_create", name="all", role="viewer")["token"])
    added = ask(place, "repo_add", path=str(site.path))
    for name in ("site", added["repo_id"]):
        assert say(place, "repo_get", narrow, repo=name).code == "not-found"
        assert ask(place, "repo_get", wide, repo=name)["repo"] == added
    assert ask(place, "repo_list", narrow)["items"] == []
    assert ask(place, "repo_list", wide)["items"] == [added]
    told = {"kinds": ["repo.*"], "subjects": [added["repo_id"]], "limit": 10}
    assert ask(place, "event_wait", narrow, **told, timeout_s=0.0)["events"] == []
    assert len(ask(place, "event_wait", wide, **told)["events"]) == 1
    # A path of this host is named by nobody who may not do everything.
    for token in (narrow, wide):
        assert say(place, "repo_add", token, path=str(site.path)).code == "denied"
        assert say(place, "repo_update", token, repo="site", alias="x").code == "denied"
        assert say(place, "repo_remove", token, repo="site").code == "denied"

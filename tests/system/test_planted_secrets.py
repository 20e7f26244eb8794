"""Twenty-odd secrets of a host and its user, and an agent in a machine that is given none of them.

The agent asks model APIs through the way out of its run, commits, and stops in the middle; then all
that is its own is searched, and all that the daemon writes and says. The same search finds a secret
that was given to the guest on purpose, in every place where a guest's things are.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from anyio.from_thread import start_blocking_portal

import hosted
from git_repos import Repo
from machines import LONG_S
from microvm_orchestrator import places
from microvm_orchestrator.egress import credentials
from microvm_orchestrator.service.calls import Effect
from microvm_orchestrator.service.table import CALLS
from model_api import ModelApi, open_model_api, say
from planting import Planted
from system import doors
from system.living import Stage, furnish, staged

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

CONTROL = "given to the guest on purpose"
WEBHOOK = "the secret of a webhook"
OAUTH = "an OAuth token, set as setup-token does"
OPENAI = "an OpenAI key, set"
# Those that only the file of credentials has.
KEPT = {OAUTH, OPENAI, "an Anthropic key, set", "another secret, set"}
# Calls that are asked whatever they take; more are, if they want nothing that is not known here.
ASKED = {
    *("credential_list", "token_list", "webhook_list", "audit_list", "event_wait", "whoami"),
    *("run_get", "run_list", "run_output", "run_diff", "task_get", "task_list", "repo_get"),
    *("repo_list", "machine_get", "machine_list", "machine_console", "slot_list"),
}
AGENT = """\
#!/usr/bin/python3
import json, os, subprocess, sys, urllib.request

sys.stdin.read()
base = os.environ["ANTHROPIC_BASE_URL"]

def ask(path, body, **headers):
    data = json.dumps({"model": "m", "max_tokens": 9, "tools": [{"name": "t"}], **body}).encode()
    headers = {"content-type": "application/json", **headers}
    with urllib.request.urlopen(urllib.request.Request(base + path, data, headers)) as answer:
        return json.load(answer)

asked = [{"role": "user", "content": "Do it."}]
key = os.environ["ANTHROPIC_API_KEY"]
first = ask("/v1/messages", {"messages": asked}, **{"x-api-key": key})
ask("/v1/chat/completions", {"messages": asked}, authorization="Bearer " + key)
with open("made.txt", "w") as file:
    print(first["content"][0]["text"], os.environ["GIVEN"], file=file)
subprocess.run("git add -A && git commit -q -m 'made by the agent' && sync", shell=True, check=True)
print(json.dumps({"type": "assistant", "message": {"id": "1", "content": [
    {"type": "text", "text": "asked, and told " + os.environ["GIVEN"]}]}}), flush=True)
os.mkfifo("/tmp/gate")
open("/tmp/gate").read()
print(json.dumps({"type": "result", "subtype": "success", "is_error": False, "result": "Done."}))
"""


@dataclass
class Sampler:
    """Looks at the processes of this host, again and again, for what they were started with."""

    planted: Planted
    hits: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    looked: int = 0

    @contextmanager
    def looking(self, daemon: int) -> Generator[None]:
        """Look until the block ends; of the daemon, and of what it is about to become, is known."""
        stop = threading.Event()
        own = (Path("/proc") / str(daemon) / "cmdline").read_bytes()

        def look() -> None:
            while not stop.wait(0.02):
                self._look(own)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _look(self, daemon: bytes) -> None:
        self.looked += 1
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                words = (folder / "cmdline").read_bytes()
                about = words
                # One that was just made still is the daemon; programs that look at this host alone
                # are the daemon's own.
                if words != daemon and (b"\0-name\0" in words or words.startswith(b"git\0")):
                    about += (folder / "environ").read_bytes()
            except OSError:
                continue
            for name in self.planted.found(about):
                self.hits.add((words[:200].decode(errors="replace"), name))


def plant_at_home(planted: Planted, home: Path) -> None:
    """Give a user what users have in their home."""
    token = planted.secret("a token in ~/.gitconfig")
    password = planted.secret("a stored password of git")
    files = {
        ".gitconfig": f'[http "https://example.com/"]\n\textraHeader = Authorization: {token}\n'
        "[credential]\n\thelper = store\n",
        ".git-credentials": f"https://me:{password}@example.com\n",
        ".netrc": f"machine example.com password {planted.secret('a password in ~/.netrc')}\n",
        ".ssh/id_ed25519": f"-----BEGIN {planted.secret('a private key of SSH')}\n",
        ".claude/.credentials.json": json.dumps({"token": planted.secret("a login of Claude")}),
        ".config/gh/hosts.yml": f"oauth_token: {planted.secret('a login of GitHub')}\n",
        "notes.txt": planted.secret("a file of the user's"),
    }
    for name, text in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text)


def plant_in_environment(planted: Planted, handed: Path, patch: pytest.MonkeyPatch) -> None:
    """Give the daemon what shells export, and a credential as systemd hands it over."""
    patch.setenv("ANTHROPIC_API_KEY", planted.secret("a variable with a key"))
    patch.setenv("GITHUB_TOKEN", planted.secret("a variable with a token"))
    patch.setenv("DATABASE_URL", f"db://me:{planted.secret('a variable with a password')}@host/")
    handed.mkdir()
    (handed / "secret.deploy").write_text(planted.secret("a credential of systemd"))
    patch.setenv("CREDENTIALS_DIRECTORY", str(handed))


def plant_in_repo(planted: Planted, repo: Repo) -> None:
    """Let a user's repository hold what is not in the history of its branch."""
    repo.commit({"README": "a sample\n", ".gitignore": ".env\n"}, "begin")
    repo.commit({"slip": planted.secret("a commit that was amended away")}, "slip")
    repo.git("reset", "--quiet", "--hard", "HEAD~1")
    repo.git("checkout", "--quiet", "-b", "private")
    repo.commit({"key": planted.secret("a file of another branch")}, "private")
    repo.git("checkout", "--quiet", "main")
    repo.write({"README": planted.secret("what is stashed")})
    repo.git("stash", "--quiet")
    repo.git("config", "http.extraHeader", f"Bearer {planted.secret('a header of the repo')}")
    password = planted.secret("the password of a remote")
    repo.git("remote", "add", "origin", f"https://me:{password}@example.com/x.git")
    repo.write(
        {
            "README": planted.secret("a change that is not committed"),
            "new.txt": planted.secret("a new file that is not committed"),
            ".env": planted.secret("an ignored file"),
        }
    )


def plant_in_daemon(planted: Planted, stage: Stage, folder: Path) -> str:
    """Tell the daemon what it is to keep; its own token is returned."""
    for name, kind, place, beginning in (
        ("login", "anthropic-oauth", OAUTH, "sk-ant-oat01-"),
        ("spare", "anthropic-api-key", "an Anthropic key, set", "sk-ant-api03-"),
        ("openai", "openai-api-key", OPENAI, "sk-proj-"),
        ("deploy-key", "secret", "another secret, set", ""),
    ):
        value = planted.secret(place, beginning)
        stage.ask("credential_set", name=name, kind=kind, value=value)
    url = "http://127.0.0.1:9/hook"
    stage.ask("webhook_create", url=url, secret=planted.secret(WEBHOOK), kinds=["token.revoked"])
    other = Repo.make(folder / "other")
    other.commit({"key": planted.secret("a file of another registered repo")})
    stage.ask("repo_add", path=str(other.path))
    unknown = Repo.make(folder / "unknown")
    unknown.commit({"key": planted.secret("a file of a repo that nobody registered")})
    return str(stage.ask("token_create", name="somebody", role="viewer")["token"])


@dataclass(frozen=True, slots=True)
class Scene:
    """A stage, what is planted around it, and the run that is looked at."""

    stage: Stage
    planted: Planted
    # What the guest was given on purpose; of another marker, so that no part of it is mistaken.
    given: Planted
    token: str
    task_id: str
    machine_id: str

    def found(self, data: bytes) -> set[str]:
        token = {"a token of the API"} if self.token.encode() in data else set[str]()
        return self.planted.found(data) | self.given.found(data) | token

    def in_tree(self, top: Path) -> set[str]:
        hits = [*self.planted.in_tree(top).values(), *self.given.in_tree(top).values()]
        return set[str]().union(*hits)


def started(stage: Stage, repo: Repo, control: str) -> str:
    alias = stage.ask("repo_add", path=str(repo.path))["alias"]
    asked: dict[str, Any] = {
        "repo": alias,
        "prompt": "Do it.",
        "driver": "claude",
        "files": [{"path": "/usr/local/bin/claude", "text": AGENT, "mode": 0o755}],
        "env": {"GIVEN": control},
        "memory_mib": 160,
        "disk_mib": 64,
    }
    return str(stage.ask("run_start", **asked)["task_id"])


def until_said(stage: Stage, task_id: str, words: str) -> None:
    said, offset = "", 0
    while words not in said:
        read = stage.ask("run_output", task_id=task_id, offset=offset, timeout_s=LONG_S)
        assert not read["ended"], (said, stage.ask("run_get", task_id=task_id))
        said += "".join(piece["text"] for piece in read["pieces"])
        offset = read["next"]


def of_the_guest(scene: Scene) -> dict[str, set[str]]:
    """Search all that the guest is and has, while its program runs."""
    stage, machine = scene.stage, scene.machine_id
    pid = hosted.processes(stage.daemon.state_dir)[machine]
    said = {name: _said(stage, machine, script) for name, script in _SCRIPTS.items()}
    return {
        "the memory": scene.planted.in_memory(pid) | _whole(scene.given.in_memory(pid)),
        "the disk": scene.in_tree(stage.daemon.state_dir / "machines" / machine),
        **{name: scene.found(data) for name, data in said.items()},
    }


_SCRIPTS = {
    # What is packed is seen by nobody who reads the memory or the disk.
    "the history": "git -C /workspace/repo cat-file --batch-all-objects --batch",
    "the processes": "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline | tr '\\0' '\\n'",
}


def _said(stage: Stage, machine: str, script: str) -> bytes:
    ran = stage.ask("machine_exec", machine=machine, script=script, wait_s=LONG_S)
    assert not ran["truncated"], script
    encoded = ran.get("stdout_base64")
    return base64.b64decode(encoded) if encoded else str(ran["stdout"]).encode()


def _whole(names: set[str]) -> set[str]:
    """Leave out parts of the one secret that there is: in a memory some are half overwritten."""
    return names & {CONTROL}


def of_the_answers(scene: Scene) -> tuple[set[str], set[str]]:
    """Ask all that can be asked without changing anything, by REST and by MCP.

    Returns which calls were answered, and the secrets in the answers.
    """
    known = {
        "task_id": scene.task_id,
        "machine": scene.machine_id,
        "group": "default",
        "repo": scene.stage.ask("run_get", task_id=scene.task_id)["run"]["repo_id"],
    }
    place = doors.Place(scene.stage.daemon.socket, "")
    answered, held = set[str](), set[str]()
    for call in CALLS:
        fields = call.request.model_fields
        needed = {name for name, each in fields.items() if each.is_required()}
        if call.effect is not Effect.READ or not needed <= known.keys():
            continue
        asked = {name: known[name] for name in needed}
        # What is there now, and nothing is waited for.
        now = {"timeout_s": 0.0} if "timeout_s" in fields else {}
        given = json.dumps({**asked, **now}).encode()
        for door in (doors.rest, doors.stream):
            reply = door(place, None, call.name, given)
            held |= scene.found(json.dumps(reply.value, ensure_ascii=False).encode())
            if reply.code == "ok":
                answered.add(call.name)
    return answered, held


def of_the_state(scene: Scene) -> dict[str, set[str]]:
    """Search what the daemon has written, and what its machines have."""
    return scene.planted.in_tree(scene.stage.daemon.state_dir)


def check_state(scene: Scene) -> None:
    """See that each secret that the daemon keeps is in the one file that is for it."""
    hits = of_the_state(scene)
    assert hits.pop(credentials.FILE, set[str]()) == KEPT
    store = {path for path in hits if path.startswith(places.STORE_FILE)}
    # Deliveries are signed with it, so it cannot be a digest.
    assert set[str]().union(*(hits.pop(path) for path in store)) <= {WEBHOOK}
    assert hits == {}


def test_no_secret_of_the_host_is_in_a_guest_or_in_what_the_daemon_writes_and_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted, given = Planted(), Planted()
    home, state = tmp_path / "home", tmp_path / "s"
    plant_at_home(planted, home)
    monkeypatch.setenv("HOME", str(home))
    plant_in_environment(planted, tmp_path / "handed", monkeypatch)
    repo = Repo.make(tmp_path / "repo")
    plant_in_repo(planted, repo)
    control = given.secret(CONTROL)
    furnish(state)
    sampler = Sampler(planted)
    try:
        with (
            _model_api() as api,
            staged(
                state,
                egress={"anthropic_url": api.url, "openai_url": api.url},
                webhooks={"allow_private_targets": True},
            ) as stage,
        ):
            token = plant_in_daemon(planted, stage, tmp_path)
            assert len(planted.names) >= 20
            with sampler.looking(stage.daemon.pid):
                task_id = started(stage, repo, control)
                until_said(stage, task_id, "asked, and told")
                machine = stage.ask("run_get", task_id=task_id)["run"]["machine_id"]
                scene = Scene(stage, planted, given, token, task_id, machine)
                # Neither more nor less than what it was given.
                found = of_the_guest(scene)
                assert found == {place: {CONTROL} for place in found}
                check_state(scene)
                answered, held = of_the_answers(scene)
                assert held == {CONTROL}
                stage.said(machine, "echo >/tmp/gate")
                assert stage.ask("task_wait", task_id=task_id, timeout_s=LONG_S)["finished"]
            run = stage.ask("run_get", task_id=task_id)
            assert run["task"]["state"] == "done", run
            again, held = of_the_answers(scene)
            assert held == {CONTROL}
            assert answered | again >= ASKED, ASKED - answered - again
            check_state(scene)
        _check_what_was_used(api, scene, repo, run["run"])
    finally:
        for pid in hosted.processes(state).values():
            os.kill(pid, 9)
    assert sampler.looked > 10
    assert sampler.hits == set()
    # With the daemon gone, what it had still to write is written.
    check_state(scene)
    scratch = planted.in_tree(Path(os.environ["TMPDIR"]))
    assert scratch == {}


def _check_what_was_used(api: ModelApi, scene: Scene, repo: Repo, run: dict[str, Any]) -> None:
    """See that the keys were there all along, on the other side, and that the work came back."""
    keys = [scene.found((request.key or "").encode()) for request in api.requests]
    assert keys == [{OAUTH}, {OPENAI}]
    assert run["usage"]["requests"] == 2
    assert scene.found((repo.path / "made.txt").read_bytes()) == {CONTROL}


@contextmanager
def _model_api() -> Generator[ModelApi]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(open_model_api([say("done")])) as api,
    ):
        yield api


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda secret: secret,
    "base64-1": lambda secret: base64.b64encode(b"x" + secret),
    "base64-2": lambda secret: base64.b64encode(b"xy" + secret),
    "base64-3": lambda secret: base64.b64encode(b"xyz" + secret),
    "hex": lambda secret: secret.hex().encode(),
    "wide": lambda secret: secret.decode().encode("utf-16-le"),
    "capitals": lambda secret: secret.upper(),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_search_finds_a_secret_in_whatever_form(tmp_path: Path, form: str) -> None:
    planted = Planted()
    secret = FORMS[form](planted.secret("somewhere").encode())
    # Also where a file is read in pieces.
    (tmp_path / "file").write_bytes(bytes((8 << 20) - len(secret) // 2) + secret)
    assert planted.in_tree(tmp_path).keys() == {"file"}
    assert planted.found(b"nothing") == set()

"""Who may do what, seen from outside: roles, audit, sight, users of the host, tokens that end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from daemon import running_daemon
from git_repos import Repo
from machines import publish_no_image
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.service.calls import Effect
from microvm_orchestrator.service.table import CALLS
from system import agent_deeds, cluster_deeds, doors
from system.least import BESIDE, LEAST
from system.world import SLOTS, World, world_in

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 30.0

HOLDERS = {
    Role.VIEWER: "viewer",
    Role.WORKER: "ann",
    Role.OPERATOR: "operator",
    Role.ADMIN: "admin",
}
# No call takes it, and each says so only to whom it would answer.
NONSENSE = {"nonsense": "x"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("access")
    hooks = {"allow_private_targets": True, "max_attempts": 1}
    with world_in(folder, webhooks=hooks) as world:
        yield world


# Roles


def test_every_call_has_the_role_that_was_decided_for_it() -> None:
    decided = {name: role for role, names in LEAST.items() for name in names.split()}
    assert {call.name: call.role for call in CALLS} == decided


@pytest.mark.parametrize("role", list(Role))
def test_each_role_reaches_exactly_its_calls_over_every_door(world: World, role: Role) -> None:
    token = world.tokens[HOLDERS[role]]
    expected = {
        call.name: "invalid-input" if role.reaches(call.role) else "denied" for call in CALLS
    }
    for door in (doors.rest, doors.stream, doors.streamable):
        found = {
            call.name: door(world.place, token, call.name, _nonsense(call.name)).code
            for call in CALLS
        }
        assert found == expected


def _nonsense(call: str) -> bytes:
    fields = dict.fromkeys(doors.path_fields(call), "x")
    return json.dumps({**fields, **NONSENSE}).encode()


def test_every_refusal_of_a_change_is_in_the_audit_log_and_none_of_a_read(world: World) -> None:
    doors_said = {"rest": doors.rest, "mcp": doors.stream}
    for role, holder in HOLDERS.items():
        since = world.every("audit_list")[0]["seq"]
        for door in doors_said.values():
            for call in CALLS:
                door(world.place, world.tokens[holder], call.name, _nonsense(call.name))
        rows = [row for row in world.every("audit_list") if row["seq"] > since]
        outcomes = {
            call.name: "invalid-input" if role.reaches(call.role) else "denied"
            for call in CALLS
            if call.audited
        }
        for via in doors_said:
            found = {row["action"]: row["outcome"] for row in rows if row["via"] == via}
            assert found == outcomes
        assert len(rows) == len(doors_said) * len(outcomes)
        assert {(row["actor"], row["role"]) for row in rows} == {(holder, role)}


# The audit log


@dataclass
class Ledger:
    """Makes calls, and finds the line of each in the audit log."""

    world: World
    newest: int = 0
    found: set[str] = field(default_factory=set[str])

    def act(
        self, call: str, target: str = "", /, by: str = "admin", to: str = "ok", **arguments: Any
    ) -> dict[str, Any]:
        """Make a call; its one line names `target`, or else the first thing that it made."""
        answer = self.world.ask(call, by=by, **arguments)
        lines = self.world.every("audit_list", action=call)
        [line] = [line for line in lines if line["seq"] > self.newest]
        made = [*answer.get("tasks", []), answer][0]
        made_by = (
            "forward_id",
            "fault_id",
            "network_id",
            "repo_id",
            "task_id",
            "token_id",
            "webhook_id",
            "machine_id",
            "cluster_id",
            "path",
            "target",
        )
        ids = [made[name] for name in made_by if name in made]
        assert line["target"] == (target or ids[0])
        role = Role.WORKER if by == "ann" else Role.ADMIN
        assert (line["actor"], line["role"], line["via"], line["outcome"]) == (by, role, "rest", to)
        self.newest = max(self.newest, line["seq"])
        self.found.add(call)
        return answer

    def refused(self, call: str, target: str, code: str, **arguments: Any) -> None:
        """Make a call that is refused, which is written down as well."""
        words = json.dumps(arguments).encode()
        assert doors.rest(self.world.place, self.world.tokens["admin"], call, words).code == code
        lines = self.world.every("audit_list", action=call)
        [line] = [line for line in lines if line["seq"] > self.newest]
        assert (line["target"], line["outcome"]) == (target, code)
        self.newest = max(self.newest, line["seq"])
        self.found.add(call)


def test_every_change_is_in_the_audit_log_with_who_what_and_to_which_end(world: World) -> None:
    ledger = Ledger(world, world.every("audit_list")[0]["seq"])
    _work(ledger)
    _plan(ledger)
    _run(ledger)
    _house(ledger)
    cluster_deeds.do_all(ledger)
    _repos(ledger)
    assert ledger.found == {call.name for call in CALLS if call.audited}


def _work(ledger: Ledger) -> None:
    act = ledger.act
    task = act("task_submit", capabilities=["audited"])["task_id"]
    act("task_update", task, task_id=task, changes={"title": "x"})
    for end in ("task_release", "task_fail", "task_complete"):
        claimed = act("task_claim", task, by="ann", capabilities=["audited"])
        held = {"by": "ann", "task_id": task, "token": claimed["tasks"][0]["lease"]["token"]}
        if end == "task_complete":
            act("task_extend", **held, successors=[{"capabilities": ["nobody-has-this"]}])
        act(end, task, **held)
        if end == "task_fail":
            act("task_retry", task, task_id=task)
    other = act("task_submit", group="audited")["task_id"]
    act("task_cancel", other, task_id=other)
    act("task_delete", other, task_id=other)


def _plan(ledger: Ledger) -> None:
    act, group = ledger.act, {"group": "audited"}
    act("graph_submit", tasks=[{"key": "one"}], **group)
    waiting = act("run_start", argv=["true"], depends_on=["one"], **group)["task_id"]
    for call in ("task_resume", "run_approve", "run_reject", "run_merge", "merge_resolve"):
        ledger.refused(call, waiting, "state-forbids", task_id=waiting)
    act("plan_submit", documents=[{"name": "TODO.md", "text": "- two"}], **group)
    act("group_prioritize", "group audited", priority="high", **group)
    act("group_cancel", "group audited", **group)
    act("group_retry", "group audited", **group)
    act("template_save", "audited@000001", name="audited", tasks=[{"title": "x"}])
    act("template_run", name="audited", **group)
    act("template_delete", "audited@000001", name="audited")


def _run(ledger: Ledger) -> None:
    act = ledger.act
    act("worker_drain", "bob", worker="bob")
    act("worker_remove", "bob", worker="bob")
    token = act("token_create", name="short", role="viewer")["token_id"]
    act("token_revoke", token, token_id=token)
    # Nobody listens on port 1, and one attempt is all it gets.
    hook = act("webhook_create", url="http://127.0.0.1:1/")["webhook_id"]
    act("webhook_update", hook, webhook_id=hook, description="x")
    act("webhook_test", hook, to="refused", webhook_id=hook)
    letter = _dead_letter(ledger.world, hook)
    act("delivery_retry", letter, delivery_id=letter)
    act("webhook_delete", hook, webhook_id=hook)
    act("backup_create")
    key = {"name": "spare", "kind": "secret", "value": "not-in-the-log"}
    act("credential_set", "spare", **key)
    act("credential_remove", "spare", name="spare")


def _house(ledger: Ledger) -> None:
    act = ledger.act

    def machine(verb: str, /, **more: Any) -> dict[str, Any]:
        return act(f"machine_{verb}", box, machine="box", **more)

    box = act("machine_define", name="box")["machine_id"]
    machine("start")
    machine("pause")
    machine("resume")
    run: dict[str, Any] = {"argv": ["sleep", "60"], "stdin_open": True, "wait_s": 0}
    act("machine_exec", "sleeper", machine="box", exec_id="sleeper", **run)
    act("exec_input", "sleeper", exec_id="sleeper", data="x")
    act("exec_signal", "sleeper", exec_id="sleeper", signal="KILL")
    act("file_put", box, machine="box", path=str(ledger.world.daemon.state_dir / "f"), content="x")
    saved = act("snapshot_create", box, machine="box")["result"]["snapshot_id"]
    act("snapshot_verify", saved, snapshot_id=saved)
    [branch] = act("machine_branch", saved, source=saved)["result"]["machines"]
    _cancel(ledger)
    act("machine_kill", branch["machine_id"], machine=branch["machine_id"])
    act("machine_delete", branch["machine_id"], machine=branch["machine_id"])
    machine("stop")
    machine("delete")
    act("snapshot_delete", saved, snapshot_id=saved)
    lan = act("network_create", name="lan")["network_id"]
    cached = act("machine_define", name="cached", cache="repo", networks=["lan"])["machine_id"]
    act("machine_start", cached, machine="cached")
    ledger.world.ask("machine_define", by="admin", name="peer", networks=["lan"])
    broken = act("fault_inject", network="lan", kind="link_down", machine="cached")["fault_id"]
    act("fault_renew", broken, fault_id=broken, ttl_s=60)
    act("fault_heal", broken, fault_id=broken)
    broken = act("fault_inject", network="lan", kind="link_down", machine="cached")["fault_id"]
    act("fault_heal_all", broken, network="lan")
    ledger.world.ask("machine_delete", by="admin", machine="peer")
    agent_deeds.do_all(ledger)
    made = act("forward_add", machine="cached", guest="80")["forward_id"]
    act("forward_remove", made, forward_id=made)
    act("machine_kill", cached, machine="cached")
    act("cache_remove", "repo", domain="repo")
    ledger.refused("kernel_log_mark", "cached", "state-forbids", machine="cached")
    act("machine_delete", cached, machine="cached")
    act("network_remove", lan, network="lan")
    # It is begun, and ends before it asks anybody for anything.
    act("image_build", "other", name="other", packages=["No-Package"])
    act("image_add", "runner", name="runner", runner="/no/such/runner")
    [image] = ledger.world.ask("image_list")["items"]
    # Begun too; what stands for QEMU here cannot do it.
    act("machine_run", image["digest"], deterministic=1, argv=["true"], timeout_s=1.0)
    act("image_remove", image["digest"], image="embedded")


def _repos(ledger: Ledger) -> None:
    act = ledger.act
    path = str(Repo.make(ledger.world.daemon.state_dir / "site").path)
    site = act("repo_add", path=path)["repo_id"]
    act("repo_update", site, repo="site", alias="web")
    act("repo_remove", site, repo="web")


def _cancel(ledger: Ledger) -> None:
    """Cancel a start that waits in line: every slot is taken."""
    act = ledger.act
    assert len(ledger.world.every("machine_list", state=["running"])) == SLOTS
    third = act("machine_define", name="third")["machine_id"]
    waiting = act("machine_start", third, machine="third", wait_s=0)["operation_id"]
    act("operation_cancel", waiting, operation_id=waiting)
    ended = ledger.world.ask("operation_wait", operation_id=waiting)["operation"]
    assert ended["state"] == "cancelled"
    act("machine_delete", third, machine="third")


def _dead_letter(world: World, hook: str) -> str:
    """Give a delivery of the webhook that was given up, once there is one."""
    world.ask("task_submit", group="audited")
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if dead := world.every("delivery_list", webhook_id=hook, state="dead"):
            return dead[0]["delivery_id"]
    raise AssertionError("nothing was given up")


# Sight


# What red must never read: the ids, keys and groups of blue.
def test_whoever_sees_red_reads_nothing_of_blue(world: World) -> None:
    blue = {world.names["blue"], world.names["crossing"], '"blue"', '"crossing"'}
    reads: tuple[tuple[str, dict[str, Any]], ...] = (
        ("task_list", {"limit": 200}),
        ("task_list", {"group": "blue"}),
        ("task_list", {"labels": {"team": "blue"}}),
        ("task_list", {"text": "blue"}),
        ("task_list", {"owner": "uid:0"}),
        ("group_list", {"limit": 200}),
        ("group_tasks", {"group": "blue"}),
        ("group_tasks", {"group": "red"}),
        ("group_get", {"group": "red"}),
        ("group_report", {"group": "red"}),
        ("task_get", {"task_id": world.names["red"]}),
        ("task_history", {"task_id": world.names["red"]}),
        ("task_runs", {"task_id": world.names["red"]}),
        ("event_wait", {"limit": 1000}),
        ("event_wait", {"groups": ["blue"]}),
        ("event_wait", {"subjects": [world.names["blue"], world.names["crossing"]]}),
        ("metrics_get", {}),
        ("metrics_get", {"group": "blue"}),
        ("webhook_list", {}),
        ("delivery_list", {}),
        ("token_list", {}),
    )
    for call, arguments in reads:
        told = json.dumps(world.ask(call, by="red", **arguments))
        assert not [name for name in blue if name in told], (call, arguments, told)
    # The same for who sees all: the names are there to be read.
    assert '"blue"' in json.dumps(world.ask("task_list", limit=200))


def test_whoever_sees_only_its_own_neither_sees_nor_touches_the_machines_of_others(
    world: World,
) -> None:
    ask = world.ask
    publish_no_image(ImageStore(world.daemon.state_dir / places.IMAGES), "embedded")
    box = ask("machine_define", by="admin", name="blackbox")["machine_id"]
    started = ask("machine_start", by="admin", machine="blackbox")["operation_id"]
    run: dict[str, Any] = {"argv": ["sleep", "60"], "wait_s": 0, "exec_id": "blackrun"}
    ask("machine_exec", by="admin", machine=box, **run)
    forward = ask("forward_add", by="admin", machine=box, guest="80")["forward_id"]
    saved = ask("snapshot_create", by="admin", machine=box)
    snapshot = saved["result"]["snapshot_id"]
    named = {
        "machine": (box, "blackbox"),
        "snapshot_id": (snapshot,),
        "source": (box, "blackbox", snapshot),
        "operation_id": (started, saved["operation_id"]),
        "exec_id": ("blackrun",),
        "forward_id": (forward,),
    }
    black = cluster_deeds.folder(world, "black")
    tree = ask("artifact_register", by="admin", path=black)["result"]["artifact_id"]
    named["artifact_id"] = (tree,)
    topology = cluster_deeds.TOPOLOGY.replace("lone", "blackcluster").replace(
        "one,", "one, image: embedded,"
    )
    cluster = ask("cluster_define", by="admin", topology=topology)["cluster_id"]
    named["cluster"] = (cluster, "blackcluster")
    before = ask("machine_get", machine=box)
    asked: set[str] = set()
    for call in CALLS:
        for field_ in set(named) & set(call.request.model_fields):
            if not call.request.model_fields[field_].is_required():
                continue
            for name in named[field_]:
                given = json.dumps({**BESIDE.get(call.name, {}), field_: name}).encode()
                reply = doors.rest(world.place, world.tokens["red"], call.name, given)
                code = "denied" if call.role is Role.ADMIN else "not-found"
                assert reply.code == code, (call.name, reply)
                asked.add(call.name)
    assert len(asked) >= 20
    mine = ask("machine_define", by="red", name="redbox")["machine_id"]
    secrets = {name for names in named.values() for name in names}
    for call in CALLS:
        if call.effect is not Effect.READ or call.role is Role.ADMIN or call.waits:
            continue
        if any(each.is_required() for each in call.request.model_fields.values()):
            continue
        told = json.dumps(ask(call.name, by="red"))
        assert not [name for name in secrets if name in told], call.name
    refused = doors.rest(world.place, world.tokens["red"], "image_remove", b'{"image": "embedded"}')
    assert refused.code == "state-forbids"
    assert not [name for name in secrets if name in json.dumps(refused.value)]
    # What becomes of its own it sees, whoever did that; of others' nothing.
    ask("machine_delete", by="admin", machine=mine)
    read = ask("event_wait", by="red", kinds=["machine.*", "operation.*", "snapshot.*"], limit=1000)
    told = {(event["subject"], event["kind"]) for event in read["events"]}
    assert told == {(mine, "machine.defined"), (mine, "machine.deleted")}
    assert ask("machine_get", machine=box) == before
    ask("machine_kill", by="admin", machine=box)
    ask("machine_delete", by="admin", machine=box)
    ask("snapshot_delete", by="admin", snapshot_id=snapshot)
    ask("cluster_destroy", by="admin", cluster=cluster)
    ask("artifact_remove", by="admin", artifact_id=tree)


def test_figures_count_only_what_their_reader_sees(world: World) -> None:
    mine = [task for task in world.every("task_list") if task["labels"].get("team") == "red"]
    counts = world.ask("metrics_get", by="red")["tasks"]
    assert sum(counts.values()) == len(mine) > 0
    assert sum(world.ask("metrics_get")["tasks"].values()) > len(mine)
    assert sum(world.ask("metrics_get", by="red", group="blue")["tasks"].values()) == 0
    assert world.ask("metrics_get", by="red")["workers"] == []
    groups = world.every("group_list", by="red")
    assert [(group["group"], group["total"]) for group in groups] == [("red", 1)]


def test_a_claim_neither_takes_nor_tells_of_what_its_worker_cannot_see(world: World) -> None:
    made = world.ask("task_submit", group="sky", key="cloud", labels={"team": "blue"})
    for asked in ({"groups": ["sky"]}, {"groups": ["sky"], "wait_s": 0.1}):
        told = world.ask("task_claim", by="redworker", **asked)
        assert (told["verdict"], told["tasks"], told["stuck"]) == ("all_done", [], [])
    [taken] = world.ask("task_claim", by="ann", groups=["sky"])["tasks"]
    assert taken["task"]["task_id"] == made["task_id"]
    assert world.ask("task_claim", by="redworker", groups=["sky"])["verdict"] == "all_done"


def test_a_completion_tells_a_worker_only_of_what_it_sees(world: World) -> None:
    first = world.ask("task_submit", group="mixed", key="first", labels={"team": "red"})["task_id"]
    for team in ("red", "blue"):
        after: dict[str, Any] = {"depends_on": [first], "labels": {"team": team}}
        world.ask("task_submit", **after, group="mixed", key=team)
    [taken] = world.ask("task_claim", by="redworker", groups=["mixed"])["tasks"]
    held = {"task_id": first, "token": taken["lease"]["token"]}
    for repeated in (False, True):
        settled = world.ask("task_complete", by="redworker", **held)
        assert [task["key"] for task in settled["unlocked"]] == ["red"]
        assert settled["repeated"] is repeated
    assert world.ask("task_get", task_id="blue", group="mixed")["state"] == "ready"


def test_what_follows_a_change_is_not_told_beyond_ones_sight(world: World) -> None:
    first = world.ask("task_submit", group="chain", key="first", labels={"team": "red"})["task_id"]
    after: dict[str, Any] = {
        "depends_on": [first],
        "on_unmet": "cancel",
        "labels": {"team": "blue"},
    }
    second = world.ask("task_submit", group="chain", key="second", **after)["task_id"]
    assert world.ask("task_cancel", by="red", task_id=first)["task_ids"] == [first]
    # Its own rule says that it goes when the first does.
    assert world.ask("task_get", task_id=second)["state"] == "cancelled"
    assert world.ask("task_retry", by="red", task_id=first)["task_ids"] == [first]
    assert world.ask("task_get", task_id=second)["state"] == "blocked"
    # And what does not go by itself is not taken along.
    world.ask("task_update", task_id=second, changes={"on_unmet": "wait"})
    gone = world.ask("task_cancel", by="red", task_id=first, cascade=True)
    assert gone["task_ids"] == [first]
    assert world.ask("task_get", task_id=second)["state"] == "blocked"


def test_mcp_offers_no_resource_or_completion_beyond_ones_sight(world: World) -> None:
    with doors.mcp_stream(world.place, world.tokens["red"]) as say:
        listed = say("resources/list", {})["result"]["resources"]
        assert [each["uri"] for each in listed if "blue" in each["uri"]] == []
        for name, typed in (("group", "b"), ("group", ""), ("task_id", ""), ("task_id", "blue")):
            asked = {
                "ref": {"type": "ref/resource", "uri": f"task://{{{name}}}"},
                "argument": {"name": name, "value": typed},
            }
            offered = say("completion/complete", asked)["result"]["completion"]["values"]
            assert not {world.names["blue"], world.names["crossing"], "blue"} & set(offered)
        for uri in (f"task://{world.names['blue']}", "group://blue", "task://blue/history"):
            refused = say("resources/read", {"uri": uri})["error"]
            assert refused["message"].startswith("not-found: ")


# Users of the host

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
SOMEBODY, NOBODY_KNOWN, LISTED, COMMON = 61_001, 61_002, 61_003, 61_010

# Becomes somebody else once everything is loaded, for nothing here may be readable to them.
_AS_SOMEBODY = """
import json, os, socket, sys
path, uid, gid, *groups = sys.argv[1:]
os.setgroups([int(group) for group in groups])
os.setgid(int(gid))
os.setuid(int(uid))
client = socket.socket(socket.AF_UNIX)
try:
    client.connect(path)
except PermissionError:
    print(json.dumps({"name": "kept out"}))
    sys.exit()
client.sendall(b"GET /v1/whoami HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
print(client.makefile("rb").read().partition(b"\\r\\n\\r\\n")[2].decode())
"""


def _whoami(path: Path, uid: int, gid: int, *groups: int) -> tuple[str, str | None]:
    """Ask who the daemon takes a user for that is in these groups."""
    words = [sys.executable, "-c", _AS_SOMEBODY, str(path), str(uid), str(gid), *map(str, groups)]
    done = subprocess.run(words, capture_output=True, timeout=PATIENCE_S, check=True)
    told = json.loads(done.stdout)
    return told["name"], told.get("role")


@needs_root
def test_a_user_of_the_host_has_the_role_of_its_uid_else_of_its_groups(tmp_path: Path) -> None:
    roles = {
        "uid_roles": {SOMEBODY: "viewer"},
        "gid_roles": {COMMON: "worker", LISTED: "admin"},
        "default_role": "viewer",
    }
    # Where others may go in; the test's own folder is closed to them.
    with tempfile.TemporaryDirectory(dir="/tmp") as open_folder:
        Path(open_folder).chmod(0o755)
        path = Path(open_folder) / "socket"
        mode = {"mode": 0o666}
        with running_daemon(tmp_path / "s", socket_path=path, access=roles, socket=mode):
            assert _whoami(path, 0, 0) == ("uid:0", "admin")
            assert _whoami(path, SOMEBODY, LISTED, COMMON) == (f"uid:{SOMEBODY}", "viewer")
            assert _whoami(path, NOBODY_KNOWN, NOBODY_KNOWN) == (f"uid:{NOBODY_KNOWN}", "viewer")
            assert _whoami(path, NOBODY_KNOWN, NOBODY_KNOWN, COMMON)[1] == "worker"
            assert _whoami(path, NOBODY_KNOWN, COMMON, LISTED)[1] == "admin"
            assert _whoami(path, LISTED, NOBODY_KNOWN)[1] == "viewer"


@needs_root
def test_a_user_whom_the_socket_is_closed_to_never_gets_to_the_daemon(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as open_folder:
        Path(open_folder).chmod(0o755)
        path = Path(open_folder) / "socket"
        with running_daemon(tmp_path / "s", socket_path=path, socket={"mode": 0o660}):
            assert _whoami(path, SOMEBODY, SOMEBODY) == ("kept out", None)
            assert _whoami(path, SOMEBODY, 0)[1] == "operator"


# Tokens that end


def test_a_revoked_token_is_of_no_use_from_that_moment_on_over_any_door(world: World) -> None:
    made = world.ask("token_create", name="leaver", role="operator")
    token = made["token"]
    asks = (doors.rest, doors.stream, doors.streamable)
    assert {ask(world.place, token, "whoami", b"{}").code for ask in asks} == {"ok"}
    with doors.mcp_stream(world.place, token) as say:
        assert not say("tools/call", {"name": "whoami", "arguments": {}})["result"]["isError"]
        world.ask("token_revoke", token_id=made["token_id"])
        assert {ask(world.place, token, "whoami", b"{}").code for ask in asks} == {
            "unauthenticated"
        }
        # The open stream is ended; whatever still gets through is refused.
        try:
            told = say("tools/call", {"name": "task_submit", "arguments": {"title": "late"}})
        except (EOFError, ConnectionError):
            pass
        else:
            assert told["result"]["content"][0]["text"].startswith("unauthenticated: ")
    assert world.every("task_list", text="late") == []


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_claim_that_waits_is_given_nothing_once_its_token_has_ended(
    world: World, how: str
) -> None:
    life: dict[str, Any] = {"expires_in_s": 1.0} if how == "expired" else {}
    made = world.ask("token_create", name=f"waiting-{how}", role="worker", **life)
    asked = {"name": "task_claim", "arguments": {"groups": [how], "wait_s": 600.0}}
    with doors.mcp_stream(world.place, made["token"]) as say:
        say.send("tools/call", asked)
        if how == "revoked":
            world.ask("token_revoke", token_id=made["token_id"])
        # Its end, or the word that it has ended, comes long before the 600 seconds are over.
        heard = say.rest()
    assert all("unauthenticated: " in line or "Connection closed" in line for line in heard), heard
    task = world.ask("task_submit", group=how)["task_id"]
    assert world.ask("task_get", task_id=task)["state"] == "ready"


def test_a_stream_of_events_ends_with_its_token(world: World) -> None:
    made = world.ask("token_create", name="listener", role="viewer")
    head = (
        "GET /v1/events/stream?after=now HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {made['token']}\r\n\r\n"
    )
    with world.place.connected() as client, client.makefile("rb") as lines:
        client.sendall(head.encode())
        assert b" 200 " in lines.readline()
        while not lines.readline().startswith(b"id: "):
            pass
        world.ask("token_revoke", token_id=made["token_id"])
        world.ask("task_submit", key="after-it")
        assert b"after-it" not in b"".join(iter(lines.readline, b"0\r\n"))

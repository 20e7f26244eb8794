"""What is there before anything hostile is said: tasks, tokens, cursors, and their daemon.

The table of inputs names these things as `$name`. What a refusal must not have changed is read
back by `belongings`.
"""

from __future__ import annotations

import base64
import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from daemon import Daemon, running_daemon
from machines import fake_program, publish_no_image
from microvm_orchestrator import places
from microvm_orchestrator.images.store import ImageStore
from system import doors

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

TCP = {"listen": "127.0.0.1:0"}
# Of machines, which only look so.
SLOTS = 2


@dataclass(frozen=True, slots=True)
class World:
    """A daemon and the names of what it holds."""

    daemon: Daemon
    place: doors.Place
    names: dict[str, str]
    tokens: dict[str, str | None]
    # What there was when it was ready.
    before: dict[str, object]

    def filled(self, text: bytes) -> bytes:
        # The longest first: one name may begin like another.
        for name, value in sorted(self.names.items(), key=lambda item: -len(item[0])):
            text = text.replace(f"${name}".encode(), value.encode())
        return text

    def words(self, words: tuple[str, ...]) -> list[str]:
        return [self.filled(word.encode()).decode() for word in words]

    def ask(self, call: str, /, by: str = "root", **arguments: Any) -> dict[str, Any]:
        reply = doors.rest(self.place, self.tokens[by], call, json.dumps(arguments).encode())
        assert reply.code == "ok", reply
        return reply.value

    def every(self, call: str, /, by: str = "root", **arguments: Any) -> list[dict[str, Any]]:
        """Give all of a list."""
        items: list[dict[str, Any]] = []
        more: dict[str, Any] = {}
        while True:
            page = self.ask(call, by=by, limit=200, **arguments, **more)
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            more = {"cursor": page["next_cursor"]}

    def belongings(self) -> dict[str, object]:
        """Everything that a refused request could have made, changed or taken away."""
        tasks = self.every("task_list")
        return {
            "tasks": {
                task["task_id"]: self.ask("task_get", task_id=task["task_id"]) for task in tasks
            },
            "tokens": [token["token_id"] for token in self.every("token_list")],
            "templates": [(each["name"], each["version"]) for each in self.every("template_list")],
            "webhooks": self.every("webhook_list"),
            "workers": sorted(worker["worker"] for worker in self.every("worker_list")),
            "machines": self.every("machine_list"),
            "snapshots": self.every("snapshot_list"),
            "operations": self.every("operation_list"),
            "forwards": self.ask("forward_list"),
            "caches": self.ask("cache_list"),
            "images": self.ask("image_list"),
            "backups": sorted(path.name for path in self.daemon.state_dir.glob("backups/*")),
        }


@contextmanager
def world_in(folder: Path, webhooks: dict[str, Any] | None = None) -> Generator[World]:
    """Run a daemon and fill it; `webhooks` is a table of its settings."""
    publish_no_image(ImageStore(folder / places.IMAGES), "embedded")
    machines = {"qemu": str(fake_program(folder)), "count": SLOTS}
    with running_daemon(folder, tcp=TCP, webhooks=webhooks or {}, machines=machines) as daemon:
        assert daemon.tcp is not None
        world = World(daemon, doors.Place(daemon.socket, daemon.tcp), {}, {"root": None}, {})
        _let_in(world)
        _submit(world)
        _work(world)
        _keep(world)
        world.before.update(world.belongings())
        yield world


def _let_in(world: World) -> None:
    sight = {"labels": {"team": ["red"]}}
    holders: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("viewer", "viewer", {}),
        ("operator", "operator", {}),
        ("ann", "worker", {}),
        ("bob", "worker", {}),
        ("red", "operator", {"scope": sight}),
        ("redworker", "worker", {"scope": sight}),
        ("expired", "admin", {"expires_in_s": 1e-6}),
        ("revoked", "admin", {}),
    )
    for name, role, more in holders:
        made = world.ask("token_create", name=name, role=role, **more)
        world.tokens[name] = made["token"]
        world.names[f"{name}_token_id"] = made["token_id"]
    world.ask("token_revoke", token_id=world.names["revoked_token_id"])
    admin = world.ask("token_create", name="admin", role="admin")["token"]
    world.tokens.update(
        {
            "admin": admin,
            "malformed": "mo_tok_1",
            "wrong secret": admin[:-4] + "AAAA",
            "long": "x" * 5000,
        }
    )


def _submit(world: World) -> None:
    def submit(name: str, **spec: Any) -> None:
        world.names[name] = world.ask("task_submit", key=name, **spec)["task_id"]

    submit("standing", priority="urgent", capabilities=["none-has-this"])
    submit("held", priority="urgent", capabilities=["holding"])
    submit("finished", priority="urgent", capabilities=["finishing"])
    # A ring lacks only the edge from the first to the third.
    submit("first", capabilities=["none-has-this"])
    submit("second", depends_on=["first"])
    submit("third", depends_on=["second"])
    submit("blue", group="blue", labels={"team": "blue"}, capabilities=["none-has-this"])
    submit("red", group="red", labels={"team": "red"}, capabilities=["none-has-this"])
    # Blue's task waits for one that red sees.
    submit("crossing", group="blue", labels={"team": "blue"}, depends_on=[world.names["red"]])
    submit("gone")
    world.ask("task_delete", task_id="gone")
    world.ask(
        "task_submit",
        by="admin",
        title="as first said",
        idempotency_key="used",
        capabilities=["none-has-this"],
    )
    tasks = [{"key": "said", "capabilities": ["none-has-this"]}]
    world.ask("graph_submit", by="admin", tasks=tasks, group="said", idempotency_key="used-graph")


def _work(world: World) -> None:
    for name, by in (("held", "ann"), ("finished", "ann")):
        [capability] = world.ask("task_get", task_id=name)["capabilities"]
        [taken] = world.ask("task_claim", by=by, capabilities=[capability], lease_s=86_400.0)[
            "tasks"
        ]
        world.names[f"{name}_lease"] = str(taken["lease"]["token"])
    world.ask("task_complete", by="ann", task_id="finished", token=1, result={"n": 1})
    world.ask(
        "task_extend",
        by="ann",
        task_id="held",
        token=1,
        idempotency_key="grown",
        children=[{"key": "child", "capabilities": ["none-has-this"]}],
    )


def _keep(world: World) -> None:
    parameters = {"x": {}, "n": {"type": "integer", "default": 3}}
    tasks = [
        {
            "key": "of-{{x}}",
            "title": "{{x}}",
            "input": {"$param": "n"},
            "capabilities": ["none-has-this"],
        }
    ]
    world.ask("template_save", name="known", parameters=parameters, tasks=tasks)
    run = {"name": "known", "parameters": {"x": "a"}, "group": "ran"}
    world.ask("template_run", by="admin", idempotency_key="used-run", **run)
    world.ask("worker_register", by="ann", ttl_s=86_400.0)
    world.ask("worker_register", by="bob", ttl_s=86_400.0)
    elsewhere = base64.urlsafe_b64encode(b"0123456789abcdef.5").decode().rstrip("=")
    here = world.ask("event_wait", limit=1)["cursor"]
    epoch = base64.urlsafe_b64decode(here + "==").partition(b".")[0]
    ahead = base64.urlsafe_b64encode(epoch + b".999999999").decode().rstrip("=")
    world.names.update(
        {
            "event_cursor": here,
            "cursor_of_another_store": elsewhere,
            "cursor_ahead": ahead,
            "worker_cursor": world.ask("worker_list", limit=1)["next_cursor"],
            "task_cursor": world.ask("task_list", limit=1)["next_cursor"],
        }
    )

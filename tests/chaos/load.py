"""A client under way: submits graphs, works on tasks, fails, gives back, cancels, and keeps books.

A program: `python -m chaos.load SOCKET RECORD SEED`; it goes on until its standard input ends.
A request whose answer was lost is asked again with the same key or token, until it is known what
became of it. A claim has neither; after a lost one the client looks what it holds.
"""

from __future__ import annotations

import random
import select
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chaos.ask import Asker, NobodyKnows, NotHeard
from chaos.record import Recorder

GROUPS = ("red", "green", "blue")
LEASE_S = 3.0
# Enough to keep a daemon busy, and little enough that several clients share two cores with it.
_PAUSE_S = 0.004
_HELD_MAX = 6
_CANCELLABLE = 40


@dataclass(frozen=True, slots=True)
class Held:
    """A task this client holds."""

    task_id: str
    token: int


class Client:
    """One client's life."""

    def __init__(self, asker: Asker, recorder: Recorder, name: str, seed: str) -> None:
        self._asker = asker
        self._recorder = recorder
        self._name = name
        self._random = random.Random(seed)
        self._held: list[Held] = []
        self._ever_held: set[Held] = set()
        self._mine: list[str] = []
        self._submitted = 0
        self._said = 0

    def step(self) -> None:
        dice = self._random.random()
        if dice < 0.12:
            self._submit()
        elif dice < 0.14:
            self._cancel()
        elif not self._held or (len(self._held) < _HELD_MAX and dice < 0.45):
            self._claim()
        else:
            self._work(self._held.pop(self._random.randrange(len(self._held))))

    # Submit and cancel

    def _submit(self) -> None:
        self._submitted += 1
        name = f"{self._name}.{self._submitted}"
        group = self._random.choice(GROUPS)
        if self._random.random() < 0.3:
            path, content = "/v1/tasks", {**self._task(name), "group": group}
            titles = [name]
        else:
            tasks = self._graph(name)
            path, content = "/v1/graphs", {"tasks": tasks, "group": group}
            titles = [task["title"] for task in tasks]
        number = self._recorder.asks("submit", titles=titles)
        answer, unknown = self._asker.insist("POST", path, {**content, "idempotency_key": name})
        ids = _ids(answer.body) if answer.ok else []
        replayed = answer.ok and answer.body["replayed"]
        self._recorder.gets(number, answer.code, ids=ids, unknown=unknown, replayed=replayed)
        self._mine = (self._mine + ids)[-_CANCELLABLE:]

    def _task(self, title: str, **more: object) -> dict[str, Any]:
        retry = {"max_attempts": 3, "backoff_s": 0.1, "factor": 2.0}
        priority = self._random.randrange(5)
        return {"title": title, "lease_s": LEASE_S, "retry": retry, "priority": priority, **more}

    def _graph(self, name: str) -> list[dict[str, Any]]:
        """Make a diamond with some sides, and a tail that waits for some of them."""
        keys = [f"{name}/{part}" for part in ("top", "a", "b", "c", "join", "tail")]
        top, *sides, join, tail = keys
        unmet = self._random.choice(["wait", "cancel", "fail"])
        need = self._random.choice(["all", "any", 2, "60%"])
        return [
            self._task(top, key=top),
            *(self._task(side, key=side, depends_on=[top], on_unmet=unmet) for side in sides),
            self._task(join, key=join, depends_on=[{"of": sides, "need": need}], on_unmet=unmet),
            self._task(tail, key=tail, depends_on=[{"task": join, "on": "finish"}]),
        ]

    def _cancel(self) -> None:
        if not self._mine:
            return
        task_id = self._random.choice(self._mine)
        number = self._recorder.asks("cancel", task_id=task_id)
        body = {"reason": self._name}
        answer, unknown = self._asker.insist("POST", f"/v1/tasks/{task_id}/cancel", body)
        self._recorder.gets(number, answer.code, unknown=unknown)

    # Work

    def _claim(self) -> None:
        number = self._recorder.asks("claim")
        body = {"worker": self._name, "count": self._random.choice([1, 1, 2]), "wait_s": 0.05}
        try:
            answer = self._asker.ask("POST", "/v1/tasks/claim", body)
        except NotHeard:
            self._recorder.gets(number, "not-heard")
            return
        except NobodyKnows:
            self._recorder.gets(number, "unknown")
            self._look()
            return
        given: list[Any] = answer.body["tasks"] if answer.ok else []
        found = [Held(each["task"]["task_id"], each["lease"]["token"]) for each in given]
        self._took(number, answer.code, found)

    def _look(self) -> None:
        """Find out what a lost claim brought. What comes later still runs out by itself."""
        number = self._recorder.asks("look")
        listed = self._asker.pages("/v1/tasks", worker=self._name, state="running")
        found = [Held(task["task_id"], task["attempt"]) for task in listed]
        self._took(number, "ok", [held for held in found if held not in self._ever_held])

    def _took(self, number: int, outcome: str, found: list[Held]) -> None:
        taken = [[held.task_id, held.token] for held in found]
        self._recorder.gets(number, outcome, taken=taken)
        self._held += found
        self._ever_held.update(found)

    def _work(self, held: Held) -> None:
        dice = self._random.random()
        if dice < 0.4:
            self._beat(held)
        elif dice < 0.85:
            self._settle(held, "complete", result=self._mark())
        elif dice < 0.93:
            retryable = self._random.random() < 0.8
            self._settle(held, "fail", message=self._mark(), retryable=retryable)
        elif dice < 0.98:
            delay_s = self._random.choice([0.0, 0.2])
            self._settle(held, "release", reason=self._mark(), delay_s=delay_s)
        else:
            # Forgotten: its lease runs out.
            number = self._recorder.asks("forget", task_id=held.task_id, token=held.token)
            self._recorder.gets(number, "ok")

    def _mark(self) -> str:
        self._said += 1
        return f"{self._name}#{self._said}"

    def _beat(self, held: Held) -> None:
        progress = {"fraction": self._random.random(), "message": self._mark()}
        body = {"token": held.token, "worker": self._name, "progress": progress}
        answer, _ = self._asker.insist("POST", f"/v1/tasks/{held.task_id}/heartbeat", body)
        if answer.ok and answer.body["held"]:
            self._held.append(held)

    def _settle(self, held: Held, word: str, **told: object) -> None:
        number = self._recorder.asks(word, task_id=held.task_id, token=held.token, **told)
        body = {"token": held.token, "worker": self._name, **told}
        answer, unknown = self._asker.insist("POST", f"/v1/tasks/{held.task_id}/{word}", body)
        repeated = answer.ok and answer.body["repeated"]
        self._recorder.gets(number, answer.code, unknown=unknown, repeated=repeated)


def _ids(body: Any) -> list[str]:
    return [task["task_id"] for task in body["tasks"]] if "tasks" in body else [body["task_id"]]


def main() -> None:
    path, record, seed = sys.argv[1:]
    recorder = Recorder(Path(record))
    # Shorter than a freeze, so that some answers are given up for lost that come later.
    with Asker(Path(path), timeout_s=2.0) as asker:
        client = Client(asker, recorder, Path(record).stem, seed)
        while not select.select([sys.stdin], [], [], 0)[0]:
            client.step()
            time.sleep(_PAUSE_S)  # sets the load, nothing waits for it
        number = recorder.asks("end")
        recorder.gets(number, "ok", requests=asker.requests, unknown=asker.unknown)
    recorder.close()


if __name__ == "__main__":
    main()

"""A worker in the standard library: claims tasks over the daemon's socket until all are done.

Usage: worker.py SOCKET NAME
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
from typing import Any


class Daemon(http.client.HTTPConnection):
    """HTTP over the daemon's unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.request(
            "POST", path, json.dumps(body), {"Content-Type": "application/json"}
        )
        response = self.getresponse()
        answer = json.loads(response.read())
        if response.status >= 400:
            raise RuntimeError(f"{answer['code']}: {answer['detail']}")
        return answer


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do the task. Replace this."""
    return {"said": task["title"]}


def main() -> None:
    path, name = sys.argv[1:]
    daemon = Daemon(path)
    while True:
        claim = daemon.post("/v1/tasks/claim", {"worker": name, "wait_s": 10.0})
        if claim["verdict"] in {"all_done", "deadlocked", "draining"}:
            print(f"{name}: {claim['verdict']}")
            return
        for claimed in claim["tasks"]:
            task, lease = claimed["task"], claimed["lease"]
            url = f"/v1/tasks/{task['task_id']}"
            held = {"token": lease["token"], "worker": name}
            done = threading.Event()
            pulse = threading.Thread(
                target=beat, args=(path, url, held, task["lease_s"] / 3, done)
            )
            pulse.start()
            try:
                outcome = "complete", {"result": work(task)}
            # Whatever it was, the daemon's retry policy decides what becomes of it.
            except Exception as error:  # noqa: BLE001
                outcome = "fail", {"message": str(error)}
            finally:
                done.set()
                pulse.join()
            verb, words = outcome
            daemon.post(f"{url}/{verb}", held | words)
            print(f"{name}: {verb} {task['key'] or task['task_id']}")


def beat(
    path: str, url: str, held: dict[str, Any], every_s: float, done: threading.Event
) -> None:
    daemon = Daemon(path)
    while not done.wait(every_s):
        if not daemon.post(f"{url}/heartbeat", held)["held"]:
            return
    daemon.close()


if __name__ == "__main__":
    main()

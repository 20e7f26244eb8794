"""A healthy worker: takes tasks, renews their leases each second or sooner, and never ends one.

A program: `python -m chaos.hold SOCKET RECORD COUNT LEASE_S`; it says `ready` on its standard
output when it holds so many, goes on until its standard input ends, and gives back what it holds.
Whatever it was told is not its own any more is in its record.
"""

from __future__ import annotations

import select
import sys
from dataclasses import dataclass
from pathlib import Path

from chaos.ask import Asker
from chaos.record import Recorder


@dataclass(frozen=True, slots=True)
class Held:
    task_id: str
    token: int


def main() -> None:
    path, record, count, lease_s = sys.argv[1:]
    worker = Path(record).stem
    recorder = Recorder(Path(record))
    with Asker(Path(path), timeout_s=60.0) as asker:
        body = {"worker": worker, "count": int(count), "lease_s": float(lease_s)}
        claimed = asker.post("/v1/tasks/claim", **body)["tasks"]
        held = [Held(each["task"]["task_id"], each["lease"]["token"]) for each in claimed]
        asker.post("/v1/workers", worker=worker, ttl_s=float(lease_s))
        print("ready", flush=True)
        while not _ended(min(1.0, float(lease_s) / 3)):
            held = [one for one in held if _beat(asker, recorder, worker, one, float(lease_s))]
        recorder.gets(recorder.asks("end"), "ok", refused=asker.refused)
        for one in held:
            asker.post(f"/v1/tasks/{one.task_id}/release", token=one.token, worker=worker)
    recorder.close()


def _ended(wait_s: float) -> bool:
    """Wait for the next round, or for the end."""
    return bool(select.select([sys.stdin], [], [], wait_s)[0])


def _beat(asker: Asker, recorder: Recorder, worker: str, one: Held, lease_s: float) -> bool:
    body = {"worker": worker, "token": one.token, "lease_s": lease_s}
    number = recorder.asks("heartbeat", task_id=one.task_id, token=one.token)
    answer, _ = asker.insist("POST", f"/v1/tasks/{one.task_id}/heartbeat", body)
    held = bool(answer.ok and answer.body["held"])
    recorder.gets(number, "held" if held else "lost")
    return held


if __name__ == "__main__":
    main()

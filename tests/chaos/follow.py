"""A reader of the journal that goes on by cursor, whatever happens to the daemon meanwhile.

A program: `python -m chaos.follow SOCKET RECORD`; when its standard input ends it reads what is
still there and ends too. Every event it is given is a line of its record, in the order given.
"""

from __future__ import annotations

import json
import select
import sys
from pathlib import Path

from chaos.ask import Asker


def main() -> None:
    path, record = sys.argv[1:]
    cursor = "begin"
    with Asker(Path(path)) as asker, Path(record).open("w", encoding="utf-8") as file:
        while True:
            last = bool(select.select([sys.stdin], [], [], 0)[0])
            wait_s = 0.0 if last else 0.5
            page = asker.get("/v1/events", after=cursor, timeout_s=wait_s, limit=500)
            file.writelines(json.dumps(event) + "\n" for event in page["events"])
            file.flush()
            cursor = page["cursor"]
            if last and not page["events"]:
                return


if __name__ == "__main__":
    main()

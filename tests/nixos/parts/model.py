"""The scripted model API as a service of a host: model.py PORT KEY-FILE REQUESTS.

It answers nobody who comes without that key. What it was asked lies in a file, a line a request.
Besides it lies the project's own `model_api.py`, which does all of that.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

import anyio

from model_api import open_model_api, say, use

FILE = "/workspace/repo/made"
# What the guest has in place of a key is told to the model, and so to us.
COMMIT = (
    "git add made && git commit -qm Made"
    " && tr '\\0' '\\n' </proc/$PPID/environ | grep ^ANTHROPIC_API_KEY="
)
SCRIPT = [
    use("Write", file_path=FILE, content="by nobody\n"),
    use("Edit", file_path=FILE, old_string="nobody", new_string="the model"),
    use("Bash", command=COMMIT),
    say("Done: it is made."),
]


async def main(port: int, key: str, requests: Path) -> None:
    async with open_model_api(SCRIPT, keys=[key], port=port) as api:
        tell("READY=1")
        while True:
            asked = await api.heard()
            line = {"key": asked.key, "path": asked.path, "body": asked.body}
            # A few in all.
            with requests.open("a") as out:
                out.write(json.dumps(line) + "\n")


def tell(words: str) -> None:
    """Tell systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
        out.sendto(words.encode(), os.environ["NOTIFY_SOCKET"].replace("@", "\0", 1))


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), Path(sys.argv[2]).read_text().strip(), Path(sys.argv[3]))

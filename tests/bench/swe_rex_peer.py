"""SWE-ReX as it runs commands where it is: one bash session, as its users open it.

    swe_rex_peer.py     (by the Python of .venv-peers)

Says `ready`, and answers each line, a command, with its exit status.
"""

# pyright: basic, reportMissingImports=false
# It is installed where no checker looks.

from __future__ import annotations

import asyncio
import sys

from swerex.runtime.abstract import BashAction, CreateBashSessionRequest
from swerex.runtime.local import LocalRuntime


async def main() -> None:
    runtime = LocalRuntime()
    await runtime.create_session(CreateBashSessionRequest())
    print("ready", flush=True)
    for line in sys.stdin:
        seen = await runtime.run_in_session(BashAction(command=line.strip()))
        print(seen.exit_code, flush=True)
    await runtime.close()


if __name__ == "__main__":
    asyncio.run(main())

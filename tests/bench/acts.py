"""What is measured against the floors: the same, by a shell of ours."""

from __future__ import annotations

from microvm_orchestrator.machine.shell import Command, Shell

TRUE = Command(["/bin/true"])


async def run_true(shell: Shell) -> None:
    assert (await shell.exec(TRUE)).exit.code == 0


async def fetch(shell: Shell, path: str, size: int) -> None:
    seen = 0
    async with shell.get(path, max_size=size) as file:
        async for piece in file:
            seen += len(piece)
    assert seen == size

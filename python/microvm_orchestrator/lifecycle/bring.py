"""What a run brings along: files as they were given, and artifacts that earlier runs left behind.

An artifact is one of the same owner's, looked up when it is needed: so a task may name what a task
that it depends on is still to leave behind. Above are the steps of a run; below, the store, the
artifacts and the shell into the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.lifecycle import guest
from microvm_orchestrator.model.access import Role, Scope
from microvm_orchestrator.model.artifact import DIGEST
from microvm_orchestrator.model.records import SYSTEM, Actor
from microvm_orchestrator.store.questions import OneTask
from microvm_orchestrator.store.runs import last_run, run_by_id

if TYPE_CHECKING:
    from microvm_orchestrator.artifacts import Artifacts
    from microvm_orchestrator.lifecycle.run import Run
    from microvm_orchestrator.machine.shell import Shell


async def put_files(run: Run, artifacts: Artifacts, shell: Shell) -> None:
    """Write the files of a task in its guest; relative ones where its program begins.

    Raises: NotFound for an artifact that the owner of the task does not have.
    """
    root = guest.REPO if run.spec.repo else guest.WORKSPACE
    for file in run.spec.files:
        path = file.path if file.path.startswith("/") else f"{root}/{file.path}"
        if file.artifact is None:
            await guest.put_files(shell, [file.model_copy(update={"path": path})])
            continue
        run_id, digest = await find(run, artifacts, file.artifact)
        async with artifacts.open(run_id, digest) as (size, pieces):
            await shell.put(path, pieces, size=size, mode=file.mode, parents=True)


async def find(run: Run, artifacts: Artifacts, reference: str) -> tuple[str, str]:
    """Give the run that has what a task asks for, and its digest. Raises: NotFound."""
    owner = run.record.owner
    if DIGEST.fullmatch(reference):
        for run_id in await artifacts.holders(reference):
            record = await run_by_id(run.store, run_id, SYSTEM)
            if record is not None and record.owner == owner:
                return run_id, reference
        raise errors.NotFound(f"no run of {owner} has the artifact {reference}")
    # Runs see everything on behalf of the host; this is on behalf of somebody.
    by = Actor(owner, Role.OPERATOR, "run", run.by.action, Scope(everything=False))
    name_of_task, _, name = reference.partition("/")
    task = await run.store.query(OneTask(name_of_task, run.task.group), by)
    record = await last_run(run.store, task, SYSTEM)
    found = [] if record is None else [each for each in record.artifacts if each.name == name]
    if record is None or not found:
        raise errors.NotFound(
            f"the last run of task {name_of_task} has left no artifact {name}",
            hint="artifact_list shows what it has left",
        )
    return record.run_id, found[0].digest

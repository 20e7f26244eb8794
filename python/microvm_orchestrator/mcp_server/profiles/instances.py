"""Names of instances as names of workers, and back.

An instance may have any name, a worker not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.names import NAME

if TYPE_CHECKING:
    from microvm_orchestrator.service.calls import Caller

# Behind this, a name that no worker may have is written out.
_WRITTEN_OUT = "x-"


def worker_name(caller: Caller, instance: str) -> str:
    """Name the worker that an instance is; one that only has a worker's token stays below its name.

    Raises: InvalidInput if the name is too long to be one.
    """
    name = instance
    if not NAME.fullmatch(name) or name.startswith(_WRITTEN_OUT):
        name = quote(name, safe="").replace("_", "%5F").replace("~", "%7E").replace("%", "_")
        name = _WRITTEN_OUT + name
    if caller.principal.role is Role.WORKER:
        name = f"{caller.principal.name}.{name}"
    if not NAME.fullmatch(name):
        raise errors.InvalidInput(f"instance_id {instance[:80]} is too long")
    return name


def instance_of(worker: str, caller: Caller) -> str:
    name = worker.removeprefix(f"{caller.principal.name}.")
    if not name.startswith(_WRITTEN_OUT):
        return name
    return unquote(name.removeprefix(_WRITTEN_OUT).replace("_", "%"))

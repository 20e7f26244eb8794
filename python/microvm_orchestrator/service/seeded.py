"""Deterministic runs: a program whose every input is fixed, so that it runs the same way again.

Above are the front ends; below, the seeded runs of this host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import anyio.to_thread
from pydantic import Field, JsonValue

from microvm_orchestrator import errors
from microvm_orchestrator.machine.seeded import MAX_SEED, RUN_TIMEOUT_S, Program, Ran
from microvm_orchestrator.model.access import Role
from microvm_orchestrator.model.operation import Operation
from microvm_orchestrator.model.values import Flag
from microvm_orchestrator.service import octets
from microvm_orchestrator.service.calls import Answer, Call, Caller, Request, declare
from microvm_orchestrator.service.execs import MAX_INPUT, Encoded, Word
from microvm_orchestrator.service.images import ImageName
from microvm_orchestrator.service.operations import USUAL_WAIT_S, WaitS, long_call
from microvm_orchestrator.service.service import Service, actor

if TYPE_CHECKING:
    from microvm_orchestrator.operations import Report

_USUAL_CAP = 1 << 16
# Both channels, as text and in base64, are one document of the store.
_MAX_CAP = 1 << 17
_CONSOLE_TAIL = 8 << 10
_MAX_TIMEOUT_S = 24 * 3600.0

FilePath = Annotated[str, Field(min_length=1, max_length=1000)]


class RunSeeded(Request):
    """A program to run in a machine of its own, the same way every time."""

    deterministic: Annotated[int, Field(strict=True, ge=0, le=MAX_SEED)] = Field(
        description="the seed of all that is random in the guest: with the same one, and all else "
        "the same, the console and the results are the same to the byte"
    )
    argv: Annotated[list[Word], Field(min_length=1, max_length=1000)] | None = Field(
        default=None, description="a program and its words, as they are: no shell reads them"
    )
    script: Word | None = Field(default=None, description="instead of argv: run by /bin/sh -c")
    stdin: Word | None = Field(default=None, description="its whole input; without it, none")
    stdin_base64: Encoded | None = Field(default=None, description="the same, in base64")
    files: Annotated[dict[FilePath, Word], Field(max_length=256)] = Field(
        default={},
        description="what lies in the folder that it runs in: text by path; what begins with #! "
        "can be run",
    )
    files_base64: Annotated[dict[FilePath, Encoded], Field(max_length=256)] = Field(
        default={}, description="more of them, in base64"
    )
    image: ImageName | None = Field(
        default=None,
        description="a name or digest; by default the setting machines.default_image",
    )
    memory_mib: Annotated[int, Field(strict=True, ge=64, le=1 << 20)] | None = Field(
        default=None, description="by default the setting machines.default_memory_mib"
    )
    timeout_s: Annotated[float, Field(strict=True, gt=0, le=_MAX_TIMEOUT_S)] = Field(
        default=RUN_TIMEOUT_S,
        description="of this host's time; what only waits in the guest costs none",
    )
    output_cap: Annotated[int, Field(strict=True, ge=0, le=_MAX_CAP)] = Field(
        default=_USUAL_CAP, description="how many bytes of stdout and of stderr are kept: the first"
    )
    queue: Flag = Field(
        default=True, description="whether to wait in line when all slots are busy, or be refused"
    )
    wait_s: WaitS = USUAL_WAIT_S


class SeededRun(Answer):
    """What became of it. Two runs with the same `sha256` were the same to the byte."""

    deterministic: int
    image: str = Field(description="digest of what it ran in")
    exit_code: int | None = Field(
        description="128 and the number where a signal ended it; null where the guest ended first"
    )
    reason: str = Field(description="why there is no exit code")
    stdout: str
    stdout_base64: str | None = Field(default=None, description="when stdout is not UTF-8")
    stderr: str
    stderr_base64: str | None = Field(default=None, description="when stderr is not UTF-8")
    truncated: bool = Field(description="it said more than was kept")
    console: str = Field(description="the end of the guest's console")
    console_sha256: str = Field(description="over the whole console")
    sha256: str = Field(description="over all of the above but the image")
    host_s: float = Field(description="how long it took here, which is never the same")


@declare("machine_run", "POST /v1/seeded-runs", role=Role.OPERATOR, waits=True)
async def machine_run(service: Service, caller: Caller, request: RunSeeded) -> Operation:
    """Run a program deterministically: in a new machine without network, clock or chance.

    Time in the guest counts its instructions, and all randomness comes from the seed, so a failure
    that depends on either is found again by its seed. Nothing of the machine is left.
    """
    by = actor(caller, "machine_run")
    settings = service.settings.machines
    program = _program(request)
    images = service.host.images
    image = await anyio.to_thread.run_sync(images.get, request.image or settings.default_image)

    async def work(report: Report) -> JsonValue:
        await report(None, "waits for a slot, then runs")
        ran = await service.host.seeded.run(
            image.digest,
            request.memory_mib or settings.default_memory_mib,
            program,
            by,
            timeout_s=request.timeout_s,
            wait=request.queue,
        )
        return _told(request.deterministic, image.digest, ran).model_dump(mode="json")

    return await long_call(service, caller, "machine_run", image.digest, request.wait_s, work)


def _program(request: RunSeeded) -> Program:
    """Raises: InvalidInput, TooLarge."""
    if (request.argv is None) == (request.script is None):
        raise errors.InvalidInput("a program is given by argv, or by script")
    words = request.argv or ["/bin/sh", "-c", request.script or ""]
    files = {path: _octets(text, None, path) for path, text in request.files.items()}
    for path, encoded in request.files_base64.items():
        if path in files:
            raise errors.InvalidInput(f"file {path} is given twice")
        files[path] = _octets(None, encoded, path)
    return Program(
        argv=tuple(words),
        seed=request.deterministic,
        stdin=_octets(request.stdin, request.stdin_base64, "stdin"),
        files=files,
        output_cap=request.output_cap,
    )


def _octets(text: str | None, encoded: str | None, name: str) -> bytes:
    return octets.given(text, encoded, name, MAX_INPUT) or b""


def _told(seed: int, image: str, ran: Ran) -> SeededRun:
    stdout, stdout_base64 = octets.told(ran.stdout)
    stderr, stderr_base64 = octets.told(ran.stderr)
    return SeededRun(
        deterministic=seed,
        image=image,
        exit_code=ran.status,
        reason=ran.reason,
        stdout=stdout,
        stdout_base64=stdout_base64,
        stderr=stderr,
        stderr_base64=stderr_base64,
        truncated=ran.truncated,
        console=ran.console[-_CONSOLE_TAIL:].decode(errors="replace"),
        console_sha256=ran.console_sha256,
        sha256=ran.sha256,
        host_s=round(ran.host_s, 3),
    )


CALLS: tuple[Call, ...] = (machine_run,)

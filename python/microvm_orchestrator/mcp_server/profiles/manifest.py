"""The manifest of a job of the profile `delegation`, and the run that does it.

The task, its command and its environment travel as data: a script is a file that its interpreter
reads, an agent gets its task on standard input, and nothing of a client's is pasted into a shell
text of ours. Above is the profile; below, what runs are made of.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from microvm_orchestrator.model.run import (
    MAX_FILES,
    MAX_FILES_CHARS,
    Argument,
    CredentialNames,
    Variable,
)
from microvm_orchestrator.model.values import Text

if TYPE_CHECKING:
    from collections.abc import Mapping

# Where that program kept what it was asked; commands of its users read the task there.
MANIFEST = "/opt/job-runner/manifest.json"
WORKSPACE = "/workspace"
# What a job leaves there is kept when its machine is gone.
ARTIFACTS = "/opt/job-runner/artifacts"
# As that program's users wrote scripts: by their first line, else for bash where there is one.
_SHELL = [
    "/bin/sh",
    "-c",
    """\
case $(head -c 2 "$1") in "#!") exec "$1" ;; esac
if command -v bash >/dev/null; then exec bash "$1"; else exec /bin/sh "$1"; fi
""",
    "sh",
]
_UNITS_KIB = {"K": 1, "M": 1 << 10, "G": 1 << 20}
_MEMORY_LEAST_MIB = 64
_DISK_LEAST_MIB = 16
_PROBLEMS_TOLD = 8


def _is_base64(text: str) -> str:
    try:
        base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise ValueError("is not written in base64") from None
    return text


Size = Annotated[str, Field(pattern=r"^\d{1,9}[GMK]$")]
Base64 = Annotated[str, Field(max_length=MAX_FILES_CHARS), AfterValidator(_is_base64)]


class _Part(BaseModel):
    # That program dropped what it did not know.
    model_config = ConfigDict(extra="ignore", frozen=True)


class AgentConfig(_Part):
    """How the agent is started."""

    command: Annotated[str, Field(min_length=1, max_length=131_072)] | None = Field(
        default=None, description="for script and custom: a line for the shell"
    )
    claudeModel: str | None = Field(default=None, max_length=200)  # noqa: N815 - that program's name


class JobFile(_Part):
    """A file that lies there before the agent starts."""

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    content: Base64 = Field(description="base64")


class JobResources(_Part):
    """What its machine has."""

    cpu: Annotated[float, Field(ge=1, le=32)] | None = None
    memory: Size | None = None
    disk: Size | None = None


class JobManifest(_Part):
    """What to do, and in what kind of machine."""

    task: Annotated[Text, Field(min_length=1)] = Field(description="Task description for the agent")
    agentType: Literal["claude", "script", "custom"]  # noqa: N815 - that program's name
    agent: AgentConfig = AgentConfig()
    files: Annotated[list[JobFile], Field(max_length=MAX_FILES - 1)] = []
    env: Annotated[dict[Variable, Argument], Field(max_length=200)] = {}
    secrets: CredentialNames = []
    resources: JobResources = JobResources()
    timeout: Annotated[float, Field(ge=1, le=86_400)] | None = None
    lifecycle: Literal["ephemeral", "persistent"] = "ephemeral"
    vmTemplate: Annotated[str, Field(min_length=1, max_length=200)] | None = None  # noqa: N815 - that program's name
    statusMode: Literal["simple", "detailed", "streaming"] = "simple"  # noqa: N815 - that program's name


class Defaults(BaseModel):
    """What that program's users set by its environment variables."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    callback_port: Annotated[int, Field(ge=1, le=65_535)] = Field(8765, alias="CALLBACK_PORT")
    template: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "agent-template", alias="DEFAULT_VM_TEMPLATE"
    )
    timeout: Annotated[float, Field(ge=1, le=86_400)] = Field(3600.0, alias="DEFAULT_TIMEOUT")
    cpu: Annotated[float, Field(ge=1, le=32)] = Field(2, alias="DEFAULT_CPU")
    memory: Size = Field("2G", alias="DEFAULT_MEMORY")
    disk: Size = Field("10G", alias="DEFAULT_DISK")
    silence: Annotated[float, Field(ge=1, le=86_400)] = Field(
        120.0, alias="HEARTBEAT_THRESHOLD_SECONDS"
    )


# The template of whoever set none; it stands for the image that this host uses.
NO_TEMPLATE = "agent-template"
# Those that mean something here, for the bridge to pass on.
VARIABLES = tuple(str(field.alias) for field in Defaults.model_fields.values())


def run_of(job_id: str, manifest: JobManifest, usual: Defaults) -> dict[str, Any]:
    """Write the run that does a job, as `task_submit` takes it."""
    timeout_s = float(manifest.timeout or usual.timeout)
    template = manifest.vmTemplate or usual.template
    asked = manifest.resources
    told = manifest.model_dump_json(exclude_unset=True, exclude={"files"}).encode()
    run: dict[str, Any] = {
        "files": [
            {"path": MANIFEST, "base64": base64.b64encode(told).decode()},
            *({"path": _absolute(file.path), "base64": file.content} for file in manifest.files),
        ],
        "env": {
            "TIMEOUT": f"{timeout_s:g}",
            "STATUS_MODE": manifest.statusMode,
            "ARTIFACTS_DIR": ARTIFACTS,
            **manifest.env,
        },
        "image": None if template == NO_TEMPLATE else template,
        "vcpus": math.ceil(asked.cpu or usual.cpu),
        "memory_mib": _mib(asked.memory or usual.memory, _MEMORY_LEAST_MIB),
        "disk_mib": _mib(asked.disk or usual.disk, _DISK_LEAST_MIB),
        "timeout_s": timeout_s,
        "keep_machine": manifest.lifecycle == "persistent",
        "callbacks": {"job_id": job_id, "port": usual.callback_port},
        "silence_s": float(usual.silence),
        "credentials": manifest.secrets,
        "artifacts": [f"{ARTIFACTS}/"],
    }
    if manifest.agentType == "claude":
        agent = {"driver": "claude", "model": manifest.agent.claudeModel}
        return {**run, "kind": "agent", "prompt": manifest.task, "agent": agent}
    # A command is a line of that program's users for a shell, so a shell reads it, from a file.
    script = manifest.agent.command or manifest.task
    return {**run, "kind": "script", "script": script, "interpreter": _SHELL}


def problems(error: ValidationError) -> str:
    """Say what is wrong with a manifest, without what was in it."""
    found = error.errors(include_url=False, include_context=False, include_input=False)
    told = [
        f"{'.'.join(str(step)[:80] for step in each['loc']) or 'manifest'}: {each['msg']}"
        for each in found[:_PROBLEMS_TOLD]
    ]
    more = len(found) - len(told)
    return "; ".join(told) + (f" (and {more} more)" if more else "")


def defaults_of(settings: Mapping[str, str]) -> Defaults:
    """Raises: ValidationError."""
    return Defaults.model_validate(dict(settings))


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"{WORKSPACE}/{path}"


def _mib(size: str, least: int) -> int:
    kib = int(size[:-1]) * _UNITS_KIB[size[-1]]
    return max(least, -(-kib // 1024))

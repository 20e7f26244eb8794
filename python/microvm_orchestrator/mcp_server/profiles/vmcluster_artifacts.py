"""The artifacts and sources of the profile `vmcluster`, translated onto ours.

What that program says of nodes is here as it is there; a node that fails makes the whole an error,
which keeps what is told of the others. Below is the service.
"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import vmcluster_words as words
from microvm_orchestrator.mcp_server.profiles.vmcluster_clusters import (
    LONG_S,
    NO_CODE,
    Failed,
    asked_of,
    succeeded,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.service import Service

_PREFIX = "sha256:"
# Behind its own end a request may be told of.
_TELL_S = 5.0
_MAX_WAIT_S = 3400.0
_TOLD = 8


class Artifacts:
    """The tools about artifacts and sources."""

    def __init__(self, service: Service) -> None:
        self._service = service

    # Trees

    async def register(self, caller: Caller, asked: words.RegisterAsked) -> words.BuildArtifact:
        ended = await self._ask(
            caller,
            "artifact_register",
            path=asked.source_path,
            build_type=asked.build_type,
            kernel_version=asked.kernel_version,
            metadata=asked.metadata,
            wait_s=LONG_S,
        )
        succeeded(ended, "REGISTER_FAILED")
        return _tree(ended["result"])

    async def listed(self, caller: Caller, asked: words.NothingAsked) -> list[words.BuildArtifact]:
        del asked
        found: list[words.BuildArtifact] = []
        cursor: str | None = None
        while True:
            page = await self._ask(caller, "artifact_trees", limit=200, cursor=cursor)
            found += [_tree(each) for each in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    async def diff(self, caller: Caller, asked: words.DiffAsked) -> words.ArtifactDiff:
        told = await self._ask(
            caller,
            "artifact_diff",
            artifact_id=asked.artifact_id_a,
            other=asked.artifact_id_b,
        )
        log = told["git_log"]
        return words.ArtifactDiff(
            artifact_id_a=told["artifact_id_a"].removeprefix(_PREFIX),
            artifact_id_b=told["artifact_id_b"].removeprefix(_PREFIX),
            changed_modules=told["changed_modules"],
            changed_bins=told["changed_bins"],
            git_log=None if log is None else "\n".join(log),
        )

    # Nodes

    async def sync(self, caller: Caller, asked: words.SyncAsked) -> words.SyncStatus:
        told = await self._in_nodes(
            caller, asked, "cluster_artifact_sync", "SYNC_FAILED", force=asked.force
        )
        status = words.SyncStatus(
            per_node={
                name: words.SyncNodeResult(
                    node_name=name,
                    bytes_transferred=each["sent_bytes"],
                    duration_s=each["seconds"],
                    rsync_exit_code=0 if each["error"] is None else NO_CODE,
                    skipped=each["skipped"],
                )
                for name, each in told["nodes"].items()
            }
        )
        _refuse_failed(told, status)
        return status

    async def install(self, caller: Caller, asked: words.InstallAsked) -> words.InstallStatus:
        told = await self._in_nodes(
            caller, asked, "cluster_artifact_install", "INSTALL_FAILED", mode=asked.install_mode
        )
        status = words.InstallStatus(
            per_node={
                name: words.InstallNodeResult(
                    node_name=name,
                    exit_code=NO_CODE if each["exit_code"] is None else each["exit_code"],
                    installed_module_paths=each["installed"],
                    depmod_output=each["output"]
                    if each["error"] is None
                    else each["error"]["message"],
                )
                for name, each in told["nodes"].items()
            }
        )
        _refuse_failed(told, status)
        return status

    async def _in_nodes(
        self, caller: Caller, asked: words.InNodesAsked, call: str, code: str, **more: object
    ) -> dict[str, Any]:
        ended = await self._ask(
            caller,
            call,
            cluster=asked.cluster_name,
            artifact_id=asked.artifact_id,
            nodes=asked.nodes or [],
            dest_base=asked.dest_base.rstrip("/"),
            wait_s=LONG_S,
            **more,
        )
        succeeded(ended, code)
        result: dict[str, Any] = ended["result"]
        return result

    # Sources

    async def source_sync(
        self, caller: Caller, asked: words.SourceSyncAsked
    ) -> words.SyncNodeResult:
        began = await self._ask(
            caller,
            "node_source_sync",
            cluster=asked.cluster,
            node=asked.node,
            local_path=asked.local_path,
            remote_path=asked.remote_path.rstrip("/"),
            wait_s=LONG_S,
        )
        if began["state"] == "failed" and began["error"]["code"] == errors.InvalidInput.code:
            raise Failed("LOCAL_PATH_NOT_DIR", began["error"]["message"], node=asked.node)
        succeeded(began, "SYNC_FAILED")
        told = began["result"]
        return words.SyncNodeResult(
            node_name=asked.node,
            bytes_transferred=told["sent_bytes"],
            duration_s=told["seconds"],
            rsync_exit_code=0,
            skipped=told["skipped"],
        )

    async def source_build(self, caller: Caller, asked: words.BuildAsked) -> words.Artifact:
        path = str(PurePosixPath(asked.build_path) / asked.binary_path)
        ended = await self._ask(
            caller,
            "node_source_build",
            cluster=asked.cluster,
            node=asked.node,
            path=asked.source_path.rstrip("/"),
            command=asked.build_command,
            binary=path,
            timeout_s=float(asked.timeout),
            wait_s=min(asked.timeout + _TELL_S, _MAX_WAIT_S),
        )
        succeeded(ended, "BUILD_FAILED")
        built = ended["result"]
        if built["exit_code"] != 0:
            raise Failed("BUILD_FAILED", _why(built), node=asked.node)
        if built["binary"] is None:
            raise Failed("BUILD_FAILED", f"the build has made no {path}", node=asked.node)
        return words.Artifact(
            name=PurePosixPath(path).name,
            version=asked.version,
            build_node=asked.node,
            path=path,
            hash=built["binary"].removeprefix(_PREFIX),
        )

    async def _ask(self, caller: Caller, call: str, /, **arguments: object) -> dict[str, Any]:
        return await asked_of(self._service, caller, call, **arguments)


def _tree(told: dict[str, Any]) -> words.BuildArtifact:
    return words.BuildArtifact(
        artifact_id=told["artifact_id"].removeprefix(_PREFIX),
        source_path=told["source_path"],
        build_type=told["build_type"],
        kernel_version=told["kernel_version"] or "unknown",
        modules=told["modules"],
        userspace_bins=told["userspace_bins"],
        test_framework_path=told["test_framework_path"],
        git_sha=told["git_sha"],
        git_branch=told["git_branch"],
        build_timestamp=told["registered_at"],
        metadata=_words_of(told["metadata"]),
    )


def _words_of(metadata: JsonValue) -> dict[str, str]:
    """Give what that program could have been told; others may have said more."""
    pairs = metadata.items() if isinstance(metadata, dict) else ()
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in pairs}


def _refuse_failed(told: dict[str, Any], result: object) -> None:
    """Raises: Failed, with what came of each node."""
    failed = told["failed_nodes"]
    if not failed:
        return
    first = told["nodes"][failed[0]]
    why = first["output"] if first["error"] is None else first["error"]["message"]
    raise Failed(
        "PARTIAL_FAILURE",
        f"it did not succeed in {', '.join(failed)}: {why}",
        node=failed[0],
        recoverable=True,
        result=result,
    )


def _why(built: dict[str, Any]) -> str:
    if built["timed_out"]:
        return "the build did not end in time"
    told = [
        f"{each['file'] or ''}:{each['line'] or ''}: {each['message']}"
        for each in built["diagnostics"]
        if each["severity"] == "error"
    ]
    said = "; ".join(told[:_TOLD]) or built["output"]
    return f"Build command failed with exit code {built['exit_code']}: {said}"

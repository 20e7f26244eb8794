"""Files of instances of the profile `madrox`: listed and fetched by their names in the workspace.

That program copied a file to where its server ran. Here it comes with the answer; whoever stands
between client and daemon may put it into a folder of its user's. Above is the profile; below, the
calls for files of agents.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from microvm_orchestrator import errors
from microvm_orchestrator.mcp_server.profiles import madrox_words as words
from microvm_orchestrator.together import together

if TYPE_CHECKING:
    from microvm_orchestrator.mcp_server.profiles.madrox_instances import Instances, Told
    from microvm_orchestrator.mcp_server.profiles.madrox_words import Environment
    from microvm_orchestrator.service.agent_files import AgentFiles
    from microvm_orchestrator.service.calls import Caller
    from microvm_orchestrator.service.files import FileRead
    from microvm_orchestrator.service.service import Service

_FILES_MOST = 10_000
# Machines that were suspended are started for it.
_AT_ONCE = 4


class Files:
    """The files of the instances of one daemon."""

    def __init__(self, service: Service, instances: Instances) -> None:
        self._service = service
        self._instances = instances

    async def listed(self, caller: Caller, _here: Environment, asked: words.One) -> list[str]:
        agent = await self._instances.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id, "limit": _FILES_MOST}
        found = cast("AgentFiles", await self._service.invoke(caller, "agent_file_list", given))
        return [file.path for file in found.files]

    async def listed_of_several(self, caller: Caller, here: Environment, asked: words.Many) -> Told:
        async def one(instance_id: str) -> Told:
            try:
                files = await self.listed(caller, here, words.One(instance_id=instance_id))
            except errors.OrchestratorError as error:
                return {"instance_id": instance_id, "error": words.why(error)}
            return {"instance_id": instance_id, "files": files, "file_count": len(files)}

        told = await together([partial(one, each) for each in asked.instance_ids], at_once=_AT_ONCE)
        return {
            "listings": [each for each in told if "files" in each],
            "errors": [each for each in told if "error" in each],
        }

    async def retrieve(self, caller: Caller, _here: Environment, asked: words.Retrieve) -> Told:
        if asked.filename.startswith("/"):
            raise errors.InvalidInput("filename is below the workspace of the instance")
        if asked.destination_path is not None and (
            asked.destination_path.startswith("/") or ".." in asked.destination_path.split("/")
        ):
            raise errors.InvalidInput("destination_path stays below the folder of retrieved files")
        agent = await self._instances.one(caller, asked.instance_id)
        given = {"agent": agent.agent_id, "path": asked.filename}
        read = cast("FileRead", await self._service.invoke(caller, "agent_file_get", given))
        return {
            "instance_id": agent.agent_id,
            "filename": asked.filename,
            "destination_path": asked.destination_path,
            "path": None,
            "size": read.size,
            "content": read.content,
            "content_base64": read.content_base64,
        }

    async def retrieve_several(
        self, caller: Caller, here: Environment, asked: words.RetrieveMany
    ) -> Told:
        async def one(each: words.Retrieve) -> Told:
            try:
                return await self.retrieve(caller, here, each)
            except errors.OrchestratorError as error:
                known = {"instance_id": each.instance_id, "filename": each.filename}
                return {**known, "error": words.why(error)}

        told = await together([partial(one, each) for each in asked.retrievals], at_once=_AT_ONCE)
        return {
            "retrieved": [each for each in told if "error" not in each],
            "errors": [each for each in told if "error" in each],
        }

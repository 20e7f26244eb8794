"""MCP servers as a task names them, in the form of `.mcp.json`, for drivers to say in their own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, model_validator

from microvm_orchestrator import errors

# How long a program waits for one to come up, which is slow in a machine without KVM, and for the
# answer to a call: an agent that asks another waits for ten minutes. Their own bounds are seconds.
START_S = 60
CALL_S = 900

# It becomes a part of the names of tools, and a table of a configuration.
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class McpServer(BaseModel):
    """A program that speaks MCP on its standard streams, or a server at an address."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["stdio", "http"] | None = None
    command: str | None = None
    args: list[str] = []
    env: dict[str, str] = {}
    url: str | None = None
    headers: dict[str, str] = {}

    @model_validator(mode="after")
    def _is_one_of_both(self) -> McpServer:
        stdio = self.type == "stdio" or (self.type is None and self.url is None)
        if stdio and (not self.command or self.url is not None or self.headers):
            raise ValueError("a program has a `command`, and neither `url` nor `headers`")
        if not stdio and (not self.url or self.command is not None or self.args or self.env):
            raise ValueError("a server at a `url` has neither `command` nor `args` nor `env`")
        return self


def read_servers(servers: Mapping[str, JsonValue]) -> dict[str, McpServer]:
    """Raises: InvalidInput."""
    return {name: _read(name, given) for name, given in servers.items()}


def _read(name: str, given: JsonValue) -> McpServer:
    if not _NAME.fullmatch(name):
        raise errors.InvalidInput(
            f"{name!r} is no name for an MCP server", hint="letters, digits, - and _; at most 64"
        )
    try:
        return McpServer.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise errors.InvalidInput(
            f"the MCP server {name!r} is not understood: {where}: {first['msg']}"
        ) from error

"""The MCP front end of one daemon: a protocol server for each profile, and what they share.

The native server offers the whole table of calls; a profile offers an older program's tools on the
same service. Above, the listener hands over byte streams and mounts the routes; this lives as long
as the daemon, inside `running()`.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
from mcp.server.caching import CacheHint
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler
from mcp.server.transport_security import TransportSecuritySettings
from mcp.types import CallToolRequestParams
from starlette.routing import Route

from microvm_orchestrator import __version__, errors
from microvm_orchestrator.mcp_server.json_lines import MAX_MESSAGE_BYTES
from microvm_orchestrator.mcp_server.profiles import PROFILES
from microvm_orchestrator.mcp_server.prompts import Prompts
from microvm_orchestrator.mcp_server.quiet_server import QuietServer
from microvm_orchestrator.mcp_server.resources import Resources
from microvm_orchestrator.mcp_server.tasks_extension import TasksExtension
from microvm_orchestrator.mcp_server.tools import ServiceTools
from microvm_orchestrator.mcp_server.transport import HttpDoor

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from mcp.server.lowlevel import Server
    from starlette.routing import BaseRoute

    from microvm_orchestrator.service.service import Service

# The profile of clients that ask for none.
NATIVE = "default"
# Sessions exist in the older protocol only, one for each client that connects over HTTP.
MAX_SESSIONS = 1000
# Guests open their clients: with sessions, one guest could hold as many as there may be, and all
# others would be refused. Without, a call is over once its client leaves, as in the newer protocol,
# and a client that outlives the daemon is served by the next.
_WITHOUT_SESSIONS = frozenset({"agent"})
# The lists change only with the daemon's version, so a client may keep them for a while.
_LISTS_FRESH = CacheHint(ttl_ms=300_000, scope="public")
_NOW_ONLY = CacheHint(ttl_ms=0, scope="private")

# Clients show a model two thousand characters of it, or little more.
INSTRUCTIONS = """\
Disposable virtual machines, agents that work in them, and one durable task graph, shared by all \
who connect. Nothing is lost when you disconnect: what takes long goes on, and task_wait and \
operation_wait tell how it ended.

Have something done: run_start gives a prompt, a script or a command a machine of its own, with a \
repository of repo_list if you name one, and merges its commits; run_get and run_output show it.

Use machines yourself: machine_define and machine_start, machine_exec, machine_branch for copies, \
snapshot_create. cluster_define and cluster_start raise several with networks between them, \
fault_inject breaks those.

Keep agents: agent_spawn, then agent_send, which waits for the answer; agent_inbox has those that \
came later. team_spawn and team_coordinate have several work together.

Plan: graph_submit takes tasks that name what they depend on by key, all or nothing; task_submit \
takes one. Follow them with task_wait or event_wait, look with task_list and group_get.

Work: task_claim gives you a task under a lease with a token. Do what its description says, call \
task_heartbeat more often than the lease runs out, then task_complete with a result (or task_fail, \
or task_release to give it back). Pass the token each time; if the answer is lease-lost, stop: \
someone else has the task now.

Times are seconds. Errors read `code: what happened`, then a hint with the next step."""


class McpFrontEnd:
    """Everything of MCP that a daemon serves."""

    def __init__(
        self, service: Service, *, security: TransportSecuritySettings | None = None
    ) -> None:
        """`security` adds the SDK's own check of Host and Origin; a unix socket needs none."""
        self._store = service.store
        self.tasks = TasksExtension(service.store)
        self._servers: dict[str, QuietServer] = {NATIVE: native_server(service, self.tasks)}
        self._servers |= {name: make(service) for name, make in PROFILES.items()}
        self._sessions = {
            name: StreamableHTTPSessionManager(
                server,
                security_settings=security
                or TransportSecuritySettings(enable_dns_rebinding_protection=False),
                max_request_body_size=MAX_MESSAGE_BYTES,
                max_sessions=MAX_SESSIONS,
                stateless=name in _WITHOUT_SESSIONS,
            )
            for name, server in self._servers.items()
        }

    def server(self, profile: str) -> Server[Any]:
        """Give the server of a profile; an empty name is the native one's.

        Raises: NotFound.
        """
        return self._servers[self._known(profile)]

    def sessions(self, profile: str) -> StreamableHTTPSessionManager:
        """Give what serves a profile over HTTP. Raises: NotFound."""
        return self._sessions[self._known(profile)]

    def _known(self, profile: str) -> str:
        name = profile or NATIVE
        if name not in self._servers:
            raise errors.NotFound(
                f"no profile is named {profile[:80]}",
                hint=f"the profiles are: {', '.join(self._servers)}",
            )
        return name

    def http_routes(self) -> list[BaseRoute]:
        """Give the routes to splice into the host's: each request's scope names its principal."""
        door = HttpDoor(self)
        return [Route("/mcp", endpoint=door), Route("/mcp/profiles/{profile}", endpoint=door)]

    @asynccontextmanager
    async def running(self, since: str | None = None) -> AsyncGenerator[None]:
        """Hold what outlives a request: waiting calls that became tasks, and HTTP sessions.

        `since` is the cursor of when the daemon began, if that was not just now.
        """
        since = since or await self._store.cursor()
        async with self.tasks.running(), AsyncExitStack() as stack:
            for sessions in self._sessions.values():
                await stack.enter_async_context(sessions.run())
            async with anyio.create_task_group() as group:
                for server in self._servers.values():
                    group.start_soon(server.keep, since)
                yield
                group.cancel_scope.cancel()


def native_server(service: Service, tasks: TasksExtension) -> QuietServer:
    """Offer the whole table of calls."""
    tools = ServiceTools(service, tasks)
    prompts = Prompts()
    resources = Resources(service)
    server = QuietServer(
        "microvm-orchestrator",
        version=__version__,
        title="microVM orchestrator",
        instructions=INSTRUCTIONS,
        cache_hints={
            "tools/list": _LISTS_FRESH,
            "prompts/list": _LISTS_FRESH,
            "resources/templates/list": _LISTS_FRESH,
            "resources/list": _NOW_ONLY,
            "resources/read": _NOW_ONLY,
        },
        on_list_tools=tools.listed,
        on_list_prompts=prompts.listed,
        on_get_prompt=prompts.get,
        on_list_resources=resources.listed,
        on_list_resource_templates=resources.templates,
        on_read_resource=resources.read,
        on_completion=resources.complete,
        on_subscriptions_listen=ListenHandler(InMemorySubscriptionBus()),
    )
    server.add_request_handler("tools/call", CallToolRequestParams, tools.call)
    tasks.attach(server)
    return server

"""Other programs' tools, with their exact names and shapes, translated onto our service.

A client chooses a profile when it connects. Each profile is one module that makes a protocol
server; what it cannot say with the service's calls it does not do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from microvm_orchestrator.mcp_server.profiles.agent import agent
from microvm_orchestrator.mcp_server.profiles.delegation import delegation
from microvm_orchestrator.mcp_server.profiles.madrox import MadroxServer
from microvm_orchestrator.mcp_server.profiles.microvm import MicrovmServer
from microvm_orchestrator.mcp_server.profiles.orchestrator_server import orchestrator_server
from microvm_orchestrator.mcp_server.profiles.vmcluster import vmcluster

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from microvm_orchestrator.mcp_server.quiet_server import QuietServer
    from microvm_orchestrator.service.service import Service

PROFILES: Mapping[str, Callable[[Service], QuietServer]] = {
    "agent": agent,
    "delegation": delegation,
    "madrox": MadroxServer,
    "microvm-orchestrator-mcp": MicrovmServer,
    "orchestrator-server": orchestrator_server,
    "vmcluster": vmcluster,
}

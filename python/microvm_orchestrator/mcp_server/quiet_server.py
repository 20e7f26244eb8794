"""The SDK's protocol server as we use it: an icon, little said twice, and errors explained."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from mcp.server.lowlevel import Server
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    INVALID_PARAMS,
    SERVER_INFO_META_KEY,
    DiscoverResult,
    Icon,
    RequestParams,
)
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from microvm_orchestrator import errors, log
from microvm_orchestrator.mcp_server.answers import error_text

if TYPE_CHECKING:
    from mcp.server.context import CallNext, HandlerResult

    from microvm_orchestrator.mcp_server.callers import Context

_log = log.get(__name__)

_ICON_SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke="#2b6cb0" '
    b'stroke-width="3"><rect x="3" y="12" width="8" height="8" rx="2"/><rect x="21" y="3" '
    b'width="8" height="8" rx="2"/><rect x="21" y="21" width="8" height="8" rx="2"/>'
    b'<path d="M11 16h5m0 0V7h5m-5 9v9h5"/></svg>'
)
ICON = Icon(
    src=f"data:image/svg+xml;base64,{b64encode(_ICON_SVG).decode()}",
    mime_type="image/svg+xml",
    sizes=["any"],
)


async def _explained(ctx: Context, call_next: CallNext) -> HandlerResult:
    """Convert what handlers raise into errors of the protocol, whichever era the client speaks."""
    try:
        return await call_next(ctx)
    except (MCPError, ValidationError):
        raise
    except errors.OrchestratorError as error:
        mistaken = isinstance(error, errors.InvalidInput | errors.NotFound | errors.TooLarge)
        code = INVALID_PARAMS if mistaken else INTERNAL_ERROR
        raise MCPError(code=code, message=error_text(error)) from error
    except Exception as error:
        # A bug of ours: the log gets the story, the client a sentence without it.
        _log.exception("request_crashed", method=ctx.method)
        raise MCPError(code=INTERNAL_ERROR, message="Internal server error") from error


def _none_by_headers(_tool: str) -> None:
    """Tell the SDK that no tool has arguments which HTTP headers repeat.

    Asked nothing, it would list all tools to look for them at each call over HTTP, at forty times
    the price of a call.
    """


class QuietServer(Server[Any]):
    """A protocol server that introduces itself with its icon once, not in each answer."""

    def __init__(self, name: str, *, title: str, version: str, **offered: Any) -> None:
        super().__init__(
            name,
            title=title,
            version=version,
            icons=[ICON],
            get_tool_input_schema=_none_by_headers,
            **offered,
        )
        # In place of the SDK's spans: they cost a twentieth of a call and nobody collects them.
        self.middleware[:] = [_explained]
        self._brief = {"name": name, "version": version}
        self._whole = super().server_info_stamp
        self.add_request_handler("server/discover", RequestParams, self._discover)

    async def keep(self, since: str) -> None:
        """Do what there is to do beside answering, until cancelled.

        `since` is the cursor of when the daemon began.
        """

    @property
    def server_info_stamp(self) -> dict[str, Any]:
        return dict(self._brief)

    async def _discover(self, ctx: Context, _params: RequestParams) -> DiscoverResult:
        return DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            capabilities=self.get_capabilities(protocol_version=ctx.protocol_version),
            instructions=self.instructions,
            _meta={SERVER_INFO_META_KEY: self._whole},
        )

"""How an error looks over HTTP: one table from its class to a status, one shape of body.

Every refusal of this front end, of the API and of the router alike, is `application/problem+json`
with the fields of `Problem`. Above sit api.py and listener.py; below is the tree of errors.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from microvm_orchestrator import errors, log

if TYPE_CHECKING:
    from starlette.requests import Request

_log = log.get(__name__)

# By class: the status of the nearest ancestor in the table is the answer.
STATUSES: dict[type[Exception], int] = {
    errors.InvalidInput: 422,
    errors.TooLarge: 413,
    errors.Unauthenticated: 401,
    errors.Denied: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
    Exception: 500,
}
_HEADERS = {
    # RFC 6750: says which kind of credential would have been taken.
    401: {"www-authenticate": 'Bearer realm="microvm-orchestrator"'},
    # Long enough for a restart, short enough that nobody gives up.
    503: {"retry-after": "2"},
}


class Problem(BaseModel):
    """Why a request was refused (RFC 9457)."""

    code: str = Field(description="stable name of the kind of error")
    title: str = Field(description="the kind of error, in words")
    detail: str = Field(description="what happened this time")
    hint: str | None = Field(default=None, description="the next step, where one is known")
    status: int


# What goes wrong in HTTP itself, before a call is known.
PROTOCOL = {
    400: ("malformed-request", "The request is no clear HTTP"),
    403: ("origin-refused", "Pages of this origin may not use the service"),
    404: ("not-found", "Nothing is served at this address"),
    405: ("method-not-allowed", "This address does not take this method"),
    415: ("unsupported-media-type", "The body is of a type that is not taken here"),
    421: ("misdirected-request", "The request names a host that is not served here"),
}


def refusal(
    status: int, detail: str, *, hint: str | None = None, headers: dict[str, str] | None = None
) -> Response:
    """Answer a request that HTTP itself forbids."""
    code, title = PROTOCOL[status]
    return _response(
        Problem(code=code, title=title, detail=detail, hint=hint, status=status), headers
    )


def problem(error: Exception, request: Request) -> Response:
    """Answer with an error; one nobody planned is logged, and nothing of it shown."""
    if isinstance(error, HTTPException):
        return refusal(error.status_code, error.detail)
    status = next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)
    if isinstance(error, errors.OrchestratorError) and status != 500:
        return _response(
            Problem(
                code=error.code,
                title=title_of(type(error)),
                detail=error.message,
                hint=error.hint,
                status=status,
            ),
            _HEADERS.get(status),
        )
    incident = secrets.token_hex(4)
    _log.error(
        "request_failed",
        incident=incident,
        method=request.method,
        path=request.url.path,
        exc_info=error,
    )
    return _response(
        Problem(
            code=errors.OrchestratorError.code,
            title="Something inside failed",
            detail=f"this should not have happened; it is logged as incident {incident}",
            status=status,
        )
    )


def title_of(kind: type[Exception]) -> str:
    return (kind.__doc__ or kind.__name__).partition("\n")[0].rstrip(".")


def _response(body: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(
        body.model_dump_json(),
        status_code=body.status,
        headers=headers,
        media_type="application/problem+json",
    )

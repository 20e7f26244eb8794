"""An answer of the daemon, given on over a port of this host as it comes.

Above are the doors that listen on such ports; below, the standard library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import http.client
    from http.server import BaseHTTPRequestHandler

_CHUNK = 1 << 16
# Those of the connection to the daemon, and those that the handler says itself.
_DROPPED = {"connection", "transfer-encoding", "keep-alive", "date", "server"}


def relay(handler: BaseHTTPRequestHandler, answer: http.client.HTTPResponse) -> None:
    """Give an answer on. Raises: OSError, HTTPException when either side goes."""
    handler.send_response(answer.status)
    for name, value in answer.getheaders():
        if name.lower() not in _DROPPED:
            handler.send_header(name, value)
    if answer.length is None:
        # A stream: its end is the end of the connection.
        handler.send_header("connection", "close")
        handler.close_connection = True
    handler.end_headers()
    while data := answer.read1(_CHUNK):
        handler.wfile.write(data)

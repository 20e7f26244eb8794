"""How a client reaches the daemon's socket, and the token that says who asks.

Above sit the client and the bridge, which reads this on every start: nothing but the standard
library. Below, the places where things lie.
"""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from microvm_orchestrator import errors, places

if TYPE_CHECKING:
    from collections.abc import Mapping

# A daemon that is there takes a connection within milliseconds; a full queue takes longer.
CONNECT_TIMEOUT_S = 10.0
STDIN = "-"

_START = (
    f"is it running? `systemctl status {places.NAME}`, or start one: `{places.NAME} serve`; "
    f"another socket is named with --socket or {places.SOCKET_VARIABLE}"
)


def find_token(env: Mapping[str, str], file: str | None) -> str | None:
    """Return the token to show: of the file named, else of the environment, else none.

    Raises: InvalidInput when a file was named and holds none.
    """
    if file is None and env.get(places.TOKEN_VARIABLE):
        return _one_line(env[places.TOKEN_VARIABLE], places.TOKEN_VARIABLE)
    file = file or env.get(places.TOKEN_FILE_VARIABLE)
    if not file:
        return None
    if file == STDIN:
        return _one_line(sys.stdin.readline(), "standard input")
    try:
        return _one_line(Path(file).read_text(encoding="utf-8"), file)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise errors.InvalidInput(f"cannot read a token from {file}: {why}") from error


def _one_line(text: str, place: str) -> str:
    token = text.strip()
    # Anything else would end the header, or the line, that carries it.
    if not token or not (token.isascii() and token.isprintable() and " " not in token):
        raise errors.InvalidInput(
            f"there is no token in {place}",
            hint=f"`{places.NAME} token create` makes one: a single word that begins with mo_",
        )
    return token


def connect(path: Path, timeout_s: float = CONNECT_TIMEOUT_S) -> socket.socket:
    """Connect to the daemon's unix socket.

    Raises:
        Unavailable: nobody listens there.
        Denied: the file's permissions keep us out.
        InvalidInput: no socket can have this path.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(str(path))
    except OSError as error:
        connection.close()
        raise _unreachable(path, error) from error
    return connection


def _unreachable(path: Path, error: OSError) -> errors.OrchestratorError:
    match error:
        case FileNotFoundError():
            return errors.Unavailable(f"there is no socket {path}", hint=_START)
        case ConnectionRefusedError():
            return errors.Unavailable(f"nobody listens on {path} any more", hint=_START)
        case PermissionError():
            return errors.Denied(
                f"you may not open {path}",
                hint=f"it is for the members of its group: `ls -l {path}`",
            )
        case TimeoutError() | BlockingIOError():
            return errors.Unavailable(f"the daemon behind {path} lets nobody in", hint=_START)
        case OSError(errno=errno.ENOTSOCK | errno.ENOTDIR | errno.EPROTOTYPE):
            return errors.InvalidInput(f"{path} is no socket to connect to")
        case _:
            return errors.InvalidInput(f"cannot connect to {path}: {error.strerror or error}")

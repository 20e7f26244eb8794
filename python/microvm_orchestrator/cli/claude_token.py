"""The token that `claude setup-token` prints: running that program, and finding it in its output.

The program draws on a terminal and wraps long lines, so what it writes is read off one of ours,
which passes everything on both ways. Above stands the command `setup-token`.
"""

from __future__ import annotations

import os
import pty
import re
import shutil

from microvm_orchestrator import errors

# More than the program ever draws.
OUTPUT_MOST = 4 << 20
# How long tokens are today; the rest of one that was wrapped stands on the next lines.
_LENGTH = 108
_ESCAPES = re.compile(
    rb"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # window titles, links
    rb"|\x1b\[[0-?]*[ -/]*[@-~]"  # colours, movements
    rb"|\x1b[PX^_].*?\x1b\\"
    rb"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
_TOKEN = re.compile(r"sk-ant-oat[A-Za-z0-9_-]+")
_REST = re.compile(r"[A-Za-z0-9_-]+")
_SIZED = 'stty rows "$1" cols "$2" && shift 2 && exec "$@"'
# What frames are drawn with.
_FRAME = " \t│┃|╎"


def obtain() -> str | None:
    """Run `claude setup-token` on this terminal. Raises: CommandFailed, NotFound."""
    program = shutil.which("claude")
    if program is None:
        raise errors.NotFound(
            "the program claude is not installed here",
            hint="run `claude setup-token` where it is, and give what it prints to `setup-token` "
            "on standard input",
        )
    said = bytearray()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 65_536)
        said.extend(data[: OUTPUT_MOST - len(said)])
        return data

    argv = [program, "setup-token"]
    ours = shutil.get_terminal_size()
    # A new terminal has no size; it is made as large as ours before anybody looks.
    sized = ["sh", "-c", _SIZED, "sh", str(ours.lines), str(ours.columns), *argv]
    status = os.waitstatus_to_exitcode(pty.spawn(sized, read))
    if status != 0:
        raise errors.CommandFailed(
            f"claude setup-token ended with status {status}", argv=tuple(argv), status=status
        )
    return find(bytes(said))


def find(said: bytes) -> str | None:
    """Find the last token in what was printed, also where it was wrapped or drawn in a frame."""
    plain = _ESCAPES.sub(b"", said).decode(errors="replace").replace("\r\n", "\n")
    lines = [line.strip(_FRAME) for line in re.split(r"[\r\n]", plain)]
    found: str | None = None
    for number, line in enumerate(lines):
        for match in _TOKEN.finditer(line):
            token = match.group()
            rest = iter(lines[number + 1 :]) if match.end() == len(line) else iter(())
            for more in rest:
                if len(token) >= _LENGTH or _REST.fullmatch(more) is None:
                    break
                token += more
            found = token
    return found

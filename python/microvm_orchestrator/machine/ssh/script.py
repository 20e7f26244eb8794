"""What the login shell of a guest reads: POSIX, and nothing that BusyBox lacks.

A script says that it goes ahead, or why not, in a line with a word that was never used before; so
what an image prints at every login is told from it. After that the command takes the place of the
shell, and says what it wants.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from microvm_orchestrator import errors
from microvm_orchestrator.machine.channel.jobs import words_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from microvm_orchestrator.machine.shell import Command

# Linux takes no single word of 128 KiB or more, and the script is one.
_MAX_SCRIPT = 128 * 1024 - 1024
# From asking a command to end until it is ended, by the guest's clock.
GRACE_S = 2.0
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}|[0-9]{1,10}(:[0-9]{1,10})?")

_BEGIN = b"""umask 022
no() { printf '%%s no %%s\\n' %(nonce)s "$1"; exit 0; }
ok() { echo %(nonce)s >&2; printf '%%s ok %%s\\n' %(nonce)s "$$ $*"; }
"""
# Who is meant: sets u (uid), g (gid), n (name, empty where there is none).
_FOUND = b"""x=%b
case $x in
*:*) u=${x%%%%:*} g=${x#*:} n= ;;
[0-9]*) u=$x n=$(id -nu $u 2>/dev/null) && g=$(id -g "$n") || g=$u n= ;;
*) n=$x u=$(id -u $x 2>/dev/null) && g=$(id -g $x) || no user ;;
esac
"""
# What a command of another user is started by: sets h (home) and s (the words before it).
_OTHER = b"""h=/ s=
[ -z "$n" ] || eval "h=~$n"
if [ "$(id -u)" = 0 ]; then
s="setpriv --reuid $u --regid $g --clear-groups"
[ -z "$n" ] || s="setpriv --reuid $u --regid $g --init-groups"
$s true 2>/dev/null || no setpriv
elif [ "$(id -u):$(id -g)" != "$u:$g" ]; then no rights
fi
"""


@dataclass(frozen=True, slots=True)
class Script:
    """A script, and what it means when it does not go ahead."""

    text: bytes
    refusals: Mapping[str, errors.OrchestratorError] = field(
        default_factory=dict[str, errors.OrchestratorError]
    )
    nonce: bytes = field(default_factory=lambda: secrets.token_hex(8).encode())

    def words(self, prefix: bytes) -> bytes:
        """Return what is sent. Raises: TooLarge."""
        whole = _BEGIN % {b"nonce": self.nonce} + self.text
        if prefix:
            whole = prefix + quoted(whole)
        if len(whole) > _MAX_SCRIPT:
            raise errors.TooLarge(
                f"the command has {len(whole)} bytes; SSH takes {_MAX_SCRIPT} with all its words"
            )
        return whole


def quoted(word: bytes) -> bytes:
    """Return a word that a shell reads as it is."""
    return b"'" + word.replace(b"'", b"'\\''") + b"'"


def absolute(path: str) -> bytes:
    """Return the path of something in the guest. Raises: InvalidInput."""
    if not path.startswith("/") or "\0" in path:
        raise errors.InvalidInput(f"a path in a guest is absolute and without NUL: {path!r}")
    return os.fsencode(path)


def finding(user: str | None) -> bytes:
    """Return the lines that find a user; none for nobody. Raises: NotFound."""
    if user is None:
        return b""
    if not _USER.fullmatch(user):
        raise no_user(user)
    return _FOUND % user.encode()


def no_user(user: str | None) -> errors.NotFound:
    return errors.NotFound(f"there is no user {user} in the guest")


def starting(command: Command) -> Script:
    """Return what becomes a command. Raises: InvalidInput, NotFound."""
    argv, env = words_of(command)
    if argv[0].startswith(b"-") or b"=" in argv[0]:
        raise errors.NotOffered(f"SSH starts no program of the name {command.argv[0]!r}")
    name = os.fsdecode(argv[0])
    refusals: dict[str, errors.OrchestratorError] = {
        "user": no_user(command.user),
        "rights": errors.GuestRefused(f"the guest does not let us run commands as {command.user}"),
        "setpriv": errors.NotOffered("the guest has no setpriv that can become another user"),
        "cwd": errors.NotFound(f"there is no directory {command.cwd} in the guest"),
        "enter": errors.GuestRefused(f"the guest does not let us into {command.cwd}"),
        "program": errors.NotFound(f"there is no program {name} in the guest"),
        "run": errors.GuestRefused(f"the guest cannot run {name}"),
    }
    lines = [
        b"export LANG=${LANG:-C.UTF-8}\n",
        finding(command.user),
        b"" if command.user is None else _OTHER,
        _entering(command),
        _checking(argv[0], command),
        b"ok\n",
        b"exec " + _becoming(command, env) + b" ".join(map(quoted, argv)),
    ]
    return Script(b"".join(lines), refusals)


def signalling(session: int, number: int) -> bytes:
    """Return what signals all processes of a session, its leader last."""
    return (
        b"all() { grep -sl ') [A-Za-z] [0-9]* [0-9]* %d ' /proc/[0-9]*/stat; }\n"
        b"k() { for f in $(all); do p=${f#/proc/} p=${p%%/stat}; [ $p = %d ] || kill -$1 $p; done\n"
        b"kill -$1 %d; }\n"
        b"k %d 2>/dev/null\n" % (session, session, session, number)
    )


def ending(session: int) -> Script:
    """Return what ends a session, after GRACE_S by force. The guest goes on with it by itself."""
    by_force = (
        b'{ for t in .1 .1 .2 .4 .6 .6; do [ "$(all)" ] || exit; sleep $t || sleep 1; done\n'
        b"k 9; k 9; } </dev/null >/dev/null 2>&1 &\n"
    )
    return Script(signalling(session, 15) + by_force + b"ok\n")


def _entering(command: Command) -> bytes:
    if command.cwd is None:
        # A home that is not there is no reason to refuse, and the agent knows none either.
        return b"" if command.user is None else b'cd "$h" 2>/dev/null || cd /\n'
    path = os.fsencode(command.cwd)
    if b"\0" in path:
        raise errors.InvalidInput("the name of a directory may not hold a NUL")
    where = quoted(path if path.startswith(b"/") else b"./" + path)
    return b"cd %b 2>/dev/null || { [ -e %b ] && no enter; no cwd; }\n" % (where, where)


def _checking(name: bytes, command: Command) -> bytes:
    """See that there is something to start; what the kernel still refuses ends with 126 or 127."""
    word = quoted(name)
    if b"/" in name:
        return b"[ -e %b ] || no program; [ -f %b ] && [ -x %b ] || no run\n" % (word, word, word)
    look = b"command -v %b >/dev/null 2>&1" % word
    if "PATH" in command.env:
        look = b"(PATH=%b; %b)" % (quoted(os.fsencode(command.env["PATH"])), look)
    return look + b" || no program\n"


def _becoming(command: Command, env: list[bytes]) -> bytes:
    """Return the words that change user and variables before the command."""
    variables = b" ".join(map(quoted, env)) + b" " if env else b""
    if command.user is None:
        return b"env " + variables if env else b""
    return b'$s env HOME="$h" USER="${n:-$u}" LOGNAME="${n:-$u}" ' + variables

"""Start a program: no shell, a session of its own, as a user, on pipes or on a terminal.

`posix_spawn` shares our memory with the child until it runs its program. A fork has to copy it page
by page: under emulation that doubles what a short command takes. But only a fork can change the
user, the terminal and the control group; what goes wrong in it before exec comes back over a pipe.
"""

from __future__ import annotations

import os

import wire
from stream import Refused, refusal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Python ignores these; a program expects them to work.
_IGNORED_BY_PYTHON = (13, 25)  # SIGPIPE, SIGXFSZ
_SIGKILL = 9
_EINVAL = 22
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414


class Terminal:
    """The size of a terminal."""

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns

    def apply(self, fd: int) -> None:
        import fcntl
        import struct

        fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))


class User:
    """Whose rights a program gets."""

    def __init__(self, uid: int, gid: int, name: str, home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.name = name
        self.home = home


class Started:
    """A program on its way: its id and our ends of its pipes. All of them do not block."""

    def __init__(
        self, pid: int, handle: int, error: int, stdin: int, outputs: dict[int, int]
    ) -> None:
        self.pid = pid
        self.handle = handle  # its pidfd
        # Says nothing when the program runs, else what went wrong; -1 where it runs already.
        self.error = error
        self.stdin = stdin  # -1 where there is none
        self.outputs = outputs  # descriptor -> channel


def find_user(wanted: bytes) -> User:
    """Find a user by name, by number, or by uid:gid; b"" is our own."""
    import pwd

    text = wanted.decode("utf-8", "surrogateescape")
    uid, _, gid = text.partition(":")
    try:
        if not text:
            entry = pwd.getpwuid(os.getuid())
        else:
            entry = pwd.getpwuid(int(uid)) if uid.isdecimal() else pwd.getpwnam(uid)
    except (KeyError, OverflowError):
        if not text or (uid.isdecimal() and gid.isdecimal()):
            number = (int(uid), int(gid)) if text else (os.getuid(), os.getgid())
            return User(*number, uid or "root", "/")
        raise Refused("not-found", f"there is no user {text}") from None
    group = int(gid) if gid.isdecimal() else entry.pw_gid
    return User(entry.pw_uid, group, entry.pw_name, entry.pw_dir)


def start(
    *,
    argv: list[bytes],
    env: list[bytes],
    cwd: bytes,
    user: bytes,
    terminal: Terminal | None,
    stdin: bool,
    group: str = "",
) -> Started:
    """Start a program. Raises Refused for what there is not, OSError when out of means."""
    who = find_user(user)
    as_we_are = not terminal and not group and (who.uid, who.gid) == (os.getuid(), os.getgid())
    environment = _environment(who, env, on_terminal=terminal is not None)
    ours: list[int] = []
    theirs: list[int] = []
    pid = error = -1
    try:
        if terminal:
            master, slave = os.openpty()
            ours.append(master)
            theirs.append(slave)
            terminal.apply(master)
            ends, outputs = (slave, slave, slave), {master: wire.STDOUT}
            keyboard = os.dup(master)
            ours.append(keyboard)
        else:
            stdin_read, keyboard = _stdin(ours, theirs, wanted=stdin)
            out, out_write = _pipe(ours, theirs)
            err, err_write = _pipe(ours, theirs)
            ends, outputs = (stdin_read, out_write, err_write), {out: wire.STDOUT, err: wire.STDERR}
        if as_we_are:
            pid = _spawn(argv, environment, cwd, who, ends)
        else:
            error, error_write = _pipe(ours, theirs)
            pid = os.fork()
        if not pid:
            _become(
                argv,
                environment,
                cwd,
                who,
                ends,
                error_write,
                on_terminal=terminal is not None,
                group=group,
            )
        handle = os.pidfd_open(pid)
    except BaseException:
        for fd in ours:
            os.close(fd)
        if pid > 0:
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, 0)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    for fd in ours:
        os.set_blocking(fd, False)
    return Started(pid, handle, error, keyboard, outputs)


def signal_session(leader: int, number: int) -> None:
    """Signal the group of a session's leader, and the session's other groups."""
    try:
        os.killpg(leader, number)
    except (ProcessLookupError, PermissionError):
        pass
    for name in os.listdir("/proc"):
        if name.isdecimal() and _is_elsewhere_in(leader, name):
            try:
                os.kill(int(name), number)
            except (ProcessLookupError, PermissionError):
                pass


def _is_elsewhere_in(session: int, pid: str) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return False
    return int(fields[3]) == session and int(fields[2]) != session


def _pipe(ours: list[int], theirs: list[int]) -> tuple[int, int]:
    read, write = os.pipe()
    ours.append(read)
    theirs.append(write)
    return read, write


def _stdin(ours: list[int], theirs: list[int], *, wanted: bool) -> tuple[int, int]:
    if not wanted:
        nothing = os.open("/dev/null", os.O_RDONLY)
        theirs.append(nothing)
        return nothing, -1
    read, write = os.pipe()
    theirs.append(read)
    ours.append(write)
    return read, write


def _environment(user: User, given: list[bytes], *, on_terminal: bool) -> dict[bytes, bytes]:
    name, home = os.fsencode(user.name), os.fsencode(user.home)
    env = {b"PATH": _PATH, b"HOME": home, b"USER": name, b"LOGNAME": name, b"LANG": b"C.UTF-8"}
    if on_terminal:
        env[b"TERM"] = b"xterm-256color"
    for item in given:
        key, equals, value = item.partition(b"=")
        if not key or not equals or b"\0" in item:
            raise Refused("invalid", "an item of env is not of the form NAME=value")
        env[key] = value
    return env


def _spawn(
    argv: list[bytes],
    env: dict[bytes, bytes],
    cwd: bytes,
    user: User,
    ends: tuple[int, int, int],
) -> int:
    """Start a program with our rights. Raises Refused when it does not run.

    It inherits the directory and the mask, which are therefore ours for this moment: the agent has
    one thread.
    """

    def run(path: bytes) -> int:
        os.stat(path)  # cheaper than a child that finds out
        return os.posix_spawn(
            path, argv, env, file_actions=actions, setsid=True, setsigdef=_IGNORED_BY_PYTHON
        )

    actions = [(os.POSIX_SPAWN_DUP2, fd, standard) for standard, fd in enumerate(ends)]
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    mask = os.umask(0o022)
    stage = b"directory " + (cwd or os.fsencode(user.home))
    try:
        _enter(cwd, user)
        stage = argv[0]
        return _find(argv[0], env, run)
    except (OSError, ValueError) as failure:
        failed = failure if isinstance(failure, OSError) else OSError(_EINVAL, "")
        raise refusal(failed, stage[:512].decode(errors="replace")) from None
    finally:
        os.umask(mask)
        os.fchdir(here)
        os.close(here)


def _become(
    argv: list[bytes],
    env: dict[bytes, bytes],
    cwd: bytes,
    user: User,
    ends: tuple[int, int, int],
    error: int,
    *,
    on_terminal: bool,
    group: str,
) -> NoReturn:
    """Turn the forked child into the program; say on `error` why that failed."""
    stage = b"prepare"
    number = 5  # EIO
    try:
        # `signal` would load `enum` into every child.
        from _signal import SIG_DFL, signal  # type: ignore  # noqa: PGH003 # it has no stubs

        for ignored in _IGNORED_BY_PYTHON:
            signal(ignored, SIG_DFL)
        if group:
            with open(group + "/cgroup.procs", "wb", buffering=0) as processes:
                processes.write(b"0")
        os.setsid()
        if on_terminal:
            import fcntl

            fcntl.ioctl(ends[0], _TIOCSCTTY, 0)
        for standard, fd in enumerate(ends):
            os.dup2(fd, standard)
        stage = b"user " + os.fsencode(user.name)
        if user.uid != os.getuid() or user.gid != os.getgid():
            os.initgroups(user.name, user.gid)
            os.setgid(user.gid)
            os.setuid(user.uid)
        stage = b"directory " + (cwd or os.fsencode(user.home))
        _enter(cwd, user)
        os.umask(0o022)
        stage = argv[0]
        _find(argv[0], env, lambda path: os.execve(path, argv, env))
    except OSError as failure:
        number = failure.errno or number
    except ValueError:  # a NUL byte in a word
        number = _EINVAL
    finally:
        os.write(error, b"%d %s" % (number, stage[:512]))
        os._exit(127)


def _enter(cwd: bytes, user: User) -> None:
    if cwd:
        os.chdir(cwd)
        return
    try:
        os.chdir(user.home)
    except OSError:
        os.chdir("/")


def _find(name: bytes, env: dict[bytes, bytes], run: Callable[[bytes], int]) -> int:
    """Run the first program of a name that can be. Raises OSError."""
    if b"/" in name:
        return run(name)
    found: OSError = FileNotFoundError(2, "")
    for folder in env[b"PATH"].split(b":"):
        try:
            return run((folder or b".") + b"/" + name)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as error:  # another folder may have one that may be run
            found = error
    raise found

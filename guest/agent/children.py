"""Processes the agent is the parent of; as PID 1 also those that others have left behind."""

from __future__ import annotations

import os

from engine import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from engine import Engine


class Children:
    """Who has to be told when a child ends."""

    def __init__(self, engine: Engine, group: str = "") -> None:
        # The control group that commands are in, if there is one.
        self.group = group
        self._engine = engine
        self._children: dict[int, tuple[int, Callable[[int], None]]] = {}
        if os.getpid() == 1:
            engine.between.append(self._reap_orphans)

    def watch(self, pid: int, handle: int, on_status: Callable[[int], None]) -> None:
        """Call back with what `waitpid` says; the pidfd `handle` is ours from here."""
        self._children[pid] = handle, on_status
        self._engine.watch(handle, READ, lambda _: self.reap())

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if child := self._children.pop(pid, None):
                handle, on_status = child
                self._engine.unwatch(handle)
                os.close(handle)
                on_status(status)

    def _reap_orphans(self) -> bool:
        self.reap()
        return False

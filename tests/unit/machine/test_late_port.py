"""An agent on a port that tells late that hosts have left and come, as a virtio port may."""

from __future__ import annotations

import socket
import subprocess
import sys

import anyio
from anyio.abc import UNIXSocketStream

from guests import AGENT
from microvm_orchestrator.machine.channel import open_shell
from microvm_orchestrator.machine.shell import Command, Exit

SOON_S = 60.0

# Takes in what the host says first, and only then is told of a hang-up, as `poll` would tell it.
# When it looks again, there is none.
LATE = """
import os, select, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from engine import GONE
from main import Agent
from ports import Device

class Late(Device):
    def start(self):
        self.link.on_gone = self.on_gone
        self.link.connect(self.fd)
        select.select([self.fd], [], [])
        self.link.receive()
        self.engine._watched[self.fd](GONE)

agent = Agent("fd:" + sys.argv[2], {})
agent.port = Late(agent.engine, agent.link, "")
agent.port.fd = int(sys.argv[2])
os.set_blocking(agent.port.fd, False)
sys.exit(agent.run())
"""


async def test_a_host_is_greeted_though_a_hang_up_is_told_after_it_has_spoken() -> None:
    ours, theirs = socket.socketpair()
    fd = theirs.fileno()
    words = [sys.executable, "-I", "-S", "-c", LATE, str(AGENT), str(fd)]
    with anyio.fail_after(SOON_S), subprocess.Popen(words, pass_fds=[fd]) as agent:
        try:
            theirs.close()
            stream = await UNIXSocketStream.from_socket(ours)
            async with open_shell(stream) as shell:
                assert (await shell.exec(Command(["sh", "-c", "exit 3"]))).exit == Exit(3)
        finally:
            agent.kill()

"""The agent where it is not alone in its guest: commands and files are a user's, not root's.

    python3 -I -S as_user.py port:ctl user=agent [hook=PROGRAM] [disk=/]

A host that names no user means whoever the agent is. What the agent does to the guest itself takes
root; so it is root, and takes such a request for one that names the user it was given. A host that
wants root names it.
"""

from __future__ import annotations

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import main
import wire
from spawn import find_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from link import Link, Opener
    from stream import Stream

_OF_A_USER = ("exec", "put", "put_tree")


class UserAgent(main.Agent):
    """An agent that has a user."""

    def find_opener(self, verb: str) -> Opener:
        opener = super().find_opener(verb)
        if verb not in _OF_A_USER:
            return opener

        def open_as_user(link: Link, number: int, fields: wire.Fields) -> Stream | None:
            if not fields.get("user"):
                fields["user"] = self.options["user"].encode()
                if verb != "exec":
                    self._make_folders(verb, fields)
            return opener(link, number, fields)

        return open_as_user

    def _make_folders(self, verb: str, fields: wire.Fields) -> None:
        """Make what is missing as the user, who cannot be led to where it may not write.

        What it may not make either is left to the agent, which tells the host.
        """
        path = wire.blob(fields, "path", 4096, b"")
        if verb == "put":
            if not wire.integer(fields, "parents", 0, 1, 0):
                return
            path = os.path.dirname(path)
        who = find_user(wire.blob(fields, "user", 256))
        ours = os.getegid(), os.geteuid()
        os.setegid(who.gid)
        os.seteuid(who.uid)
        try:
            os.makedirs(path, exist_ok=True)
        except (OSError, ValueError):
            pass
        finally:
            os.seteuid(ours[1])
            os.setegid(ours[0])


if __name__ == "__main__":
    # What a command line says of an agent is read in one place.
    main.Agent = UserAgent
    sys.exit(main.main(sys.argv[1:]))

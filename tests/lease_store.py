"""A register that three machines keep together: run in each of them, with a bug or without.

    python3 lease_store.py NAME PLANTED NAME=ADDRESS...

One of them leads: it was voted for by a majority, which then follows nobody else for as long as its
lease is renewed. A write is done when a majority has it; a read is answered by the leader alone,
for as long as its lease lasts. Where PLANTED is yes, a leader renews its lease by what it has
*sent*, not by what a majority has acknowledged: cut off, it goes on answering reads while the
others have elected another leader and write.

Nothing is kept over a restart, so no node may crash. Standard library only, one thread; machines
speak UDP, clients a line of JSON over TCP.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import sys
import time
from typing import Any

PEERS, CLIENTS = 7000, 7001
# A guest under emulation on a busy host is late by some tenths of a second.
TICK_S = 0.1
LEASE_S = 1.2
# Longer than a lease, so that who follows nobody any more knows that nobody leads.
LOYAL_S = 1.6
# When who hears of no leader stands for election, and how far that is apart for two of them.
PATIENCE_S, APART_S = 2.0, 0.8
# In the beginning it is for the first of the names to stand, unless it does not come at all.
FIRST_S = 60.0

Message = dict[str, Any]
# A term, a version in it, and the value.
Had = tuple[int, int, Any]


class Store:
    """One of the machines."""

    def __init__(self, name: str, addresses: dict[str, str], *, planted: bool) -> None:
        self.name = name
        self.planted = planted
        self.peers = {peer: (at, PEERS) for peer, at in addresses.items() if peer != name}
        self.majority = len(addresses) // 2 + 1
        place = sorted(addresses).index(name)
        self.patience_s = PATIENCE_S + APART_S * place
        # What it has promised to follow, and what it has taken over: term, version, value.
        self.promised: int = 0
        self.accepted: Had = (0, 0, None)
        self.heard = time.monotonic()
        self.stands_at = self.heard + (FIRST_S if place else self.patience_s)
        self.term: int = 0
        self.leads = False
        self.votes: dict[str, Had] = {}
        # As a leader: up to which version each has followed, and when what it followed was sent.
        self.followed: dict[str, tuple[int, float]] = {}
        self.lease_until = 0.0
        # What a majority has, by version, and who waits for the one that it has not yet.
        self.done: tuple[int, Any] = (0, None)
        self.waits: socket.socket | None = None
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((addresses[name], PEERS))
        self.door = socket.create_server(("127.0.0.1", CLIENTS))
        self.clients: dict[socket.socket, bytes] = {}
        # Those that are told only with the next tick that this is not the leader.
        self.turned_away: list[socket.socket] = []

    def run(self) -> None:
        tick = time.monotonic()
        while True:
            wait_s = max(tick - time.monotonic(), 0)
            for ready in select.select([self.udp, self.door, *self.clients], [], [], wait_s)[0]:
                if ready is self.udp:
                    self.on_message(json.loads(self.udp.recv(65536)))
                elif ready is self.door:
                    self.clients[self.door.accept()[0]] = b""
                else:
                    self.on_bytes(ready)
            if time.monotonic() >= tick:
                tick = time.monotonic() + TICK_S
                self.on_tick()

    # Between machines

    def on_tick(self) -> None:
        now = time.monotonic()
        for client in self.turned_away:
            answer(client, {"fail": "not the leader"})
        self.turned_away.clear()
        if self.leads:
            self.spread()
        elif now > self.stands_at:
            self.stands_at = now + self.patience_s
            self.term = self.promised = self.promised + 1
            self.votes = {self.name: self.accepted}
            self.tell_all({"kind": "ask", "term": self.term})

    def spread(self) -> None:
        now = time.monotonic()
        term, version, value = self.accepted
        self.tell_all({"kind": "lead", "term": term, "v": version, "value": value, "sent": now})
        if self.planted:  # nobody has said that they follow
            self.lease_until = now + LEASE_S

    def on_message(self, said: Message) -> None:
        now = time.monotonic()
        term: int = said["term"]
        match said["kind"]:
            case "ask" if term > self.promised and now - self.heard > LOYAL_S:
                if not (self.leads and now < self.lease_until):
                    self.step_down()
                    self.promised = term
                    self.stands_at = now + self.patience_s
                    self.tell(said["from"], {"kind": "vote", "term": term, "had": self.accepted})
            case "vote" if term == self.term and not self.leads:
                self.votes[said["from"]] = tuple(said["had"])
                if len(self.votes) >= self.majority:
                    self.take_over()
            case "lead" if term >= self.promised:
                if term > self.term:
                    self.step_down()
                self.promised, self.heard = term, now
                self.stands_at = now + self.patience_s
                self.accepted = (term, said["v"], said["value"])
                known = {"kind": "follow", "term": term, "v": said["v"], "sent": said["sent"]}
                self.tell(said["from"], known)
            case "follow" if self.leads and term == self.term:
                version, sent = self.followed.get(said["from"], (0, 0.0))
                self.followed[said["from"]] = max(version, said["v"]), max(sent, said["sent"])
                self.on_followed()
            case _:
                pass

    def take_over(self) -> None:
        """Lead, with what the newest of a majority had; it holds when a majority has it again."""
        self.leads, self.followed, self.lease_until = True, {}, 0.0
        _, version, value = max(self.votes.values(), key=lambda had: had[:2])
        self.accepted = (self.term, version + 1, value)
        self.done = (0, None)
        self.spread()

    def on_followed(self) -> None:
        others = self.majority - 1
        versions = sorted((version for version, _ in self.followed.values()), reverse=True)
        sent = sorted((sent for _, sent in self.followed.values()), reverse=True)
        if len(sent) < others:
            return
        self.lease_until = max(self.lease_until, sent[others - 1] + LEASE_S)
        _, version, value = self.accepted
        if versions[others - 1] >= version > self.done[0]:
            self.done = (version, value)
            if self.waits is not None:
                answer(self.waits, {"ok": value})
                self.waits = None

    def step_down(self) -> None:
        self.leads = False
        if self.waits is not None:
            answer(self.waits, {"info": "leads no more"})
            self.waits = None

    def tell(self, peer: str, message: Message) -> None:
        with contextlib.suppress(OSError):  # as good as lost on the way
            self.udp.sendto(json.dumps({**message, "from": self.name}).encode(), self.peers[peer])

    def tell_all(self, message: Message) -> None:
        for peer in self.peers:
            self.tell(peer, message)

    # With clients

    def on_bytes(self, client: socket.socket) -> None:
        data = client.recv(65536)
        *lines, self.clients[client] = (self.clients[client] + data).split(b"\n")
        for line in lines:
            self.on_request(client, json.loads(line))
        if not data:
            del self.clients[client]
            client.close()

    def on_request(self, client: socket.socket, asked: Message) -> None:
        version, value = self.done
        if not self.leads or version == 0 or time.monotonic() >= self.lease_until:
            self.turned_away.append(client)
        elif asked["f"] == "read":
            answer(client, {"ok": value})
        elif self.waits is not None:
            answer(client, {"fail": "another one writes"})
        else:
            self.waits = client
            self.accepted = (self.term, self.accepted[1] + 1, asked["value"])
            self.spread()


def answer(client: socket.socket, said: Message) -> None:
    with contextlib.suppress(OSError):  # it has gone meanwhile
        client.sendall(json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    _, own, planted, *others = sys.argv
    Store(own, dict(each.split("=") for each in others), planted=planted == "yes").run()

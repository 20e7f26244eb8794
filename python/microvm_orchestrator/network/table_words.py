"""The words that rules of the kernel's packet filter are made of, as the kernel has them.

A rule is a list of words: each leaves something in a register, or compares what is there, or says
what becomes of the frame. After linux/netfilter/nf_tables.h, and as the program nft would say it,
so it shows them as they are meant. Pure. Above stand tables and the rules of ways; below, messages
of netlink.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from microvm_orchestrator.network.messages import attribute, attributes

# A name, and what it says by attribute.
Word = tuple[str, dict[int, bytes]]
Rule = Sequence[Word]
# The names of the interface that a frame came in by and of the one that it goes out of.
Pair = tuple[str, str]

NAME_BYTES = 16
_LIST_ELEMENT = 1
_DROP, _JUMP, _RETURN = 0, -3, -5


class About(IntEnum):
    """What is known of a frame beside what is in it."""

    # Behind the Ethernet header.
    LENGTH = 0
    PROTOCOL = 1
    CAME_IN_BY = 6
    GOES_OUT_OF = 7
    # Of what is inside of IP.
    INNER_PROTOCOL = 16


class Is(IntEnum):
    """How something compares."""

    EQUAL = 0
    OTHER = 1
    LESS = 2
    MORE = 4


class Begin(IntEnum):
    """Where in a frame something is counted from."""

    NETWORK = 1
    TRANSPORT = 2


def about(what: About, register: int = 1) -> Word:
    return "meta", {1: number(register), 2: number(what)}


def compared(how: Is, value: bytes) -> Word:
    return "cmp", {1: number(1), 2: number(how), 3: attribute(1, value)}


def inside(begin: Begin, at: int, size: int) -> Word:
    return "payload", {1: number(1), 2: number(begin), 3: number(at), 4: number(size)}


def masked(mask: bytes) -> Word:
    data, none = attribute(1, mask), attribute(1, bytes(len(mask)))
    return "bitwise", {1: number(1), 2: number(1), 3: number(len(mask)), 4: data, 5: none}


def turned() -> Word:
    """What is to be more or less than a number has to stand as on a wire."""
    return "byteorder", {1: number(1), 2: number(1), 3: number(1), 4: number(4), 5: number(4)}


def by_chance(below: int) -> Word:
    return "numgen", {1: number(1), 2: number(below), 3: number(1)}


def pair() -> list[Word]:
    return [about(About.CAME_IN_BY), about(About.GOES_OUT_OF, 2)]


def in_set(name: str) -> Word:
    return "lookup", {1: text(name), 2: number(1)}


def in_map(name: str) -> Word:
    return "lookup", {1: text(name), 2: number(1), 3: number(1)}


def classified() -> Word:
    """Put a frame into the class that was found."""
    return "meta", {2: number(2), 3: number(1)}


def dropped() -> Word:
    return _verdict(_DROP)


def returned() -> Word:
    return _verdict(_RETURN)


def jump(chain: str) -> Word:
    return _verdict(_JUMP, attribute(2, text(chain)))


def on_the_way(ends: Pair) -> list[Word]:
    """Of frames from one interface to another, and no others."""
    source, target = (each.encode().ljust(NAME_BYTES, b"\0") for each in ends)
    return [
        about(About.CAME_IN_BY),
        compared(Is.EQUAL, source),
        about(About.GOES_OUT_OF),
        compared(Is.EQUAL, target),
    ]


def value_of(word: Word) -> bytes:
    """Tell what a word compares with."""
    return dict(attributes(word[1].get(3, b""))).get(1, b"")


def name_in(text: bytes) -> str:
    """Read the name of an interface."""
    return text.rstrip(b"\0").decode("ascii", "replace")


def says(found: Rule, meant: Rule) -> bool:
    """Tell whether a rule is what was meant; a kernel tells more of a word than has to be said."""
    return len(found) == len(meant) and all(
        name == other and meaning.items() <= told.items()
        for (name, told), (other, meaning) in zip(found, meant, strict=True)
    )


def written(rule: Rule) -> bytes:
    return b"".join(
        attribute(
            _LIST_ELEMENT,
            attribute(1, text(name))
            + attribute(2, b"".join(attribute(*each) for each in sorted(said.items()))),
        )
        for name, said in rule
    )


def read(said: bytes) -> list[Word]:
    words: list[Word] = []
    for _, element in attributes(said):
        word = dict(attributes(element))
        name = word.get(1, b"").rstrip(b"\0").decode("ascii", "replace")
        words.append((name, dict(attributes(word.get(2, b"")))))
    return words


def number(value: int) -> bytes:
    return struct.pack(">I", value)


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def _verdict(code: int, more: bytes = b"") -> Word:
    said = attribute(1, struct.pack(">i", code)) + more
    return "immediate", {1: number(0), 2: attribute(2, said)}

"""Tables of the kernel's packet filter for bridges: each said as a whole, and read back.

The program nft says the same, but to begin takes it longer than all the rest. What is in a table is
what ways are made of: sets of pairs of interfaces, maps from these to classes of queues, chains of
rules. Every function blocks for a moment, in the network namespace of the calling thread. Above
stand the rules of ways; below, messages of netlink.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from microvm_orchestrator import errors
from microvm_orchestrator.network import messages
from microvm_orchestrator.network.messages import attribute, attributes
from microvm_orchestrator.network.table_words import (
    NAME_BYTES,
    Pair,
    Rule,
    Word,
    name_in,
    number,
    read,
    text,
    written,
)

_NETFILTER = 12
_BEGIN, _END = 16, 17
_SUBSYSTEM = 10
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN = 0, 2, 3
_NEW_RULE, _GET_RULES, _NEW_SET, _NEW_ELEMENTS, _GET_ELEMENTS = 6, 7, 9, 12, 13
_FAMILY = struct.Struct(">BBH")
_BRIDGE, _FORWARD, _ACCEPT = 7, 2, 1
# What nft takes to be in a set: pairs of names of interfaces, and classes of queues.
_PAIRS, _CLASSES = 41 << 6 | 41, 23
_IS_MAP = 8
_CLASS = struct.Struct("=I")
# Tells nft that a class stands as this host has it; the kernel only keeps it.
_AS_HERE = struct.pack("=BBI", 1, 4, 1)
# An attribute is no longer than 64 KiB.
_ELEMENTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Table:
    """What is in a table; one without chains is none."""

    sets: Mapping[str, Collection[Pair]] = field(default_factory=dict[str, Collection[Pair]])
    # From pairs to classes.
    maps: Mapping[str, Mapping[Pair, int]] = field(default_factory=dict[str, Mapping[Pair, int]])
    # In their order, those first that others jump to. The last one sees what a bridge forwards.
    chains: Mapping[str, Sequence[Rule]] = field(default_factory=dict[str, Sequence[Rule]])


def replace(name: str, table: Table) -> None:
    """Let a table be this from now on, or be no more when it is empty; or change nothing.

    Raises: Unavailable.
    """
    _do(_without(name) + _made(name, table))


def try_out(name: str, table: Table) -> None:
    """Look whether the kernel takes a table, and leave nothing of it. Raises: Unavailable."""
    _do([*_without(name), *_made(name, table), _said(_DELETE_TABLE, 0, attribute(1, text(name)))])


def find(name: str, sets: Iterable[str], maps: Iterable[str]) -> Table:
    """Read a table, and of its sets and maps these; what is not there is empty.

    Raises: Unavailable.
    """
    rules: dict[str, list[list[Word]]] = {}
    its = attribute(1, text(name))
    for body in _get(_GET_RULES, its):
        found = dict(attributes(body[_FAMILY.size :]))
        if found[1] == text(name):
            chain = found[2].rstrip(b"\0").decode()
            rules.setdefault(chain, []).append(read(found.get(4, b"")))
    if not rules:
        return Table()
    return Table(
        {each: list(_elements(name, each)) for each in sets},
        {each: _elements(name, each) for each in maps},
        rules,
    )


def _elements(table: str, name: str) -> dict[Pair, int]:
    """Read what is in a set, with its class where it is a map."""
    elements: dict[Pair, int] = {}
    for body in _get(_GET_ELEMENTS, attribute(1, text(table)) + attribute(2, text(name))):
        listed = dict(attributes(body[_FAMILY.size :])).get(3, b"")
        for _, element in attributes(listed):
            said = dict(attributes(element))
            key = dict(attributes(said[1]))[1]
            value = dict(attributes(said.get(2, b""))).get(1, bytes(_CLASS.size))
            ends = name_in(key[:NAME_BYTES]), name_in(key[NAME_BYTES : 2 * NAME_BYTES])
            elements[ends] = _CLASS.unpack(value)[0]
    return elements


# Messages


def _without(name: str) -> list[bytes]:
    # One that is not there cannot be deleted.
    return [
        _said(_NEW_TABLE, messages.CREATE, attribute(1, text(name))),
        _said(_DELETE_TABLE, 0, attribute(1, text(name))),
    ]


def _made(name: str, table: Table) -> list[bytes]:
    if not table.chains:
        return []
    its = attribute(1, text(name))
    made = [_said(_NEW_TABLE, messages.CREATE, its)]
    numbers = itertools.count(1)
    for called, pairs in table.sets.items():
        kind = attribute(4, number(_PAIRS)) + attribute(5, number(2 * NAME_BYTES))
        said = its + attribute(2, text(called)) + kind + attribute(10, number(next(numbers)))
        made.append(_said(_NEW_SET, messages.CREATE, said))
        made += _filled(its, called, [_element(ends) for ends in pairs])
    for called, classes in table.maps.items():
        kind = attribute(3, number(_IS_MAP)) + attribute(4, number(_PAIRS))
        kind += attribute(5, number(2 * NAME_BYTES))
        kind += attribute(6, number(_CLASSES)) + attribute(7, number(_CLASS.size))
        kind += attribute(13, _AS_HERE)
        said = its + attribute(2, text(called)) + kind + attribute(10, number(next(numbers)))
        made.append(_said(_NEW_SET, messages.CREATE, said))
        made += _filled(its, called, [_element(*each) for each in classes.items()])
    *_, last = table.chains
    for called in table.chains:
        said = its + attribute(3, text(called))
        if called == last:
            hook = attribute(1, number(_FORWARD)) + attribute(2, number(0))
            said += attribute(4, hook) + attribute(5, number(_ACCEPT))
            said += attribute(7, text("filter"))
        made.append(_said(_NEW_CHAIN, messages.CREATE, said))
    made += [
        _said(
            _NEW_RULE,
            messages.CREATE | messages.APPEND,
            its + attribute(2, text(called)) + attribute(4, written(rule)),
        )
        for called, rules in table.chains.items()
        for rule in rules
    ]
    return made


def _filled(its: bytes, called: str, elements: Sequence[bytes]) -> list[bytes]:
    return [
        _said(
            _NEW_ELEMENTS,
            messages.CREATE,
            its
            + attribute(2, text(called))
            + attribute(3, b"".join(elements[at : at + _ELEMENTS_AT_ONCE])),
        )
        for at in range(0, len(elements), _ELEMENTS_AT_ONCE)
    ]


def _element(ends: Pair, number_of_class: int | None = None) -> bytes:
    key = b"".join(each.encode().ljust(NAME_BYTES, b"\0") for each in ends)
    said = attribute(1, attribute(1, key))
    if number_of_class is not None:
        said += attribute(2, attribute(1, _CLASS.pack(number_of_class)))
    return attribute(1, said)


def _said(kind: int, flags: int, body: bytes) -> bytes:
    begin = _FAMILY.pack(_BRIDGE, 0, 0)
    return messages.message(_SUBSYSTEM << 8 | kind, flags, begin + body)


def _do(changes: Sequence[bytes]) -> None:
    """Say all of it at once: it holds as a whole, or not at all."""
    *most, last = changes
    # The kernel answers after all of it; to one that it refuses, in any case and before that.
    kind, flags = struct.unpack_from("=HH", last, 4)
    last = messages.message(kind, flags | messages.ACK, last[16:])
    begin, end = (
        messages.message(each, 0, _FAMILY.pack(0, 0, _SUBSYSTEM)) for each in (_BEGIN, _END)
    )
    _ask(b"".join([begin, *most, last, end]))


def _get(kind: int, body: bytes) -> list[bytes]:
    return _ask(_said(kind, messages.DUMP, body))


def _ask(said: bytes) -> list[bytes]:
    try:
        return messages.ask(_NETFILTER, said)
    except OSError as error:
        raise errors.Unavailable(
            f"the kernel does not take rules for its bridges: {os.strerror(error.errno or 0)}",
            hint="the daemon needs CAP_NET_ADMIN for this" if error.errno == errno.EPERM else None,
        ) from error

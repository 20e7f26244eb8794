"""What a bridge does to frames on the way between two of its ports, as a table of the kernel's.

One table for each network, which is said as a whole each time: it is what it should be or what it
was before, and how it came to be so leaves no trace in it. A rule looks at the port that a frame
came in by and the one that it goes out of, so whatever is inside meets the same: ARP, IPv4, IPv6.
Interfaces are names here. Pure. Above stand the kernel's ways; below, the words of rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from microvm_orchestrator.network import table_words as words
from microvm_orchestrator.network.questions import DNS_PORT
from microvm_orchestrator.network.table_words import About, Begin, Is, Pair, Word
from microvm_orchestrator.network.tables import Table

# Of a million.
_ALL = 1_000_000
_TCP_AND_UDP = b"\x06\x11"
_IPV4 = b"\x08\x00"
# The chains: what is passed on, and of that what may be a question for a name.
_PASSED, _ASKING = "passed", "asking"
_CUT, _DNS, _CLASSES = "cut", "dns", "classes"
SETS, MAPS = (_CUT, _DNS), (_CLASSES,)
# What a class is of: the queue that its number is in.
_MAJOR = 0x10000


@dataclass(frozen=True, slots=True)
class Rule:
    """What befalls frames before they come to the queue of who they are for."""

    cut: bool = False
    loss: float = 0.0
    mtu: int | None = None
    dns: bool = False
    # Which class of that queue they are put in; 0 for none.
    number: int = 0


def table_of(rules: Mapping[Pair, Rule]) -> Table:
    """Let all of this hold, and nothing else."""
    said = {ends: rule for ends, rule in sorted(rules.items()) if rule != Rule()}
    if not said:
        return Table()
    return Table(
        {
            _CUT: [ends for ends, rule in said.items() if rule.cut],
            _DNS: [ends for ends, rule in said.items() if rule.dns],
        },
        {_CLASSES: {ends: _MAJOR | rule.number for ends, rule in said.items() if rule.number}},
        {
            _ASKING: _questions(),
            _PASSED: [
                _cutting(),
                *(_small(ends, rule.mtu) for ends, rule in said.items() if rule.mtu),
                _listening(),
                *(
                    _losing(ends, round(rule.loss * _ALL))
                    for ends, rule in said.items()
                    if rule.loss
                ),
                _classifying(),
            ],
        },
    )


def rules_in(table: Table) -> dict[Pair, Rule]:
    """Read what frames meet by a table. What is in a set that no rule looks into, they do not."""
    found: defaultdict[Pair, Rule] = defaultdict(Rule)

    def also(ends: Pair, **told: Any) -> None:
        found[ends] = replace(found[ends], **told)

    asked = [list(rule) for rule in table.chains.get(_ASKING, ())]
    for rule in table.chains.get(_PASSED, ()):
        if words.says(rule, _cutting()):
            for ends in table.sets[_CUT]:
                also(ends, cut=True)
        elif words.says(rule, _listening()):
            whole = len(asked) == len(_questions()) and all(map(words.says, asked, _questions()))
            for ends in table.sets[_DNS] if whole else ():
                also(ends, dns=True)
        elif words.says(rule, _classifying()):
            for ends, number in table.maps[_CLASSES].items():
                also(ends, number=number & (_MAJOR - 1))
        else:
            for ends, told in _of_one_way(list(rule)):
                also(ends, **told)
    return dict(sorted(found.items()))


def _of_one_way(rule: list[Word]) -> list[tuple[Pair, dict[str, Any]]]:
    """Read a rule that is for one way alone, if it is."""
    compares = [words.value_of(word) for word in rule if word[0] == "cmp"]
    if len(compares) != 3:  # where from, where to, and what
        return []
    source, target, figure = compares
    ends = words.name_in(source), words.name_in(target)
    number = int.from_bytes(figure)
    if words.says(rule, _small(ends, number)):
        return [(ends, {"mtu": number})]
    if words.says(rule, _losing(ends, number)):
        return [(ends, {"loss": number / _ALL})]
    return []


def _cutting() -> list[Word]:
    return [*words.pair(), words.in_set(_CUT), words.dropped()]


def _listening() -> list[Word]:
    return [*words.pair(), words.in_set(_DNS), words.jump(_ASKING)]


def _classifying() -> list[Word]:
    return [*words.pair(), words.in_map(_CLASSES), words.classified()]


def _small(ends: Pair, mtu: int) -> list[Word]:
    more = words.compared(Is.MORE, words.number(mtu))
    return [
        *words.on_the_way(ends),
        words.about(About.LENGTH),
        words.turned(),
        more,
        words.dropped(),
    ]


def _losing(ends: Pair, of_all: int) -> list[Word]:
    less = words.compared(Is.LESS, words.number(of_all))
    return [
        *words.on_the_way(ends),
        words.by_chance(_ALL),
        words.turned(),
        less,
        words.dropped(),
    ]


def _questions() -> list[list[Word]]:
    # Behind the header of a fragment that is not the first is no port, though the kernel reads one.
    later = [
        words.about(About.PROTOCOL),
        words.compared(Is.EQUAL, _IPV4),
        words.inside(Begin.NETWORK, 6, 2),
        words.masked(b"\x1f\xff"),
        words.compared(Is.OTHER, bytes(2)),
        words.returned(),
    ]
    return [
        later,
        *(
            [
                words.about(About.INNER_PROTOCOL),
                words.compared(Is.EQUAL, bytes([protocol])),
                words.inside(Begin.TRANSPORT, 2, 2),
                words.compared(Is.EQUAL, DNS_PORT.to_bytes(2)),
                words.dropped(),
            ]
            for protocol in _TCP_AND_UDP
        ),
    ]

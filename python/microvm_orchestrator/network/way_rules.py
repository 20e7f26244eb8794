"""What a bridge does to frames on the way between two of its ports, in the words of nftables.

One table for each network, which is said as a whole each time: it is what it should be or what it
was before, and how it came to be so leaves no trace in it. A rule looks at the port that a frame
came in by and the one that it goes out of, so whatever is inside meets the same: ARP, IPv4, IPv6.
Interfaces are names here. Above stand the kernel's ways; below, `filters.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of a million.
_ALL = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """What befalls frames before they come to the queue of who they are for."""

    cut: bool = False
    loss: float = 0.0
    # Which class of that queue they are put in; 0 for none.
    number: int = 0


def table_of(bridge: str, rules: Mapping[tuple[str, str], Rule]) -> str:
    """Let all of this hold for a bridge and nothing else."""
    text = without(bridge)
    if not any(rule != Rule() for rule in rules.values()):
        return text
    cut = [_ends(ends) for ends, rule in sorted(rules.items()) if rule.cut]
    classes = [
        f"{_ends(ends)} : 1:{rule.number:x}" for ends, rule in sorted(rules.items()) if rule.number
    ]
    losses = [
        f'iifname "{source}" oifname "{target}"'
        f" numgen random mod {_ALL} < {round(rule.loss * _ALL)} drop"
        for (source, target), rule in sorted(rules.items())
        if rule.loss
    ]
    return text + "\n".join(
        [
            f"table bridge {bridge} {{",
            f"  set cut {{ type ifname . ifname; {_elements(cut)} }}",
            f"  map classes {{ type ifname . ifname : classid; {_elements(classes)} }}",
            "  chain passed {",
            "    type filter hook forward priority 0; policy accept;",
            "    iifname . oifname @cut drop",
            *(f"    {line}" for line in losses),
            "    meta priority set iifname . oifname map @classes",
            "  }",
            "}\n",
        ]
    )


def without(bridge: str) -> str:
    return f"table bridge {bridge} {{ }}\ndelete table bridge {bridge}\n"


def rules_in(said: list[dict[str, Any]]) -> dict[tuple[str, str], Rule]:
    """Read what nft says of a table, as JSON."""
    cut: set[tuple[str, str]] = set()
    losses: dict[tuple[str, str], float] = {}
    numbers: dict[tuple[str, str], int] = {}
    for entry in said:
        if "set" in entry:
            cut |= {_pair(element) for element in entry["set"].get("elem", ())}
        elif "map" in entry:
            for element, number in entry["map"].get("elem", ()):
                numbers[_pair(element)] = int(number.partition(":")[2], 16)
        elif "rule" in entry:
            losses |= _loss_in(entry["rule"]["expr"])
    return {
        ends: Rule(ends in cut, losses.get(ends, 0.0), numbers.get(ends, 0))
        for ends in sorted(cut | set(losses) | set(numbers))
    }


def _loss_in(words: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    named: dict[str, str] = {}
    for word in words:
        match = word.get("match", {})
        left = match.get("left", {})
        if "meta" in left and match["op"] == "==":
            named[left["meta"]["key"]] = match["right"]
        elif "numgen" in left:
            ends = (named["iifname"], named["oifname"])
            return {ends: match["right"] / left["numgen"]["mod"]}
    return {}


def _pair(element: dict[str, Any]) -> tuple[str, str]:
    source, target = element["concat"]
    return source, target


def _ends(ends: tuple[str, str]) -> str:
    return '"{}" . "{}"'.format(*ends)


def _elements(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }};" if elements else ""

"""What a bridge does to frames on the way between two of its ports, in the words of nftables.

One table for each network, which is said as a whole each time: it is what it should be or what it
was before, and how it came to be so leaves no trace in it. A rule looks at the port that a frame
came in by and the one that it goes out of, so whatever is inside meets the same: ARP, IPv4, IPv6.
Interfaces are names here. Above stand the kernel's ways; below, `filters.py`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from microvm_orchestrator.network.questions import DNS_PORT

# Of a million.
_ALL = 1_000_000


@dataclass(frozen=True, slots=True)
class Rule:
    """What befalls frames before they come to the queue of who they are for."""

    cut: bool = False
    loss: float = 0.0
    mtu: int | None = None
    dns: bool = False
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
    asking = [_ends(ends) for ends, rule in sorted(rules.items()) if rule.dns]
    large = [
        f'iifname "{source}" oifname "{target}" meta length > {rule.mtu} drop'
        for (source, target), rule in sorted(rules.items())
        if rule.mtu
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
            f"  set dns {{ type ifname . ifname; {_elements(asking)} }}",
            f"  map classes {{ type ifname . ifname : classid; {_elements(classes)} }}",
            "  chain asking {",
            # Behind the header of a fragment that is not the first is no port.
            "    ip frag-off & 0x1fff != 0 return",
            f"    meta l4proto {{ tcp, udp }} th dport {DNS_PORT} drop",
            "  }",
            "  chain passed {",
            "    type filter hook forward priority 0; policy accept;",
            "    iifname . oifname @cut drop",
            *(f"    {line}" for line in large),
            "    iifname . oifname @dns jump asking",
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
    found: defaultdict[tuple[str, str], Rule] = defaultdict(Rule)
    for entry in said:
        if "set" in entry:
            # Each is named after what befalls those in it.
            for element in entry["set"].get("elem", ()):
                ends = _pair(element)
                found[ends] = replace(found[ends], **{entry["set"]["name"]: True})
        elif "map" in entry:
            for element, number in entry["map"].get("elem", ()):
                ends = _pair(element)
                found[ends] = replace(found[ends], number=int(number.partition(":")[2], 16))
        elif "rule" in entry:
            for ends, told in _one_way_in(entry["rule"]["expr"]):
                found[ends] = replace(found[ends], **told)
    return dict(sorted(found.items()))


def _one_way_in(words: list[dict[str, Any]]) -> Iterator[tuple[tuple[str, str], dict[str, Any]]]:
    """Read a rule that is for one way alone, if it is."""
    named: dict[str, str] = {}
    for word in words:
        match = word.get("match", {})
        left = match.get("left", {})
        if "meta" in left and match["op"] == "==":
            named[left["meta"]["key"]] = match["right"]
        elif "numgen" in left:
            loss = match["right"] / left["numgen"]["mod"]
            yield (named["iifname"], named["oifname"]), {"loss": loss}
        elif left.get("meta", {}).get("key") == "length":
            yield (named["iifname"], named["oifname"]), {"mtu": match["right"]}


def _pair(element: dict[str, Any]) -> tuple[str, str]:
    source, target = element["concat"]
    return source, target


def _ends(ends: tuple[str, str]) -> str:
    return '"{}" . "{}"'.format(*ends)


def _elements(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }};" if elements else ""

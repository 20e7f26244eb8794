"""The rules of ways in the words of the program nft: to compare with, and to measure by."""

from __future__ import annotations

from collections.abc import Mapping

from microvm_orchestrator.network.way_rules import Rule


def nft_text(bridge: str, rules: Mapping[tuple[str, str], Rule]) -> str:
    """Say a table as a person would."""
    said = sorted(rules.items())
    cut = [_ends(ends) for ends, rule in said if rule.cut]
    asking = [_ends(ends) for ends, rule in said if rule.dns]
    classes = [f"{_ends(ends)} : 1:{rule.number:x}" for ends, rule in said if rule.number]
    large = [f"{_way(ends)} meta length > {rule.mtu} drop" for ends, rule in said if rule.mtu]
    losses = [
        f"{_way(ends)} numgen random mod 1000000 < {round(rule.loss * 1_000_000)} drop"
        for ends, rule in said
        if rule.loss
    ]
    lines = [
        f"table bridge {bridge} {{ }}",
        f"delete table bridge {bridge}",
        f"table bridge {bridge} {{",
        f"set cut {{ type ifname . ifname; {_elements(cut)} }}",
        f"set dns {{ type ifname . ifname; {_elements(asking)} }}",
        f"map classes {{ type ifname . ifname : classid; {_elements(classes)} }}",
        "chain asking {",
        "ip frag-off & 0x1fff != 0 return",
        "meta l4proto tcp th dport 53 drop",
        "meta l4proto udp th dport 53 drop",
        "}",
        "chain passed {",
        "type filter hook forward priority 0; policy accept;",
        "iifname . oifname @cut drop",
        *large,
        "iifname . oifname @dns jump asking",
        *losses,
        "meta priority set iifname . oifname map @classes",
        "}",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _ends(ends: tuple[str, str]) -> str:
    return '"{}" . "{}"'.format(*ends)


def _way(ends: tuple[str, str]) -> str:
    return 'iifname "{}" oifname "{}"'.format(*ends)


def _elements(elements: list[str]) -> str:
    return f"elements = {{ {', '.join(elements)} }};" if elements else ""

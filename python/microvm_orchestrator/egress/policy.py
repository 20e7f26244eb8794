"""What one run may reach: model APIs, and hosts by name.

A rule is `host`, `host:port` or `*.suffix[:port]`; without a port it means 80 and 443. `*.suffix`
is every name below the suffix and not the suffix itself. Above stands the endpoint, which asks;
below, the judgement of addresses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from microvm_orchestrator import errors
from microvm_orchestrator.egress.addresses import Address, Network, is_public, parse_network
from microvm_orchestrator.egress.providers import ANTHROPIC, OPENAI, Provider

if TYPE_CHECKING:
    from microvm_orchestrator.config import Egress, SecretUse

USUAL_PORTS = frozenset({80, 443})
RULES_MOST = 1000
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NAME_MOST = 253
_V6 = re.compile(r"[0-9a-f:.]{2,45}")


@dataclass(frozen=True, slots=True)
class HostRule:
    """A host, or all below a suffix, on one port or the usual two."""

    name: str
    below: bool
    port: int | None

    def allows(self, host: str, port: int) -> bool:
        if port != self.port and (self.port is not None or port not in USUAL_PORTS):
            return False
        return host.endswith(f".{self.name}") if self.below else host == self.name

    def __str__(self) -> str:
        host = f"[{self.name}]" if ":" in self.name else self.name
        return f"{'*.' * self.below}{host}{'' if self.port is None else f':{self.port}'}"


def parse_rule(text: str) -> HostRule:
    """Raises: InvalidInput."""
    below = text.startswith("*.")
    found = read_authority(text.removeprefix("*."))
    if found is None or (below and ":" in found[0]):
        raise errors.InvalidInput(
            f"{text[:300]} is no rule for hosts",
            hint="write HOST, HOST:PORT or *.SUFFIX, names in ASCII",
        )
    return HostRule(found[0], below, found[1])


def read_authority(text: str) -> tuple[str, int | None] | None:
    """Read `host` or `host:port`; None when it is neither, or holds more than that."""
    text = text.lower()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        known = bool(bracket) and _V6.fullmatch(host) is not None
        colon, port = rest[:1], rest[1:]
        known = known and colon in {"", ":"}
    else:
        host, colon, port = text.partition(":")
        host = host.removesuffix(".")
        known = len(host) <= _NAME_MOST and _NAME.fullmatch(host) is not None
    if not known:
        return None
    if not colon:
        return host, None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65_536):
        return None
    return host, int(port)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the machine of a run may reach, and with which credentials."""

    hosts: tuple[HostRule, ...] = ()
    # Inner addresses that hosts may have all the same; the operator's word, never a client's.
    private: tuple[Network, ...] = ()
    providers: tuple[Provider, ...] = (ANTHROPIC, OPENAI)
    # Names of credentials that go before the usual ones, or are secrets.
    credentials: tuple[str, ...] = ()
    # Of those, the ones that are sent to an address of their own.
    secrets: Mapping[str, SecretUse] = field(default_factory=dict[str, "SecretUse"])

    @classmethod
    def of(
        cls, settings: Egress, hosts: Sequence[str] = (), credentials: Sequence[str] = ()
    ) -> Self:
        """Put together what the operator allows everybody and what a run asks for.

        Raises: InvalidInput when a rule cannot be read; TooLarge when there are too many.
        """
        rules = (*settings.hosts, *hosts)
        if len(rules) > RULES_MOST:
            raise errors.TooLarge(f"{len(rules)} rules for hosts; the limit is {RULES_MOST}")
        return cls(
            hosts=tuple(dict.fromkeys(map(parse_rule, rules))),
            private=tuple(map(parse_network, settings.private_networks)),
            providers=(
                Provider(ANTHROPIC.api, settings.anthropic_url),
                Provider(OPENAI.api, settings.openai_url),
            ),
            credentials=tuple(credentials),
            secrets={
                name: settings.secrets[name] for name in credentials if name in settings.secrets
            },
        )

    def allows(self, host: str, port: int) -> bool:
        return any(rule.allows(host, port) for rule in self.hosts)

    def refused_address(self, addresses: Sequence[Address]) -> Address | None:
        """Find one among the addresses of a host that it must not have."""
        return next((each for each in addresses if not self._may_be_reached(each)), None)

    def _may_be_reached(self, address: Address) -> bool:
        return is_public(address) or any(address in network for network in self.private)

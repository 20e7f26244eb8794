"""What tokens cost by the price lists of those who sell them: arithmetic, not a bill.

A model has the price of the longest beginning of its name that is in the table. Above stands the
budget; below, the settings, whose table goes before the one here.
"""

from __future__ import annotations

from collections.abc import Mapping

from microvm_orchestrator.config import Price
from microvm_orchestrator.egress.usage import Tokens

_MILLION = 1_000_000
# Anthropic's lists: writing to the cache costs a quarter more than input, reading a tenth of it.
_WRITE = 1.25
_READ = 0.1


def _listed(given: float, output: float, *, write: float = _WRITE, read: float = _READ) -> Price:
    return Price(
        input=given,
        output=output,
        cache_write=round(given * write, 6),
        cache_read=round(given * read, 6),
    )


# US dollars for a million tokens, as of October 2026.
LISTED: Mapping[str, Price] = {
    "claude-fable-5": _listed(10, 50),
    "claude-fable-5-1": _listed(10, 50, read=0.025),
    "claude-mythos-5": _listed(10, 50),
    "claude-mythos-5-1": _listed(10, 50, read=0.025),
    "claude-opus-5": _listed(5, 25),
    "claude-opus-5-5": _listed(4, 20, read=0.05),
    "claude-opus-4": _listed(15, 75),
    **{f"claude-opus-4-{minor}": _listed(5, 25) for minor in range(5, 10)},
    "claude-sonnet-5": _listed(2, 10),
    "claude-sonnet-5-5": _listed(2, 10, read=0.05),
    "claude-sonnet-4": _listed(3, 15),
    "claude-haiku-4": _listed(1, 5),
    # That of long prompts; short ones cost a fifth.
    "claude-haiku-5-5": _listed(0.5, 2.5),
    "claude-3-7-sonnet": _listed(3, 15),
    "claude-3-5-haiku": _listed(0.8, 4),
    "gpt-5": _listed(1.25, 10, write=1),
    "gpt-5-mini": _listed(0.25, 2, write=1),
    "gpt-5-nano": _listed(0.05, 0.4, write=1),
}


class Prices:
    """A table of prices."""

    def __init__(self, own: Mapping[str, Price]) -> None:
        """`own` are the operator's, and go before those that are listed here."""
        self._table = {**LISTED, **own}
        # What a model that nobody knows the price of is taken to cost at most.
        self._highest = Price(
            input=max(each.input for each in self._table.values()),
            output=max(each.output for each in self._table.values()),
            cache_write=max(_write(each) for each in self._table.values()),
            cache_read=max(_read(each) for each in self._table.values()),
        )

    def cost_usd(self, model: str | None, tokens: Tokens) -> float | None:
        """Give what it cost; None when the model is in no table."""
        known = [name for name in self._table if model is not None and model.startswith(name)]
        return _cost(self._table[max(known, key=len)], tokens) if known else None

    def at_most_usd(self, tokens: Tokens) -> float:
        """Give what it may have cost, were it the dearest of the table."""
        return _cost(self._highest, tokens)


def _write(price: Price) -> float:
    return price.input if price.cache_write is None else price.cache_write


def _read(price: Price) -> float:
    return price.input if price.cache_read is None else price.cache_read


def _cost(price: Price, tokens: Tokens) -> float:
    sum_ = (
        tokens.input * price.input
        + tokens.output * price.output
        + tokens.cache_write * _write(price)
        + tokens.cache_read * _read(price)
    )
    return sum_ / _MILLION

"""What a client writes down: each request before it leaves, and each answer when it is there.

So that a judge knows afterwards what was promised. One JSON object a line, appended at once.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Recorder:
    """The writing end, one per client."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._number = 0

    def asks(self, what: str, **told: object) -> int:
        self._number += 1
        self._write(n=self._number, ask=what, **told)
        return self._number

    def gets(self, number: int, outcome: str, **told: object) -> None:
        """`outcome` is `ok`, the code of a refusal, or `unknown`."""
        self._write(n=number, got=outcome, **told)

    def close(self) -> None:
        self._file.close()

    def _write(self, **told: object) -> None:
        self._file.write(json.dumps(told) + "\n")


@dataclass(slots=True)
class Said:
    """A request and what came of it; without an answer, `got` is None."""

    client: str
    ask: str
    asked: dict[str, Any]
    got: str | None = None
    answer: dict[str, Any] = field(default_factory=dict[str, Any])


def read_records(path: Path) -> list[Said]:
    by_number: dict[int, Said] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        told: dict[str, Any] = json.loads(line)
        number = told.pop("n")
        if "ask" in told:
            by_number[number] = Said(path.stem, told.pop("ask"), told)
        else:
            by_number[number].got = told.pop("got")
            by_number[number].answer = told
    return list(by_number.values())

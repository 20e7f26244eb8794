"""HTML that is put together from elements, so that what is no element can only ever be text.

What guests and clients say is shown as they said it, but for characters that a reader would not
see: those stand there by their numbers. Above sit the views of the pages.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

# Beside control characters, those that turn or hide what stands around them.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# How programs colour what they say, and ends of lines as terminals have them.
_COLOURS = re.compile(r"\x1b\[[0-9;:]{0,64}m|\r(?=\n)")
# Elements without content.
_VOID = frozenset({"br", "hr", "input", "link", "meta"})


@dataclass(frozen=True, slots=True)
class Html:
    """Markup: what was escaped already."""

    text: str


Child: TypeAlias = "str | int | float | Html | Iterable[Child] | None"


def tag(name: str, /, *children: Child, **attributes: str | int | bool | None) -> Html:
    """Make an element. `class_` is the attribute `class`, `data_live` is `data-live`."""
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}{_value(value)}"
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Html(f"<{name}{told}>")
    return Html(f"<{name}{told}>{markup(children)}</{name}>")


def markup(child: Child) -> str:
    """Write children down, each text escaped."""
    match child:
        case None:
            return ""
        case Html():
            return child.text
        case str():
            return html.escape(readable(child))
        case int() | float():
            return str(child)
        case _:
            return "".join(map(markup, child))


def readable(text: str) -> str:
    """Make what cannot be seen visible."""
    return _UNSEEN.sub(lambda found: f"\\u{{{ord(found[0]):x}}}", _COLOURS.sub("", text))


def cut(text: str, most: int) -> str:
    """Keep the beginning of a text, and say that there was more."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text) - most} more)"


def _value(value: str | int) -> str:
    return "" if value is True else f'="{html.escape(readable(str(value)))}"'

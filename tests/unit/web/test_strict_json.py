from __future__ import annotations

import pytest

from microvm_orchestrator import errors
from microvm_orchestrator.web.body import parse


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b'{"a": 1, "a": 2}', "key 'a' twice"),
        (b'{"a": {"b": 1, "b": 1}}', "key 'b' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 7"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b'{"\\uDC00": 1}', "half of a surrogate pair"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a": 1', "line 1 column 8"),
        (b'{"a": 1} {"b": 2}', "broken at line 1 column 10"),
        (b"\x00", "broken at line 1"),
        (b"", "broken at line 1"),
    ],
)
def test_what_readers_could_understand_differently_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(errors.InvalidInput) as refusal:
        parse(data)
    assert told in refusal.value.message


def test_ordinary_json_is_read_as_it_is() -> None:
    data = '{"a": [1, -2.5, true, null, "ü\\n\\ud83d\\ude00"], "__proto__": {}}'.encode()
    assert parse(data) == {"a": [1, -2.5, True, None, "ü\n😀"], "__proto__": {}}

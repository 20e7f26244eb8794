from __future__ import annotations

import contextlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_orchestrator import errors
from microvm_orchestrator.git import header, names
from microvm_orchestrator.git.header import Header
from microvm_orchestrator.git.names import ObjectFormat, Oid

PIECES = st.sampled_from(
    [
        b"# v2 git bundle\n",
        b"# v3 git bundle\n",
        b"@object-format=sha1\n",
        b"@object-format=sha256\n",
        b"@filter=blob:none\n",
        b"-" + b"1" * 40 + b" subject\n",
        b"-" + b"1" * 64 + b"\n",
        b"2" * 40 + b" refs/heads/task\n",
        b"2" * 64 + b" HEAD\n",
        b"2" * 40 + b"\n",
        b"\n",
        b"PACK",
        b"\0",
        b"\xff",
    ]
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    form = draw(st.sampled_from(ObjectFormat))
    oids = st.text("0123456789abcdef", min_size=form.digits, max_size=form.digits).map(Oid)
    name = draw(st.text(min_size=1, max_size=30).filter(lambda text: not names.find_fault(text)))
    needs = draw(st.lists(oids, unique=True, max_size=header.MAX_PREREQUISITES))
    return Header(form, tuple(needs), name, draw(oids))


@given(headers(), st.binary(max_size=50))
def test_what_is_written_is_read_and_the_file_left_where_the_pack_begins(
    made: Header, rest: bytes
) -> None:
    file = io.BytesIO(made.write() + rest)
    assert header.read(file) == made
    assert file.read() == rest


@given(st.lists(PIECES, max_size=8).map(b"".join) | st.binary(max_size=300))
def test_whatever_comes_is_read_or_refused(content: bytes) -> None:
    file = io.BytesIO(content)
    found = None
    with contextlib.suppress(errors.BundleRefused):
        found = header.read(file)
    if found is not None:
        # What was understood says it all: written again it is understood as the same.
        assert header.read(io.BytesIO(found.write())) == found


@given(st.text(max_size=50))
def test_a_name_without_a_fault_is_one_line_of_text_that_git_takes(name: str) -> None:
    if names.find_fault(name) is None:
        assert name.encode()
        assert not set(name) & set(" ~^:?*[\\\n\0\x7f")
        assert not name.startswith("-")
        assert names.check(name) == name
    else:
        with pytest.raises(errors.InvalidInput):
            names.check(name)

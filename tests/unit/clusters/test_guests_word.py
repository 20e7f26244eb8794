"""What guests tell of their files, modules and artifacts: read strictly, whatever it is."""

from __future__ import annotations

import pytest

from microvm_orchestrator.clusters.guest_trees import read_sums
from microvm_orchestrator.clusters.inside import Inside, read
from microvm_orchestrator.machine.shell import Exit, Finished

NAME = "0f" * 32
DIGEST = "a5" * 32


def said(stdout: bytes, *, code: int | None = 0, truncated: bool = False) -> Finished:
    return Finished("x", Exit(code), stdout, b"", truncated)


def test_a_guest_tells_what_is_installed_and_loaded() -> None:
    told = read(f"{NAME}\nvirtio_net\n8021q\n\nnet-x\n".encode())
    assert told == Inside(f"sha256:{NAME}", ("8021q", "net-x", "virtio_net"))


@pytest.mark.parametrize(
    "installed", ["", "0f", NAME.upper(), NAME + "0", f"../{NAME[3:]}", f" {NAME}", "\x00" * 64]
)
def test_what_is_no_digest_is_nothing_installed(installed: str) -> None:
    assert read(f"{installed}\nloop\n".encode()) == Inside(None, ("loop",))


def test_names_that_no_module_has_are_left_out_and_the_rest_is_bounded() -> None:
    hostile = [b"../x", b"a;b", b"\x1b[31m", b"\xff\xfe", b"x" * 65, b"$(reboot)", b"n\x00l"]
    many = [b"m%d" % number for number in range(5000)]
    told = read(b"\n" + b"\n".join([*hostile, *many, *many]))
    assert told.modules is not None
    assert len(told.modules) == 1000
    assert all(name.startswith("m") for name in told.modules)
    assert read(b"") == Inside(None, ())


def test_sums_are_those_of_paths_below_the_folder() -> None:
    ran = said(f"{DIGEST}  ./a b/c.ko\n{NAME} *./x\n\\{NAME}  ./back\\\\slash\n".encode())
    assert read_sums(ran) == {
        "a b/c.ko": f"sha256:{DIGEST}",
        "x": f"sha256:{NAME}",
        "back\\slash": f"sha256:{NAME}",
    }


@pytest.mark.parametrize(
    "ran",
    [
        said(f"{DIGEST}  ./a\n".encode(), truncated=True),
        said(f"{DIGEST}  ./a\n".encode(), code=1),
        said(f"{DIGEST}  ./a\n".encode(), code=None),
        said(f"{DIGEST}  /etc/passwd\n".encode()),
        said(f"{DIGEST[1:]}  ./a\n".encode()),
        said(f"{DIGEST}  ./\n".encode()),
        said(b"sha256sum: ./a: Permission denied\n"),
        said(b"\xff" * 100),
    ],
)
def test_what_is_no_list_of_sums_is_none(ran: Finished) -> None:
    assert read_sums(ran) is None

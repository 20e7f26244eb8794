from __future__ import annotations

import os
import socket
import stat
from typing import TYPE_CHECKING

import pytest

from microvm_orchestrator import config, errors
from microvm_orchestrator.web.sockets import inherited, open_tcp, open_unix

if TYPE_CHECKING:
    from pathlib import Path


def test_the_socket_has_the_mode_asked_for_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "made" / "socket"
    with open_unix(config.Socket(path=path, mode=0o666)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
    with open_unix(config.Socket(path=path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert path.stat().st_gid == os.getegid()
    assert not path.exists()


def test_a_live_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with (
        open_unix(config.Socket(path=path)),
        pytest.raises(errors.AlreadyRunning),
        open_unix(config.Socket(path=path)),
    ):
        pytest.fail("two listened on one path")
    assert not path.exists()


def test_a_socket_whose_queue_is_full_is_live(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.connect(str(path))
        with pytest.raises(errors.AlreadyRunning), open_unix(config.Socket(path=path)):
            pytest.fail("took the place of a busy daemon")


def test_a_socket_that_nobody_listens_on_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with open_unix(config.Socket(path=path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_of_somebody_else_survives_our_end(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with open_unix(config.Socket(path=path)), socket.socket(socket.AF_UNIX) as other:
        path.unlink()
        other.bind(str(path))
    assert path.exists()


def test_a_file_in_the_way_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with (
        pytest.raises(errors.ConfigInvalid, match="no socket"),
        open_unix(config.Socket(path=path)),
    ):
        pytest.fail("listened")
    assert path.read_text() == "mine"


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    settings = config.Socket(path=tmp_path / "socket", group="no-such-group")
    with pytest.raises(errors.ConfigInvalid, match="no-such-group"), open_unix(settings):
        pytest.fail("listened")


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "0:0"])
def test_every_address_needs_to_be_asked_for(address: str) -> None:
    with (
        pytest.raises(errors.ConfigInvalid, match="every address"),
        open_tcp(config.Tcp(listen=address)),
    ):
        pytest.fail("listened")


def test_every_address_is_taken_where_it_is_asked_for() -> None:
    settings = config.Tcp(listen="0.0.0.0:0", allow_any_address=True)
    with open_tcp(settings) as listening:
        assert listening is not None
        assert listening.getsockname()[1] > 0


def test_an_address_in_use_is_an_error_of_the_settings() -> None:
    with open_tcp(config.Tcp(listen="127.0.0.1:0")) as first:
        assert first is not None
        taken = config.Tcp(listen=f"127.0.0.1:{first.getsockname()[1]}")
        with pytest.raises(errors.ConfigInvalid, match="in use"), open_tcp(taken):
            pytest.fail("listened twice")


def test_sockets_meant_for_another_process_are_not_taken() -> None:
    assert inherited({}) == []
    assert inherited({"LISTEN_FDS": "1", "LISTEN_PID": str(os.getppid())}) == []
    assert inherited({"LISTEN_FDS": "one", "LISTEN_PID": str(os.getpid())}) == []

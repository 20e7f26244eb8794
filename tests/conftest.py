"""What every test stands on: one event loop library, and nothing left behind."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import daemon
import leaks

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run campaigns and benchmarks whole")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a part of a campaign that is run with --whole only")
    leaks.adopt_orphans()
    # A shell has what it runs in the background ignore it, and so would all that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # What is loaded from here on stays; `pytest_collection_finish` ends this.
    gc.disable()
    # How long an example takes is the host's business, and no test's.
    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--whole"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="a part of a campaign: with --whole"))


def pytest_collection_finish() -> None:
    # Every test that there is stays until the end: nobody need look at them again and again.
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tell with a failure what the daemons that are there have said, and their guests."""
    report = yield
    if report.failed:
        report.sections += daemon.last_words()
    return report


@pytest.fixture(scope="session")
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the long form of a campaign or benchmark is wanted."""
    return bool(request.config.getoption("--whole"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give this run, and every process it starts, a temporary directory of its own.

    So what a test leaves there is known from what others do on the machine.
    """
    tmp_path_factory.getbasetemp()  # pytest's own stays where the user looks for it
    before = os.environ.get("TMPDIR")
    path = Path(tempfile.mkdtemp(prefix="test-"))
    os.environ["TMPDIR"] = tempfile.tempdir = str(path)
    yield path
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def nothing_is_left(scratch: Path) -> Iterator[None]:
    before = leaks.Before.take(scratch)
    yield
    if found := before.find():
        pytest.fail("the test left behind:\n  " + "\n  ".join(found), pytrace=False)

"""What a benchmark prints are its figures; of what goes on it tells what is wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog


@pytest.fixture(scope="module", autouse=True)
def only_warnings() -> Iterator[None]:
    quiet = structlog.make_filtering_bound_logger(logging.WARNING)
    structlog.configure(wrapper_class=quiet)
    yield
    structlog.reset_defaults()

"""Loading modules without a search for garbage among them: what is loaded stays.

The collector would look at all that was loaded before, again and again, for a fifth of the time
that the daemon takes to load.
"""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@contextmanager
def loading() -> Generator[None]:
    """Load what the block imports; no later collection looks at it either."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

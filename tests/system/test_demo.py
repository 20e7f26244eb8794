"""What the README shows first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("demo", "last"),
    [
        ("demo_runs.py", "demo: 3 tasks done and merged"),
        ("demo_graph.py", "demo: 4 tasks done by 2 workers"),
        ("demo_machines.py", "demo: booted in"),
        ("demo_cluster.py", "demo: three nodes up in"),
    ],
)
def test_the_demo_shows_what_it_promises(demo: str, last: str, tmp_path: Path, whole: bool) -> None:
    if demo == "demo_cluster.py" and not whole:
        pytest.skip("`test_clusters.py` and `test_faults.py` see the same; `make chaos` runs it")
    ran = subprocess.run(
        [sys.executable, TESTS / demo],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines()[-1].startswith(last)
    assert list(tmp_path.iterdir()) == []

"""What the README shows first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "demo.py"


def test_the_demo_shows_what_it_promises(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, DEMO],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    *_, last = ran.stdout.splitlines()
    assert last.startswith("demo: 4 tasks done by 2 workers")
    assert list(tmp_path.iterdir()) == []

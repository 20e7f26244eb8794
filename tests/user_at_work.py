"""A user who works in a repository while others land in it, and knows what they have done."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from typing import TYPE_CHECKING

from git_repos import ENV

if TYPE_CHECKING:
    from git_repos import Repo

# The files of theirs that are under version control.
TRACKED = 4
# Somebody tries again when another git is in the way, also through a restart of the daemon.
_PATIENCE_S = 60.0
_AGAIN_S = 0.005


class User(threading.Thread):
    """Somebody who edits, stages, commits and switches, and knows what they have done.

    The repository has `prepare`d branches and files. Nothing of theirs is lost when `lost` names
    nothing.
    """

    def __init__(self, repo: Repo, seed: int | str, stop: threading.Event) -> None:
        super().__init__()
        self._repo, self._random, self._stop_now = repo, random.Random(seed), stop
        self.commits: list[str] = []
        self.edits: dict[str, str] = {}
        self.failed: BaseException | None = None

    @staticmethod
    def prepare(repo: Repo) -> None:
        """Give them files of their own, and a branch to switch to."""
        repo.write({f"mine-{n}": "0\n" for n in range(TRACKED)})
        repo.commit({}, "mine to edit")
        repo.git("branch", "--force", "other")

    def run(self) -> None:
        try:
            number = 0
            while not self._stop_now.is_set():
                number += 1
                self._act(number)
                # A quick one: with no pause at all nobody else would ever find the branch still.
                self._stop_now.wait(self._random.random() * 0.5)
            self._git("commit", "--quiet", "--all", "--allow-empty", "-m", "the last")
            self._git("checkout", "--quiet", "main")
        except BaseException as error:  # noqa: BLE001 - told by the test
            self.failed = error

    def lost(self) -> list[str]:
        """Name what they did that is not there any more."""
        reachable = set(self._repo.git("rev-list", "--all").split())
        found = [f"commit {commit}" for commit in self.commits if commit not in reachable]
        for name, text in self.edits.items():
            committed = self._repo.git("log", "--all", "--format=%H", "--", name)
            file = self._repo.path / name
            if not committed and not (file.exists() and file.read_text() == text):
                found.append(f"file {name}")
        return found

    def _act(self, number: int) -> None:
        name = f"mine-{self._random.randrange(TRACKED)}"
        match self._random.randrange(5):
            case 0:
                name = f"loose-{number}"
                self._save(name, number)
            case 1:
                self._save(name, number)
                self._git("add", name)
            case 2:
                self._save(name, number)
                self._git("add", name)
                self._git("commit", "--quiet", "--allow-empty", "-m", f"mine {number}", "--", name)
                self.commits.append(self._git("rev-parse", "HEAD"))
            case 3:
                self._git("status", "--porcelain")
            case _:
                branch = self._random.choice(["main", "other"])
                self._git("commit", "--quiet", "--all", "--allow-empty", "-m", f"all {number}")
                self.commits.append(self._git("rev-parse", "HEAD"))
                self._git("checkout", "--quiet", branch)

    def _save(self, name: str, number: int) -> None:
        text = f"{number} of mine\n"
        (self._repo.path / name).write_text(text)
        if name.startswith("loose"):
            self.edits[name] = text

    def _git(self, *words: str) -> str:
        """Run git as somebody does who tries again when another git is in the way."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            done = subprocess.run(
                ["git", *words], cwd=self._repo.path, env=ENV, check=False, capture_output=True
            )
            if done.returncode == 0:
                return done.stdout.decode().strip()
            said = done.stderr.decode(errors="replace")
            in_the_way = any(
                sign in said for sign in (".lock", "cannot lock ref", "unable to write")
            )
            if not in_the_way or time.monotonic() > deadline:
                raise AssertionError((words, said))
            time.sleep(_AGAIN_S)

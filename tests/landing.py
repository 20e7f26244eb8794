"""A user's repository, a mirror of it, and results that wait to land."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from git_repos import ENV, Repo
from microvm_orchestrator.git import land
from microvm_orchestrator.git.land import CheckedOut
from microvm_orchestrator.git.names import Oid
from microvm_orchestrator.git.outcomes import Outcome


@dataclass
class Stage:
    """A user's repository, our mirror of it, and a result that only the mirror has."""

    user: Repo
    mirror: Repo
    old: Oid

    def result(self, files: dict[str, str | bytes] | None = None, onto: Oid | None = None) -> Oid:
        """Make a commit in the mirror alone."""
        self.mirror.git("fetch", "--quiet", self.user.path, "+refs/heads/*:refs/heads/*")
        work = Repo(self.mirror.path.with_name("work"))
        if not work.path.exists():
            work.path.mkdir()
            work.git("clone", "--quiet", "--no-checkout", self.mirror.path, ".")
        work.git("fetch", "--quiet", "origin")
        work.git("checkout", "--quiet", "--force", "--detach", onto or self.old)
        oid = work.commit(files or {"new": "of the run\n"}, "by the run")
        work.git("push", "--quiet", "--force", "origin", "HEAD:refs/tasks/t1")
        return oid

    def change(self, script: str, *, add: bool = True, onto: Oid | None = None) -> Oid:
        """Make a commit in the mirror alone of what a shell does."""
        self.result(onto=onto)
        work = Repo(self.mirror.path.with_name("work"))
        work.git("checkout", "--quiet", "--force", "--detach", onto or self.old)
        work.git("clean", "--quiet", "-ffdx")
        subprocess.run(["sh", "-ec", script], cwd=work.path, env=ENV, check=True)
        if add:
            work.git("add", "--all", "--force")
        work.git("commit", "--quiet", "--message", script)
        work.git("push", "--quiet", "--force", "origin", "HEAD:refs/tasks/t1")
        return work.oid()

    async def land(
        self,
        new: Oid,
        branch: str = "main",
        old: Oid | str | None = "",
        checked_out: CheckedOut = CheckedOut.UPDATE,
        base: Oid | None = None,
    ) -> Outcome:
        expected = self.old if old == "" else None if old is None else Oid(old)
        return await land.land(
            self.mirror.path,
            self.user.path,
            branch,
            old=expected,
            new=new,
            checked_out=checked_out,
            base=base,
            message="merge task t1",
        )


def make_stage(path: Path, *, bare: bool = False, object_format: str = "sha1") -> Stage:
    seed = Repo.make(path / "seed", object_format=object_format)
    old = seed.commit({"a": "1\n", "b": "1\n"}, "base")
    user = Repo.make(path / "user", bare=bare, object_format=object_format)
    if bare:
        user.git("fetch", "--quiet", seed.path, "main:main")
    else:
        user.git("pull", "--quiet", seed.path, "main")
    mirror = Repo.make(path / "mirror", bare=True, object_format=object_format)
    return Stage(user, mirror, old)


def plant_programs(repo: Repo, witness: Path) -> None:
    """Let everything that can name a program name one that leaves a file behind."""
    hooks = repo.path / ".husky"
    hooks.mkdir(exist_ok=True)
    script = f"#!/bin/sh\necho $0 >> {witness}\n"
    for name in (
        *["post-checkout", "post-merge", "post-index-change", "reference-transaction"],
        *["pre-auto-gc", "post-rewrite", "pre-receive", "update", "post-update", "fsmonitor"],
    ):
        (hooks / name).write_text(script)
        (hooks / name).chmod(0o755)
    repo.git("config", "core.hooksPath", ".husky")
    repo.git("config", "core.fsmonitor", str(hooks / "fsmonitor"))
    run = f"sh -c 'echo $0 >> {witness}; cat'"
    for key in (
        *["filter.evil.smudge", "filter.evil.clean", "filter.evil.process", "diff.external"],
        *["diff.evil.textconv", "diff.evil.command", "merge.evil.driver", "core.pager"],
        *["core.editor", "core.sshCommand", "core.askPass", "core.alternateRefsCommand"],
        *["credential.helper", "gpg.program", "uploadpack.packObjectsHook"],
    ):
        repo.git("config", key, run)
    repo.git("config", "filter.evil.required", "true")
    repo.git("config", "submodule.recurse", "true")

"""`repo`: the repositories that runs work on, by alias."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from microvm_orchestrator.cli import output, values
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.options import Cursor, DriverName, Limit, complete_repo

app = typer.Typer(help="Repositories: what runs work on, each by its alias.")

BRIEF = ("alias", "path", "owner", "repo_id", "added_at")
_FOUND = ("kind", "branch", "default_branch", "head", "empty", "dirty", "submodules", "lfs")

RepoRef = Annotated[
    str,
    typer.Argument(
        metavar="REPO",
        help="The repository's alias or id.",
        autocompletion=complete_repo,
        show_default=False,
    ),
]
Folder = Annotated[
    str,
    typer.Argument(metavar="[PATH]", help="The repository's folder; by default this one."),
]
_Branch = Annotated[
    str | None,
    typer.Option("--branch", metavar="BRANCH", help="Where runs start; else what HEAD names."),
]
_Image = Annotated[
    str | None, typer.Option("--image", metavar="IMAGE", help="What machines boot: name or digest.")
]
_MemoryMib = Annotated[
    int | None, typer.Option("--memory-mib", metavar="MIB", help="The memory of machines.")
]
_Vcpus = Annotated[
    int | None, typer.Option("--vcpus", metavar="N", help="The processors of machines.")
]
_DiskMib = Annotated[
    int | None,
    typer.Option("--disk-mib", metavar="MIB", help="A disk for what the guest writes."),
]
_TimeoutS = Annotated[
    float | None,
    typer.Option("--timeout-s", metavar="SECONDS", help="How long a program may take."),
]
_Driver = Annotated[
    DriverName | None,
    typer.Option("--driver", help="Which agent; else claude."),
]
_Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="The agent's model, as the agent names it."),
]
_Merge = Annotated[
    Literal["auto", "squash", "branch", "review", "manual"] | None,
    typer.Option(
        "--merge",
        help="What becomes of commits: merged, merged as one, only a branch tasks/ID, merged once "
        "`run approve` says so, or only kept as refs/tasks/ID; else auto.",
    ),
]
_Check = Annotated[
    str | None,
    typer.Option(
        "--check",
        metavar="TEXT|@FILE|-",
        help="A shell text that what was merged must pass in a machine of its own, before the "
        "branch moves; else nothing is checked.",
    ),
]
_Checkout = Annotated[
    Literal["update", "leave"] | None,
    typer.Option(
        "--checkout",
        help="Whether a branch that is checked out is moved, with its work tree, where nothing of "
        "yours is in the way; else update.",
    ),
]
_Devshell = Annotated[
    Literal["auto", "require", "never"] | None,
    typer.Option(
        "--devshell", help="Whether programs run in the development shell of the flake; else auto."
    ),
]
_Rest = Annotated[
    Literal["patch", "commit", "drop"] | None,
    typer.Option("--rest", help="What becomes of changes without a commit; else a patch."),
]
_Egress = Annotated[
    list[str] | None,
    typer.Option(
        "--egress",
        metavar="HOST[:PORT]",
        help="A host that every run on it may reach, or *.DOMAIN; may be repeated.",
    ),
]


def path_of(word: str) -> str:
    """Name a folder as the daemon has to hear it, which is elsewhere."""
    return str(Path(word).absolute())


@command(
    app,
    "add",
    example="repo add\nrepo add ~/src/site --alias site --merge squash\n"
    "repo add /srv/git/site.git --branch main --egress '*.example.org'",
)
def add(
    here: Session,
    path: Folder = ".",
    alias: Annotated[
        str | None,
        typer.Option(
            "--alias",
            "-a",
            metavar="NAME",
            help="What it is called; by default its folder's name, with a number if need be.",
        ),
    ] = None,
    branch: _Branch = None,
    image: _Image = None,
    memory_mib: _MemoryMib = None,
    vcpus: _Vcpus = None,
    disk_mib: _DiskMib = None,
    timeout_s: _TimeoutS = None,
    driver: _Driver = None,
    model: _Model = None,
    merge: _Merge = None,
    check: _Check = None,
    checkout: _Checkout = None,
    devshell: _Devshell = None,
    rest: _Rest = None,
    egress: _Egress = None,
) -> None:
    """Register a git repository of this host, so that runs may be started on it by its alias.

    Nothing in it is changed. One that is registered keeps what is not said anew.
    """
    given = {
        "path": path_of(path),
        "alias": alias,
        "branch": branch,
        "image": image,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "disk_mib": disk_mib,
        "timeout_s": timeout_s,
        "driver": driver,
        "model": model,
        "merge": merge,
        "check": values.text(check),
        "checkout": checkout,
        "devshell": devshell,
        "rest": rest,
        "egress": egress,
    }
    here.tell("repo_add", given, _show_repo)


@command(
    app,
    "update",
    example="repo update site --merge branch --unset image\nrepo update site --path ~/src/new-site",
)
def update(
    here: Session,
    repo: RepoRef,
    alias: Annotated[
        str | None, typer.Option("--alias", "-a", metavar="NAME", help="What it is called now.")
    ] = None,
    path: Annotated[
        str | None,
        typer.Option("--path", metavar="PATH", help="Where it is now, if it has moved."),
    ] = None,
    branch: _Branch = None,
    image: _Image = None,
    memory_mib: _MemoryMib = None,
    vcpus: _Vcpus = None,
    disk_mib: _DiskMib = None,
    timeout_s: _TimeoutS = None,
    driver: _Driver = None,
    model: _Model = None,
    merge: _Merge = None,
    check: _Check = None,
    checkout: _Checkout = None,
    devshell: _Devshell = None,
    rest: _Rest = None,
    egress: _Egress = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(
            "--unset",
            metavar="NAME",
            help="A default to be as for one that was just added, such as image or timeout_s; may "
            "be repeated.",
        ),
    ] = None,
) -> None:
    """Change a repository's alias or defaults, or say where it is after it was moved."""
    given = {
        "repo": repo,
        "alias": alias,
        "path": None if path is None else path_of(path),
        "branch": branch,
        "image": image,
        "memory_mib": memory_mib,
        "vcpus": vcpus,
        "disk_mib": disk_mib,
        "timeout_s": timeout_s,
        "driver": driver,
        "model": model,
        "merge": merge,
        "check": values.text(check),
        "checkout": checkout,
        "devshell": devshell,
        "rest": rest,
        "egress": egress,
        "unset": unset,
    }
    here.tell("repo_update", given, _show_repo)


@command(app, "get", example="repo get site")
def get(here: Session, repo: RepoRef) -> None:
    """Look at a repository: its defaults, how it is now, and what was not merged into it."""
    here.tell("repo_get", {"repo": repo}, _show_info)


@command(app, "show", example="repo show site")
def show(here: Session, repo: RepoRef) -> None:
    """Look at a repository, as `repo get` does."""
    get(here, repo)


@command(app, "list", example="repo list")
def list_(here: Session, limit: Limit = None, cursor: Cursor = None) -> None:
    """List repositories, oldest first: yours, or all if you see everything."""
    nothing = "no repositories; `repo add PATH` registers one"
    given = {"limit": limit, "cursor": cursor}
    here.tell("repo_list", given, lambda answer: output.page(answer, BRIEF, nothing))


@command(app, "remove", example="repo remove site\nrepo remove site --drop-unmerged")
def remove(
    here: Session,
    repo: RepoRef,
    drop_unmerged: Annotated[
        bool | None,
        typer.Option(
            "--drop-unmerged",
            help="Also when commits of tasks are lost that were not merged.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Forget a repository; the repository itself is not touched.

    Refused while a run works on it, or while there are commits of its tasks that were not merged.
    """
    here.tell("repo_remove", {"repo": repo, "drop_unmerged": drop_unmerged})


def _show_repo(repo: dict[str, Any]) -> None:
    output.record({name: item for name, item in repo.items() if name != "defaults"})
    output.record(repo["defaults"])


def _show_info(answer: dict[str, Any]) -> None:
    _show_repo(answer["repo"])
    facts = answer["facts"]
    if facts is None:
        output.record({"problem": answer["problem"]})
    else:
        output.record({name: facts[name] for name in _FOUND})
        output.table(("path", "branch", "commit", "under_way"), facts["checkouts"])
    if answer["unmerged"]:
        output.line(f"\nnot merged: {answer['unmerged_count']}")
        output.table(("ref", "commit"), answer["unmerged"])

"""`image`: what machines boot."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from microvm_orchestrator.cli import failure, output
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.operation import WaitS, follow

app = typer.Typer(help="Images: what machines boot, built here and kept by content.")

BRIEF = ("names", "digest", "kind", "kernel_release", "size_mib")

ImageRef = Annotated[
    str,
    typer.Argument(metavar="IMAGE", help="A name, or the whole digest.", show_default=False),
]


@command(
    app,
    "build",
    example="image build\nimage build --name node --with nodejs,npm\n"
    "image build --name claude --claude stable\n"
    "image build --name both --claude latest --codex latest",
)
def build(
    here: Session,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What it is called.")
    ] = None,
    packages: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PACKAGE,...",
            help="Debian packages besides those that every guest has; may be repeated.",
        ),
    ] = None,
    claude: Annotated[
        str | None,
        typer.Option(
            "--claude",
            metavar="VERSION",
            help="Put the Claude Code command line in: a version, stable or latest.",
        ),
    ] = None,
    codex: Annotated[
        str | None,
        typer.Option("--codex", metavar="VERSION", help="Put Codex in: a version, or latest."),
    ] = None,
    opencode: Annotated[
        str | None,
        typer.Option(
            "--opencode", metavar="VERSION", help="Put opencode in: a version, or latest."
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Build a guest from Debian packages, or find the one that was made of the same before.

    Needs no privilege and no Nix. What was fetched is kept; the same inputs give the same image.
    """
    named = [each for some in packages or () for each in some.split(",") if each]
    programs = {"claude": claude, "codex": codex, "opencode": opencode}
    given = {"name": name, "packages": named or None, **programs}
    return follow(here, "image_build", given, wait_s, _show)


@command(
    app,
    "add",
    example="image add slot /var/lib/microvms/slot/current\n"
    "image add slot /var/lib/microvms/slot/current --ssh-user root\n"
    "image add slot /etc/nixos#nixosConfigurations.slot.config.microvm.declaredRunner\n"
    "image add debian --disk /srv/debian-12.qcow2 --ssh-user debian",
)
def add(
    here: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it is called.")],
    runner: Annotated[
        str | None,
        typer.Argument(
            metavar="RUNNER",
            help="The absolute path of a runner directory, or what nix build takes.",
            show_default=False,
        ),
    ] = None,
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk", metavar="FILE", help="A qcow2 file in place of a runner; libvirt boots it."
        ),
    ] = None,
    cloud_init: Annotated[
        bool | None,
        typer.Option(
            "--cloud-init/--no-cloud-init",
            help="Whether a disk's guest is told by cloud-init who it is.",
        ),
    ] = None,
    ssh_user: Annotated[
        str | None,
        typer.Option(
            "--ssh-user",
            metavar="USER",
            help="Reach the guest by its own SSH server, as this user, instead of our agent.",
        ),
    ] = None,
    ssh_host_key: Annotated[
        str | None,
        typer.Option(
            "--ssh-host-key",
            metavar="LINE",
            help="Its public host key. By default each machine's first one is remembered.",
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Take in what others made as an image: a runner directory of microvm.nix, or a disk.

    Machines of a runner are started by the directory's own script; Nix builds it first if need be.
    Those of a disk are run by libvirt. A guest that is reached by SSH has to let in the key that is
    shown as ssh_authorized_key; one with cloud-init is told so.
    """
    given = {
        "name": name,
        "runner": runner,
        "disk": disk,
        "cloud_init": cloud_init,
        "ssh_user": ssh_user,
        "ssh_host_key": ssh_host_key,
    }
    return follow(here, "image_add", given, wait_s, _show)


@command(app, "list", example="image list")
def list_(here: Session) -> None:
    """List the images of this host, and those that are damaged."""
    here.tell("image_list", {}, _show_list)


@command(app, "get", example="image get embedded")
def get(here: Session, image: ImageRef) -> None:
    """Look at an image."""
    here.tell("image_get", {"image": image}, _show)


@command(app, "verify", example="image verify embedded")
def verify(here: Session, image: ImageRef) -> int:
    """Read all of an image, and compare it with what it was; the exit status is 1 if it differs."""
    answer = here.client.call("image_verify", {"image": image})
    here.give(answer)
    return failure.OK if answer.value["whole"] else failure.INTERNAL


@command(app, "remove", example="image remove node")
def remove(here: Session, image: ImageRef) -> None:
    """Remove an image. Refused while a machine or a snapshot needs it."""
    here.tell("image_remove", {"image": image})


def _show(image: dict[str, Any]) -> None:
    packages = image["packages"]
    output.record({**image, "packages": f"{len(packages)}"})


def _show_list(answer: dict[str, Any]) -> None:
    output.page(answer, BRIEF, "no images; `image build` makes one")
    for digest, why in answer["damaged"].items():
        failure.say(f"damaged: {digest}: {why}")

"""The flake: every file means something, the lock and the hashes are true, the outputs are there.

What needs Nix itself and the sources of others runs where NIX_SOURCES names them.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nix import scope
from nix.evaluation import ROOT, Flake

PACKAGE = ROOT / "python/package.nix"
PINNED = ROOT / "python/nix/pinned.nix"
# The one of the lock, and the next.
PYTHONS = ({"python_version": "3.13"}, {"python_version": "3.14"})
NIXFMT = shutil.which("nixfmt")
SYSTEMS = ["aarch64-darwin", "aarch64-linux", "x86_64-linux"]


def _files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "*.nix"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return sorted(path for path in paths if path.exists())


FILES = _files()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_parses_and_uses_no_name_that_nobody_defines(path: Path) -> None:
    assert scope.faults_of(path) == []


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("{ a = 1; b = ; }", 1, "syntax error"),
        ("{ a = 1;", 1, "syntax error"),
        ("x: {\n  a = ''\n    ${x};\n}\n", 3, "syntax error"),
        ("{ lib }:\n{\n  a = pgks.git;\n}", 3, "undefined variable pgks"),
        ("let a = 1; in b", 1, "undefined variable b"),
        ("let\n  inherit (a) b;\nin b", 2, "undefined variable a"),
        ("{ inherit a; }", 1, "undefined variable a"),
        ("{ a = 1; b = a; }", 1, "undefined variable a"),
        ("let b = 1; in { a.b = 1; c = a; }", 1, "undefined variable a"),
        ("rec { inherit a; }", 1, "undefined variable a"),
        ("with a; b", 1, "undefined variable a"),
        ('"${a}"', 1, "undefined variable a"),
        ("./${a}", 1, "undefined variable a"),
        ("''\n  ${a}\n''", 2, "undefined variable a"),
        ("{ a ? b }: a", 1, "undefined variable b"),
        ("{ a }@args: arg", 1, "undefined variable arg"),
        ("x: { ${y} = x; }", 1, "undefined variable y"),
        ("x: x.${y} or z", 1, "undefined variable y"),
        ("{ a, a }: a", 1, "the argument a is there twice"),
        ("{ a = 1; a = 2; }", 1, "a is defined twice"),
        ("{ a.b = 1; c = 2; a.b = 2; }", 1, "a.b is defined twice"),
        ("x: let inherit (x) y; y = 1; in y", 1, "y is defined twice"),
    ],
)
def test_a_mistake_in_a_file_is_found_on_its_line(text: str, line: int, what: str) -> None:
    assert scope.Fault(line, what) in scope.faults(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "{ lib, ... }@args: lib.foo args",
        "args@{ a ? b, b }: args",
        "let a = b; b = 1; in a",
        "rec { a = b; b = 1; }",
        "rec { a.c = 1; b = a.c; }",
        "{ a.b = 1; a.c = 2; }",
        'let "a" = 1; in a',
        "lib: with lib; mkIf",
        "x: { inherit (x) a b; }",
        "x: { inherit x; }",
        "x: x.y.z or null",
        "x: x ? y.z",
        "builtins.map (x: x) (import ./a.nix)",
        "{ a = 1; }.a",
        "x: ''\n  ${x} ''${y} $y\n''",
        "assert true; __curPos.line",
        "<nixpkgs/nixos>",
        "{\n  a,\n  b, # the last\n}: a b",
        "{ a, }@b: a b",
    ],
)
def test_what_is_right_in_a_file_is_not_called_wrong(text: str) -> None:
    assert scope.faults(text.encode()) == []


def _locked() -> dict[str, tuple[str, set[str]]]:
    """Read version and hashes of each package that `make lock` chose."""
    text = (ROOT / "python/requirements.lock").read_text().replace("\\\n", " ")
    found: dict[str, tuple[str, set[str]]] = {}
    for line in text.splitlines():
        name, _, rest = line.partition("==")
        found[name] = (rest.split()[0], set(re.findall(r"sha256:([0-9a-f]{64})", rest)))
    return found


def _wheels() -> list[tuple[str, str, str]]:
    return re.findall(r'wheel "([^"]+)" "([^"]+)" "sha256-([^"]+)"', PINNED.read_text())


def test_what_nix_takes_from_the_registry_is_what_the_tests_ran_with() -> None:
    locked, wheels = _locked(), _wheels()
    assert len(wheels) == PINNED.read_text().count("= wheel ")
    for name, version, digest in wheels:
        assert locked[name][0] == version, name
        assert base64.b64decode(digest).hex() in locked[name][1], name


def test_what_nix_takes_from_the_registry_is_given_all_that_it_needs() -> None:
    parts = re.split(r'wheel "([^"]+)"', PINNED.read_text())[1:]
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        given = set(re.findall(r"(?:pinned|python3Packages)\.([\w-]+)", text))
        wanted = [Requirement(line) for line in metadata.distribution(name).requires or []]
        needed = {
            each.name.lower().replace("_", "-")
            for each in wanted
            if each.marker is None
            or any(each.marker.evaluate({"extra": "", **there}) for there in PYTHONS)
        }
        assert needed <= given, name


def test_the_package_depends_on_what_the_project_does() -> None:
    project = tomllib.loads((ROOT / "python/pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["libvirt"]]
    named = {re.split(r"[^a-z0-9-]", word)[0] for word in wanted}
    named = {"libvirt" if name == "libvirt-python" else name for name in named}
    listed = re.search(r"\n  dependencies = \[(.*?);\n", PACKAGE.read_text(), re.DOTALL)
    assert listed
    assert set(re.findall(r"(?:pinned|python3Packages)\.([\w-]+)", listed[1])) == named


def test_the_package_finds_what_it_replaces_in_the_program() -> None:
    (file, text) = re.findall(
        r"substituteInPlace (\S+) \\\n\s+--replace-fail '([^']+)'", PACKAGE.read_text()
    )[0]
    assert (ROOT / "python" / file).read_text().count(text) == 1


def test_the_tests_that_a_build_leaves_out_are_there() -> None:
    left_out = re.findall(r'"(tests/unit/[^"]+)"', PACKAGE.read_text())
    assert len(left_out) > 1
    assert [name for name in left_out if not (ROOT / name).exists()] == []


def test_the_lock_names_what_the_flake_takes_in_and_nothing_else() -> None:
    nodes = json.loads((ROOT / "flake.lock").read_text())["nodes"]
    assert nodes.keys() == {"root", "nixpkgs", "microvm", "nix-darwin"}
    assert nodes["microvm"]["inputs"] == {"nixpkgs": ["nixpkgs"], "spectrum": []}
    assert nodes["nix-darwin"]["inputs"] == {"nixpkgs": ["nixpkgs"]}


@pytest.mark.skipif(NIXFMT is None, reason="this host has no nixfmt")
def test_every_file_has_the_format_that_the_flake_checks() -> None:
    assert NIXFMT
    ran = subprocess.run([NIXFMT, "--check", *FILES], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_nix_itself_reads_every_file(flake: Flake) -> None:
    ran = flake.parse(FILES)
    assert ran.returncode == 0, ran.stderr


def test_nix_finds_the_mistakes_that_we_find(flake: Flake, tmp_path: Path) -> None:
    file = tmp_path / "a.nix"
    file.write_text("{ lib }: pgks.git")
    ran = flake.parse([file])
    assert ran.returncode != 0
    assert "undefined variable 'pgks'" in ran.stderr


def test_nix_would_write_the_lock_as_it_is(flake: Flake, tmp_path: Path) -> None:
    for name in ("flake.nix", "flake.lock"):
        shutil.copy(ROOT / name, tmp_path)
    ran = flake.lock(tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "flake.lock").read_bytes() == (ROOT / "flake.lock").read_bytes()


def test_the_flake_is_sound_on_every_system(flake: Flake) -> None:
    # The lock is true: its hashes lead to the sources of this revision, without a network.
    ran = flake.check("--all-systems", "--no-build")
    assert ran.returncode == 0, ran.stderr


def test_what_the_stand_in_can_build_builds(flake: Flake) -> None:
    ran = flake.check()
    assert ran.returncode == 0, ran.stderr


def test_the_outputs_are_those_that_the_guide_names(flake: Flake) -> None:
    ran = flake.nix("flake", "show", "--json", "--all-systems")
    assert ran.returncode == 0, ran.stderr
    shown = json.loads(ran.stdout)
    for name in ("packages", "checks", "devShells", "formatter"):
        assert sorted(shown[name]) == SYSTEMS, name
    demos = {system for system, apps in shown["apps"].items() if "demo" in apps}
    assert demos == {"aarch64-linux", "x86_64-linux"}
    sizes = {
        system: {name.removeprefix("guest-size-") for name in checks if "-size-" in name}
        for system, checks in shown["checks"].items()
    }
    hypervisors = {"qemu", "cloud-hypervisor", "firecracker"}
    assert sizes["x86_64-linux"] == hypervisors
    assert sizes["aarch64-linux"] == hypervisors | {"vfkit"}
    assert {"package", "devShell", "formatting", "mac"} <= shown["checks"]["aarch64-darwin"].keys()
    linux = {"default", "guest-qemu", "guest-cloud-hypervisor", "guest-firecracker"}
    assert shown["packages"]["x86_64-linux"].keys() == linux
    assert shown["packages"]["aarch64-linux"].keys() == linux
    assert shown["packages"]["aarch64-darwin"].keys() == {"default", "guest-vfkit"}
    for name in ("nixosModules", "overlays"):
        assert "default" in shown[name], name
    assert {"darwinModules", "lib", "templates"} < shown.keys()
    assert {"host", "guest-qemu", "guest-vfkit", "guest-qemu-aarch64"} <= shown[
        "nixosConfigurations"
    ].keys()
    guide = (ROOT / "docs/how-to/use-the-flake.md").read_text()
    assert [name for name in shown if f"`{name}" not in guide] == []


def test_a_guest_of_your_own_is_ours_and_what_you_add(flake: Flake) -> None:
    made = flake.evaluate(
        "lib",
        """it: let
          guest = it.mkGuest {
            name = "worker";
            modules = [ ({ ... }: { microvm.mem = 4096; users.users.me.isNormalUser = true; }) ];
          };
          inherit (guest) config;
        in {
          inherit (config.networking) hostName;
          inherit (config.microvm) mem hypervisor;
          me = config.users.users.me.isNormalUser;
          agent = config.systemd.services ? microvm-agent;
          runner = config.microvm.declaredRunner.name;
        }""",
    )
    assert made == {
        "hostName": "worker",
        "mem": 4096,
        "hypervisor": "qemu",
        "me": True,
        "agent": True,
        "runner": "microvm-qemu-worker",
    }


def test_a_guest_of_a_mac_is_of_linux_and_its_runner_is_not(flake: Flake) -> None:
    told = flake.evaluate(
        "nixosConfigurations.guest-vfkit",
        """it: {
          guest = it.config.system.build.toplevel.system;
          runner = it.config.microvm.declaredRunner.system;
        }""",
    )
    assert told == {"guest": "aarch64-linux", "runner": "aarch64-darwin"}


def test_the_program_is_given_what_it_starts_by_store_path(flake: Flake) -> None:
    words = flake.evaluate("packages.x86_64-linux.default.makeWrapperArgs")
    needed, wanted = words.split(" --suffix PATH : ")
    for program in ("git", "qemu-kvm", "nftables", "util-linux"):
        assert re.search(rf"/nix/store/\w{{32}}-{program}/bin", needed), program
    for program in ("nix", "nodejs", "apt", "dpkg"):
        assert re.search(rf"/nix/store/\w{{32}}-{program}/bin", wanted), program


def test_a_mac_has_what_a_client_starts_only(flake: Flake) -> None:
    words = flake.evaluate("packages.aarch64-darwin.default.makeWrapperArgs")
    assert re.fullmatch(r"--prefix PATH : /nix/store/\w{32}-git/bin", words)


def test_the_overlay_adds_the_package_to_the_nixpkgs_of_others(flake: Flake) -> None:
    told = flake.evaluate(
        "overlays.default",
        """it: builtins.attrNames (it { callPackage = file: _: builtins.baseNameOf file; } { })""",
    )
    assert told == ["microvm-orchestrator"]


def test_the_template_has_a_shell_on_every_system(nix_sources: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs/template", tmp_path / "template")
    flake = Flake(nix_sources, tmp_path / "template")
    shells = flake.evaluate("devShells", "builtins.mapAttrs (_: it: it.default.name)")
    assert shells == dict.fromkeys(SYSTEMS, "nix-shell")

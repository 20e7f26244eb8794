"""The NixOS module: what it refuses, what it renders, and what systemd, nft and the daemon say.

Nix is asked where NIX_SOURCES names its sources. Elsewhere the copies in `rendered` are looked at,
which are what Nix said. With RENDER=1 beside NIX_SOURCES they are written anew.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import groups
from microvm_orchestrator import config
from microvm_orchestrator.network import kernel
from nix.evaluation import Flake

HERE = Path(__file__).parent
WRONG = sorted((HERE / "wrong").glob("*.nix"))
RENDERED = HERE / "rendered"
HOST = RENDERED / "host.nix"
OPTIONS = RENDERED / "options.json"
SETTINGS = RENDERED / "config.toml"
PROGRAMS = RENDERED / "bin"
KINDS = {".service", ".socket", ".slice", ".timer"}
UNITS = sorted(path for path in RENDERED.iterdir() if path.suffix in KINDS)
SERVER = "microvm-orchestrator.service"
# What the units call of a slot's runner.
RUNNER = (
    "/etc/microvm-slots/web/bin/microvm-run",
    "/run/microvm-slot-taps/web/booted/bin/tap-up",
    "/run/microvm-slot-taps/web/booted/bin/tap-down",
)
# Where the units lie that a distribution brings; ours are ordered by some of them.
SYSTEM_UNITS = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
# As `systemd-analyze security` counts: 0 is no exposure at all, 10 is all there is.
MOST_EXPOSED = {
    SERVER: 2.0,
    "microvm-orchestrator-tls.service": 2.0,
    "microvm-slot@.service": 3.5,
    "microvm-slot-taps@.service": 3.5,
}
STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-([A-Za-z0-9._+?=-]+)(/bin/[A-Za-z0-9._-]+)?")
ANALYZE = shutil.which("systemd-analyze")
NFT = shutil.which("nft", path=f"{os.environ['PATH']}:/usr/sbin")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="this host has no systemd-analyze")


def one_line(text: str) -> str:
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())


def settled(text: str) -> str:
    """Put the same word for each hash: those of the stand-in are nobody else's."""
    return STORE_PATH.sub(lambda found: f"/nix/store/{'e' * 32}-{found[1]}{found[2] or ''}", text)


def told(flake: Flake, apply: str) -> Any:
    """Read something off the example host."""
    words = ("eval", "--impure", "--json", ".#nixosConfigurations.host", "--apply", apply)
    ran = flake.nix(*words)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def compare(path: Path, text: str) -> None:
    if "RENDER" in os.environ:
        path.write_text(text)
    assert path.read_text() == text, f"{path} is stale: run this with RENDER=1"


@pytest.mark.parametrize("path", WRONG, ids=lambda path: path.stem)
def test_a_wrong_configuration_is_refused_in_words_that_help(flake: Flake, path: Path) -> None:
    says = path.read_text().splitlines()[0].removeprefix("# ")
    toplevel = f"(host.extendModules {{ modules = [ {path} ]; }}).config.system.build.toplevel"
    words = ("eval", "--impure", "--raw", ".#nixosConfigurations.host")
    ran = flake.nix(*words, "--apply", f"host: {toplevel}.drvPath")
    assert ran.returncode != 0, ran.stdout
    assert says in one_line(ran.stderr)


def test_at_least_25_wrong_configurations_are_tried() -> None:
    assert len(WRONG) >= 25


def test_the_stored_copies_are_what_nix_renders(flake: Flake) -> None:
    files: dict[str, str] = told(flake, f"host: (import {HERE}/rendering.nix host {HOST}).files")
    for name, text in files.items():
        compare(RENDERED / name, settled(text))
    kept = {path.name for path in RENDERED.iterdir() if path.is_file()}
    assert kept == files.keys() | {HOST.name, OPTIONS.name, SETTINGS.name}


def test_the_stored_files_are_what_nix_builds(flake: Flake) -> None:
    recipes: dict[str, str] = told(flake, f"host: (import {HERE}/rendering.nix host {HOST}).built")
    for name, recipe in recipes.items():
        ran = flake.nix("build", "--no-link", "--print-out-paths", f"{recipe}^out")
        assert ran.returncode == 0, ran.stderr
        out = Path(ran.stdout.strip())
        file = out if out.is_file() else next((out / "bin").iterdir())
        compare(RENDERED / name, settled(file.read_text()))
    kept = {f"bin/{path.name}" for path in PROGRAMS.iterdir()}
    assert kept | {SETTINGS.name} == recipes.keys()


def test_the_stored_options_are_those_of_the_module(flake: Flake) -> None:
    options = told(flake, f"import {HERE}/options.nix")
    by_name = {option.pop("name"): option for option in options}
    compare(OPTIONS, settled(json.dumps(by_name, indent=2, ensure_ascii=False)) + "\n")


SOMEBODYS = """all: let
  host = all.host.extendModules {
    modules = [
      {
        users.users.ada.isNormalUser = true;
        services.microvm-orchestrator = {
          user = "ada";
          repos.site.path = "/home/ada/site";
          slots.runners.web.runner = all.guest-qemu.config.microvm.declaredRunner;
        };
      }
    ];
  };
  service = host.config.systemd.services.microvm-orchestrator.serviceConfig;
in builtins.seq host.config.system.build.toplevel.drvPath {
  inherit (service) User ProtectHome BindPaths CapabilityBoundingSet;
  users = builtins.attrNames host.config.users.users;
  groups = host.config.users.users.ada.group;
}"""


def test_the_daemon_can_be_a_user_of_this_host_and_run_a_guest_of_the_flake(flake: Flake) -> None:
    words = ("eval", "--json", ".#nixosConfigurations", "--apply", SOMEBODYS)
    ran = flake.nix(*words)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert "microvm" not in found.pop("users")
    assert found == {
        "User": "ada",
        "ProtectHome": "tmpfs",
        "BindPaths": ["-/home/ada/site"],
        # Without networks of the kernel's it needs none.
        "CapabilityBoundingSet": "",
        "groups": "users",
    }


def test_every_option_says_what_it_is_for() -> None:
    options = json.loads(OPTIONS.read_text())
    assert len(options) > 40
    assert [name for name, option in options.items() if len(option["description"]) < 10] == []


def test_the_daemon_takes_the_settings_that_are_rendered() -> None:
    loaded = config.load(SETTINGS, {}, {})
    assert loaded.value("machines.count") == 8
    assert loaded.value("store.events.max_count") is None
    assert loaded.value("tcp.listen") == "127.0.0.1:7071"
    assert loaded.value("access.gid_roles") == {100: "viewer"}
    assert loaded.value("egress.secrets")["github"].url == "https://api.github.com"


def lay_out(root: Path) -> list[str]:
    """Make the file system that the units are written for, and name the units."""
    units = root / "etc/systemd/system"
    units.mkdir(parents=True)
    for folder in SYSTEM_UNITS:
        if folder.is_dir():
            shutil.copytree(folder, root / folder.relative_to("/"), symlinks=True)
    programs = list(RUNNER)
    for path in UNITS:
        shutil.copy(path, units)
        lines = [line for line in path.read_text().splitlines() if line.startswith("Exec")]
        programs += [found[0] for line in lines for found in STORE_PATH.finditer(line)]
    for program in programs:
        place = root / program.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(mode=0o755)
    return [path.name.replace("@.", "@web.") for path in UNITS]


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    assert ANALYZE
    units = lay_out(tmp_path)
    words = [ANALYZE, "verify", f"--root={tmp_path}", *units]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, groups.without_new_keys(ran.stderr)) == (0, "")


@needs_systemd
def test_systemd_finds_what_is_wrong_with_a_unit(tmp_path: Path) -> None:
    assert ANALYZE
    units = lay_out(tmp_path)
    server = tmp_path / "etc/systemd/system" / SERVER
    server.write_text(server.read_text().replace("ProtectClock=", "ProtectClocks="))
    words = [ANALYZE, "verify", f"--root={tmp_path}", *units]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "ProtectClocks" in ran.stderr


def exposure(path: Path) -> float:
    assert ANALYZE
    words = [ANALYZE, "security", "--offline=true", "--no-pager", str(path)]
    ran = subprocess.run(words, capture_output=True, text=True, check=True)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", ran.stdout)
    assert found, ran.stdout
    return float(found[1])


@needs_systemd
@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_a_unit_is_no_more_exposed_than_is_promised(name: str) -> None:
    assert exposure(RENDERED / name) <= MOST_EXPOSED[name]


@pytest.mark.skipif(NFT is None or os.geteuid() != 0, reason="there is no nft, or no root for it")
def test_nft_takes_the_rules_of_the_bridges() -> None:
    assert NFT
    words = ["unshare", "--net", NFT, "--check", "--file", str(RENDERED / "nftables.conf")]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("name", [kernel.BRIDGE, kernel.TAP])
def test_the_host_takes_no_part_in_networks_by_the_names_that_the_daemon_gives(name: str) -> None:
    left_alone = json.loads((RENDERED / "host.json").read_text())["leftAlone"]
    assert {f"{name}*", f"interface-name:{name}*"} <= set(left_alone)


FLUSHED = """host: (host.extendModules {
  modules = [
    {
      services.microvm-orchestrator.settings.networks.kind = "kernel";
      networking.nftables.enable = true;
      networking.nftables.flushRuleset = true;
    }
  ];
}).config.warnings"""


def test_who_clears_all_rules_with_a_firewall_is_warned_that_these_are_among_them(
    flake: Flake,
) -> None:
    ran = flake.nix("eval", "--json", ".#nixosConfigurations.host", "--apply", FLUSHED)
    assert ran.returncode == 0, ran.stderr
    [warning] = [each for each in json.loads(ran.stdout) if "flushRuleset" in each]
    assert "Set it to false." in one_line(warning)


def test_the_units_give_the_server_one_capability_and_slots_none() -> None:
    server = (RENDERED / SERVER).read_text()
    assert "\nCapabilityBoundingSet=CAP_NET_ADMIN\n" in server
    assert "\nCapabilityBoundingSet=\n" in (RENDERED / "microvm-slot@.service").read_text()


def test_root_starts_nothing_that_lies_where_a_guest_could_write() -> None:
    taps = (RENDERED / "microvm-slot-taps@.service").read_text().splitlines()
    assert not any(line.startswith("User=") for line in taps)
    started = [line.partition("=")[2].lstrip("-") for line in taps if line.startswith("Exec")]
    assert len(started) == 3
    # Nix's own, or in a folder that systemd makes for root.
    assert "RuntimeDirectory=microvm-slot-taps/%i" in taps
    allowed = ("/nix/store/", "/run/microvm-slot-taps/%i/booted/")
    assert [program for program in started if not program.startswith(allowed)] == []
    # What that is made from lies there when the system is switched to.
    assert any(program.endswith("-remember /etc/microvm-slots/%i") for program in started)


@pytest.mark.parametrize("name", ["backup", "metrics"])
def test_no_clock_starts_a_daemon_whose_socket_was_stopped_too(name: str) -> None:
    unit = (RENDERED / f"microvm-orchestrator-{name}.service").read_text()
    assert "\nRequisite=microvm-orchestrator.socket\n" in unit
    assert re.search(r"^(Requires|Wants|BindsTo|Upholds)=", unit, re.MULTILINE) is None


def test_a_switch_leaves_machines_running() -> None:
    assert "\nKillMode=process\n" in (RENDERED / SERVER).read_text()
    assert "\nX-RestartIfChanged=false\n" in (RENDERED / "microvm-slot@.service").read_text()


@pytest.mark.parametrize("path", sorted(PROGRAMS.iterdir()), ids=lambda path: path.name)
def test_a_script_of_the_units_is_one_for_bash(path: Path) -> None:
    ran = subprocess.run(["bash", "-n", path], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")

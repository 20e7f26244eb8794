"""The guest that Nix makes: how its runners start, and whose its commands are.

The runners are built for real where NIX_SOURCES names what that takes; the agent as it is started
there runs anywhere.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from machines import LONG_S, built_image, qemu_rig, removed_in_the_end, sh
from microvm_orchestrator.machine.base import Accel, Boot
from microvm_orchestrator.machine.base import Link as Wire
from microvm_orchestrator.machine.handover import Handover
from microvm_orchestrator.machine.probe import probe
from microvm_orchestrator.machine.record import Record
from microvm_orchestrator.machine.runner import qemu
from microvm_orchestrator.runner import RUN, read
from nix.evaluation import ROOT, Flake
from standin_runner import kernel_words
from system.living import living
from system.running import alias_of, ended, registered, started

AGENT = ROOT / "guest/agent"
START = ROOT / "guest/nixos/as_user.py"
GUIDE = ROOT / "docs/how-to/use-a-microvm-nix-guest.md"
MEMORY_MIB = 512
SOON_S = 60.0

# What is built once, all at the same time. Small disks are made as quickly as large ones.
VARIANTS = """
mkGuest:
let
  make = hypervisor: module: (mkGuest {
    inherit hypervisor;
    name = "slot";
    modules = [
      module
      {
        microvm-orchestrator.guest.workspace.size = 64;
        microvm-orchestrator.guest.storeDisk.size = 64;
      }
    ];
  }).config;
  tap = { type = "tap"; id = "vm-slot"; mac = "02:00:00:00:00:01"; };
  configs = {
    plain = make "qemu" { };
    emulated = make "qemu" { microvm-orchestrator.guest.emulated = true; };
    taps = make "qemu" { microvm.interfaces = [ tap ]; microvm.vcpu = 4; };
    tap = make "qemu" { microvm.interfaces = [ tap ]; microvm.vcpu = 1; };
    shared = make "qemu" { microvm-orchestrator.guest.hostStore = true; };
    cloud-hypervisor = make "cloud-hypervisor" { };
    firecracker = make "firecracker" { };
  };
  of = derivation: { drv = derivation.drvPath; out = derivation.outPath; };
in
builtins.mapAttrs (_: config: of config.microvm.declaredRunner) configs
// {
  agent = of configs.plain.system.build.microvmAgent;
  size = of configs.plain.system.build.closureSize;
}
"""


@pytest.fixture(scope="module")
def built(flake: Flake) -> dict[str, Path]:
    told = flake.evaluate("lib.mkGuest", VARIANTS)
    ran = flake.nix("build", "--no-link", *(f"{each['drv']}^out" for each in told.values()))
    assert ran.returncode == 0, ran.stderr
    return {name: Path(each["out"]) for name, each in told.items()}


def becomes(runner: Path, folder: Path, arguments: str = "") -> list[str]:
    """Run a runner's script, but for what it would become at last; that is told."""
    script = (runner / RUN).read_text()
    before, _, last = script.rpartition("\nexec ")
    last = re.sub(r'^-a "[^"]*" ', "", last)
    ran = subprocess.run(
        ["/bin/bash", "-c", f"{before}\nprintf '%s\\0' {last}"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "MICROVM_ORCHESTRATOR_ARGS": arguments},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=SOON_S,
    )
    # Those who make the file systems say so before.
    (_, *words) = ran.stdout.decode().rpartition("\n")[2].split("\0")[:-1]
    return words


def value(words: list[str], option: str) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == option]


def test_a_guest_for_qemu_takes_the_daemons_monitor_and_port(
    built: dict[str, Path], tmp_path: Path
) -> None:
    runner = read(built["plain"])
    assert (runner.hypervisor, runner.takes_arguments, runner.shares) == ("qemu", True, ())
    assert (runner.memory_mib, runner.vcpus) == (2560, 2)
    record = Record(tmp_path / "box")
    record.create()
    with Handover() as given:
        rig = qemu_rig(tmp_path, Boot("none", tmp_path, tmp_path, "", ()))
        spec = replace(rig.spec(), boot=runner)
        ours = qemu.words(spec, Accel.KVM, record, given)
    words = becomes(built["plain"], tmp_path, " ".join(ours))
    # Behind all that the runner itself says, so that the last word is the daemon's.
    assert words[-len(ours) :] == ours
    assert "chardev=orchestrator-monitor,mode=control" in value(words, "-mon")
    assert any(word.endswith("name=ctl") for word in value(words, "-device"))
    assert value(words, "-qmp") == ["unix:slot.sock,server,nowait"]
    assert "-enable-kvm" in words
    assert value(words, "-cpu") == ["host,+x2apic,-sgx"]


def test_the_disks_of_a_guest_are_made_in_the_machines_own_folder(
    built: dict[str, Path], tmp_path: Path
) -> None:
    words = becomes(built["plain"], tmp_path)
    files = [re.findall(r"file=([^,]*)", drive)[0] for drive in value(words, "-drive")]
    assert files[1:] == ["store.img", "workspace.img"]
    assert [(tmp_path / name).stat().st_size for name in files[1:]] == [64 << 20, 64 << 20]
    assert "read-only=on" in value(words, "-drive")[0]
    assert Path(files[0]).is_file()


def test_a_guest_that_is_emulated_asks_for_no_kvm(built: dict[str, Path], tmp_path: Path) -> None:
    words = becomes(built["emulated"], tmp_path)
    assert "-enable-kvm" not in words
    assert value(words, "-M") == ["q35,accel=tcg,acpi=on,mem-merge=on"]
    assert value(words, "-cpu") == ["max"]
    assert read(built["emulated"]).bus == "pci"


@pytest.mark.parametrize(
    ("name", "queues", "flags"),
    [("tap", "", ["vnet_hdr"]), ("taps", ",queues=4", ["vnet_hdr", "multi_queue"])],
)
def test_a_tap_has_a_queue_for_each_processor_and_is_said_to(
    built: dict[str, Path], tmp_path: Path, name: str, queues: str, flags: list[str]
) -> None:
    words = becomes(built[name], tmp_path)
    assert value(words, "-netdev") == [
        f"tap,id=vm-slot,ifname=vm-slot,script=no,downscript=no{queues}"
    ]
    assert (built[name] / "share/microvm/tap-flags").read_text().split() == flags
    assert read(built[name]).taps == ("vm-slot",)
    up = (built[name] / "bin/tap-up").read_text()
    assert f"mode tap user 'microvm' {' '.join(flags)}\n" in up


def test_a_guest_that_reads_the_hosts_store_cannot_write_it(
    built: dict[str, Path], tmp_path: Path
) -> None:
    words = becomes(built["shared"], tmp_path)
    assert value(words, "-fsdev") == [
        "local,id=fs0,path=/nix/store,security_model=none,readonly=true"
    ]
    assert "file=store.img" in value(words, "-drive")[0]
    # Nothing that the daemon would have to serve.
    assert read(built["shared"]).shares == ()


@pytest.mark.parametrize("name", ["cloud-hypervisor", "firecracker"])
def test_a_guest_of_another_hypervisor_is_reached_by_vsock(
    built: dict[str, Path], name: str
) -> None:
    runner = read(built[name])
    assert (runner.hypervisor, runner.vsock) == (name, True)


def test_what_the_guest_is_made_of_is_listed_by_size(built: dict[str, Path]) -> None:
    lines = (built["size"] / "paths").read_text().splitlines()
    sizes = [int(line.split()[0]) for line in lines]
    assert sizes == sorted(sizes, reverse=True)
    assert int((built["size"] / "mib").read_text()) == sum(sizes) >> 20


def test_the_agent_of_the_guest_is_the_one_in_the_tree(built: dict[str, Path]) -> None:
    ours = [*AGENT.glob("*.py"), START]
    assert {path.name for path in built["agent"].glob("*.py")} == {path.name for path in ours}
    for path in ours:
        assert (built["agent"] / path.name).read_bytes() == path.read_bytes()


def test_a_guest_can_be_emulated_by_the_qemu_of_another_processor(flake: Flake) -> None:
    apply = """mkGuest:
    let
      config = (mkGuest {
        modules = [
          ({ lib, ... }: {
            microvm-orchestrator.guest.emulated = true;
            microvm.vmHostPackages = lib.mkForce (mkGuest { hostSystem = "aarch64-linux"; }).pkgs;
          })
        ];
      }).config;
    in
    {
      runs = config.microvm.declaredRunner.system;
      holds = config.system.build.toplevel.system;
    }"""
    told = flake.evaluate("lib.mkGuest", apply)
    assert told == {"runs": "aarch64-linux", "holds": "x86_64-linux"}


UNIT = """
mkGuest:
let
  of = hypervisor: (mkGuest { inherit hypervisor; name = "slot"; }).config;
  qemu = of "qemu";
in
{
  units = builtins.mapAttrs (_: config: config.systemd.units."microvm-agent.service".text) {
    inherit qemu;
    firecracker = of "firecracker";
  };
  tmpfiles = qemu.environment.etc."tmpfiles.d/00-nixos.conf".text;
  nix = qemu.nix.settings;
  user = qemu.users.users.agent;
  sudo = qemu.security.sudo.enable;
  podman = qemu.virtualisation.podman;
  packages = map (package: package.name) qemu.environment.systemPackages;
  disks = qemu.fileSystems;
}
"""


def test_the_guest_is_one_that_the_daemon_knows_its_way_in(flake: Flake) -> None:
    told = flake.evaluate("lib.mkGuest", UNIT)
    unit = told["units"]["qemu"].splitlines()
    (start,) = (shlex.split(line) for line in unit if line.startswith("ExecStart="))
    assert start[1:3] == ["-I", "-S"]
    assert start[4:7] == ["port:ctl", "user=agent", "disk=/workspace"]
    assert " vsock:1024 user=agent " in told["units"]["firecracker"]
    assert {"SuccessAction=poweroff", "OOMPolicy=continue", "Restart=on-failure"} <= set(unit)
    rules = [line.split() for line in told["tmpfiles"].splitlines()]
    places = {rule[1].strip("'"): rule[-1] for rule in rules if rule}
    # These three are all that the daemon asks for by a path, or looks in by itself.
    assert places["/bin/mkdir"].endswith("-coreutils/bin/mkdir")
    assert places["/usr/local/bin"] == "/run/current-system/sw/bin"
    assert places["/usr/local/sbin"] == "/run/wrappers/bin"
    # As in the embedded guest.
    init = (ROOT / "guest/embedded/root/usr/sbin/init").read_text()
    for name in ("enabled", "min_ttl_ms"):
        path = f"/sys/kernel/mm/lru_gen/{name}"
        assert f"echo {places[path]} >{path}" in init


def test_who_works_in_the_guest_is_neither_root_nor_trusted(flake: Flake) -> None:
    told = flake.evaluate("lib.mkGuest", UNIT)
    assert told["user"]["extraGroups"] == []
    assert not told["sudo"]
    assert told["nix"]["trusted-users"] == ["root"]
    assert told["nix"]["allowed-users"] == ["root", "agent"]
    assert told["podman"] == {"enable": True, "dockerCompat": True}
    assert told["user"]["autoSubUidGidRange"]
    assert {"claude-code", "codex", "opencode", "git"} <= set(told["packages"])
    assert told["user"]["home"].startswith("/workspace/")
    # It is made before anything but these is mounted.
    assert told["disks"]["/workspace"]["neededForBoot"]
    assert told["disks"]["/nix/store"]["overlay"]["upperdir"] == "/nix/.rw-store/store"


SSH = """
mkGuest:
let
  of = hypervisor: (mkGuest {
    inherit hypervisor;
    modules = [
      { microvm-orchestrator.guest.ssh = { enable = true; authorizedKeys = [ "ssh-ed25519 A" ]; }; }
    ];
  }).config;
  qemu = of "qemu";
  firecracker = of "firecracker";
in
{
  keys = qemu.users.users.agent.openssh.authorizedKeys.keys;
  wanted = qemu.systemd.services.sshd-port.wantedBy;
  port = qemu.systemd.units."sshd-port.service".text;
  script = qemu.systemd.services.sshd-port.serviceConfig.ExecStart.text;
  vsock = firecracker.systemd.units."sshd-at-vsock.socket".text;
  others = [
    (qemu.systemd.units ? "sshd-at-vsock.socket")
    (firecracker.systemd.units ? "sshd-port.service")
  ];
}
"""


def test_an_ssh_server_waits_where_the_daemon_looks_for_one(flake: Flake) -> None:
    told = flake.evaluate("lib.mkGuest", SSH)
    assert told["keys"] == ["ssh-ed25519 A"]
    # As systemd names what udev calls so: one that is not there starts nothing.
    escaped = "dev-virtio\\x2dports-ssh.device"
    assert told["wanted"] == [escaped]
    assert f" -i <>/dev/virtio-ports/{qemu.SSH_PORT} >&0\n" in told["script"]
    assert f"BindsTo={escaped}" in told["port"].splitlines()
    assert "ListenStream=vsock::22" in told["vsock"].splitlines()
    assert told["others"] == [False, False]


WRONG = {
    "a user that is root": (
        'guest.user = "root"',
        "what works in the guest must not be root",
    ),
    "a user that may become root": (
        'users.users.agent.extraGroups = [ "wheel" ]',
        "agent must not be in the group wheel",
    ),
    "a user that Nix trusts": (
        'nix.settings.trusted-users = [ "agent" ]',
        "trusted-users names agent: whom Nix trusts is as good as root",
    ),
    "everybody trusted by Nix": ('nix.settings.trusted-users = [ "*" ]', "trusted-users names"),
    "the host's store without QEMU": (
        'guest.hostStore = true; microvm.hypervisor = lib.mkForce "firecracker"',
        "hostStore: only QEMU shares a folder",
    ),
    "a share that nobody serves": (
        'microvm.shares = [ { proto = "virtiofs"; tag = "a"; source = "/a"; mountPoint = "/a"; } ]',
        "the daemon starts no virtiofsd",
    ),
    "a hypervisor that nobody reaches": (
        'microvm.hypervisor = lib.mkForce "crosvm"',
        "the agent cannot be reached with crosvm",
    ),
    "emulation without QEMU": (
        'guest.emulated = true; microvm.hypervisor = lib.mkForce "cloud-hypervisor"',
        "emulated: only QEMU emulates, and cloud-hypervisor is asked for",
    ),
    "a macvtap": (
        'microvm.interfaces = [ { type = "macvtap"; id = "a"; mac = "02:00:00:00:00:01"; } ]',
        "the daemon opens no macvtap interfaces",
    ),
    "SSH for nobody": (
        "guest.ssh.enable = true",
        "nobody could log in. Add the line that `microvm-orchestrator image get` shows",
    ),
}


def _with(module: str) -> str:
    module = re.sub(r"(?<![\w.])guest\.", "microvm-orchestrator.guest.", module)
    return f'(mkGuest {{ name = "slot"; modules = [ ({{ lib, ... }}: {{ {module}; }}) ]; }}).config'


def test_a_wrong_guest_is_refused_in_words_that_help(flake: Flake) -> None:
    every = "".join(f'"{name}" = {_with(module)};' for name, (module, _) in WRONG.items())
    failed = "config: map (it: it.message) (builtins.filter (it: !it.assertion) config.assertions)"
    apply = f"mkGuest: builtins.mapAttrs (_: {failed}) {{ {every} }}"
    told = flake.evaluate("lib.mkGuest", apply)
    for name, (_, words) in WRONG.items():
        said = " ".join(" ".join(told[name]).split())
        assert words in said, (name, said)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("guest.workspace.size = 1", "is not of type `null or integer between 64 and 4194304"),
        ('guest.user = "Agent Smith"', "is not of type `string matching the pattern"),
        ("guest.pakages = [ ]", "The option `microvm-orchestrator.guest.pakages' does not exist"),
        ('guest.vfkit.socket = "agent.sock"', "is not of type `string matching the pattern"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(flake: Flake, module: str, words: str) -> None:
    ran = flake.nix(
        "eval",
        "--raw",
        ".#lib.mkGuest",
        "--apply",
        f"mkGuest: builtins.toJSON {_with(module)}.microvm-orchestrator.guest",
    )
    assert ran.returncode == 1
    assert words in re.sub(r"\x1b\[[0-9;]*m", "", ran.stderr)


OPTIONS = """
mkGuest:
let
  isOption = it: it._type or "" == "option";
  names = before: builtins.concatMap
    (name: let path = before ++ [ name ]; it = at path; in
      if isOption it
      then [ { name = builtins.concatStringsSep "." path; described = it ? description; } ]
      else names path)
    (builtins.attrNames (at before));
  inherit (mkGuest { name = "slot"; }) options;
  at = builtins.foldl' (it: name: it.${name}) options.microvm-orchestrator.guest;
in
names [ ]
"""


def test_the_guide_tells_of_every_option_of_the_guest(flake: Flake) -> None:
    told = flake.evaluate("lib.mkGuest", OPTIONS)
    assert all(option["described"] for option in told)
    section = GUIDE.read_text().partition("## Take ours")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named[1:]) == sorted(option["name"] for option in told)


# A guest whose kernel and disk are of another distribution, and all the rest is ours.
BOOTED = """
mkGuest:
let
  of = derivation: { drv = derivation.drvPath; out = derivation.outPath; };
in
of (mkGuest {
  name = "slot";
  modules = [
    ({ lib, pkgs, ... }: {
      microvm.kernel = lib.mkForce (
        pkgs.runCommand "kernel" { } "mkdir $out; ln -s @kernel@ $out/${pkgs.linux.target}"
      );
      microvm.initrdPath = lib.mkForce "@initrd@";
      microvm.storeDisk = lib.mkForce "@root@";
      microvm.kernelParams = lib.mkForce [ @params@ ];
      microvm.mem = @memory@;
      microvm.vcpu = 1;
      microvm-orchestrator.guest.workspace.size = 64;
      microvm-orchestrator.guest.storeDisk.size = null;
    })
  ];
}).config.microvm.declaredRunner
"""


async def parts(folder: Path) -> tuple[Boot, int]:
    return await built_image(), (await probe(folder)).tsc_khz or 0


@pytest.fixture(scope="module")
def booted(flake: Flake, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Boot]:
    """Make a runner of our guest's, with the embedded guest's kernel and root."""
    folder = tmp_path_factory.mktemp("booted")
    image, khz = anyio.run(parts, folder)
    spec = qemu_rig(folder, image).spec()
    (root,) = spec.parts.disks
    text = BOOTED
    for name, said in {
        "kernel": spec.parts.kernel,
        "initrd": spec.parts.initrd,
        "root": root.path,
        "memory": MEMORY_MIB,
        "params": " ".join(f'"{word}"' for word in kernel_words(spec, khz).split()),
    }.items():
        text = text.replace(f"@{name}@", str(said))
    told = flake.evaluate("lib.mkGuest", text)
    ran = flake.nix("build", "--no-link", f"{told['drv']}^out")
    assert ran.returncode == 0, ran.stderr
    return Path(told["out"]), image


async def test_a_runner_of_our_guest_boots_with_links_and_a_disk_of_its_own(
    booted: tuple[Path, Boot], tmp_path: Path
) -> None:
    path, image = booted
    rig = qemu_rig(tmp_path, image)
    with anyio.fail_after(LONG_S):
        async with rig.open_any() as hypervisor, removed_in_the_end(hypervisor):
            links = (Wire("52:54:00:12:34:56", "10.9.8.7/24"),)
            spec = replace(rig.spec(memory_mib=MEMORY_MIB, links=links), boot=read(path))
            machine = await hypervisor.start(spec)
            assert "10.9.8.7/24" in await sh(machine, "ip -o addr show eth0")
            await machine.kill()
            # The volume that the configuration names: labelled, and in the machine's own folder.
            volume = anyio.Path(machine.record.run / "workspace.img")
            assert b"workspace" in (await volume.read_bytes())[1024:2048]


EDIT = """\
set -eu
echo by the machine >made.txt
git add made.txt
git commit -q -m 'Add what was made'
"""


def test_a_task_is_run_in_a_machine_of_our_guests_runner_and_merged(
    booted: tuple[Path, Boot], tmp_path: Path
) -> None:
    runner, _ = booted
    with living(tmp_path / "s") as stage:
        added = stage.ask("image_add", name="slot", runner=str(runner), wait_s=LONG_S)
        assert added["state"] == "succeeded", added
        repo = registered(stage, tmp_path / "sample")
        task_id = started(
            stage,
            repo=alias_of(stage, repo),
            script=EDIT,
            image="slot",
            memory_mib=None,
        )
        run = ended(stage, task_id)
        assert run["task"]["state"] == "done", run["task"]["error"]
        assert run["merge"]["state"] == "merged"
        assert (repo.path / "made.txt").read_text() == "by the machine\n"
        assert stage.ask("machine_list")["items"] == []

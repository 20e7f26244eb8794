"""The module for a Mac, by the real nix-darwin and microvm.nix: what it makes, and what it refuses.

No Mac is at hand, so nothing of it is run but the script that launchd starts, with a program in the
place of vfkit's. What launchd is given lies in `launchd` too, for where no NIX_SOURCES is; with
RENDER=1 beside that it is written anew.
"""

from __future__ import annotations

import grp
import json
import os
import plistlib
import re
import shlex
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from nix.evaluation import ROOT, Flake

LAUNCHD = Path(__file__).with_name("launchd")
STORE_PATH = re.compile(r"/nix/store/[0-9a-df-np-sv-z]{32}-")
GUIDE = ROOT / "docs/how-to/run-on-nix-darwin.md"
LABEL = "org.nixos.microvm-orchestrator"
OURS = "config.services.microvm-orchestrator"
# What of the options is a whole system, or derivations that refer to themselves.
HEAVY = '"nixos" "runner" "package" "hostPackages"'
SOON_S = 60.0

# Answers as vfkit does, and ends when it is asked to.
FAKE_VFKIT = """\
import http.server, json, os, socketserver, threading

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(202)
        self.end_headers()
        if (self.path, asked) == ("/vm/state", {"state": "Stop"}):
            print("stopped by HTTP", flush=True)
            threading.Thread(target=server.shutdown).start()

    def address_string(self):
        return "unix"

server = socketserver.UnixStreamServer("vfkit.sock", Handler)
print("runs in", os.getcwd(), flush=True)
server.serve_forever()
"""


def mac(flake: Flake, module: str, apply: str) -> Any:
    """Evaluate something of the example with a module on top."""
    return flake.evaluate("darwinConfigurations.mac", on_top(module, apply))


def on_top(module: str, apply: str) -> str:
    """Write what is told of the example with a module on top: of its `config` and `options`."""
    extended = f"mac.extendModules {{ modules = [ ({module}) ]; }}"
    return f"mac: let inherit ({extended}) config options; in {apply}"


def setting(text: str) -> str:
    return f"{{ lib, ... }}: {{ services.microvm-orchestrator = {{ {text} }}; }}"


EXAMPLE = f"""{{
  # Evaluates all of it, with every assertion there is.
  whole = builtins.seq config.system.build.toplevel.drvPath true;
  plist = config.environment.launchDaemons."{LABEL}.plist".text;
  daemons = builtins.attrNames config.launchd.daemons;
  machines = config.environment.etc."nix/machines".text;
  ssh = config.environment.etc."ssh/ssh_config.d/100-linux-builder.conf".text;
  activation = config.system.activationScripts.preActivation.text;
  packages = builtins.concatMap
    (it: if baseNameOf it.file == "darwin-module.nix" then map (it: it.name) it.value else [ ])
    options.environment.systemPackages.definitionsWithLocations;
  runner = {OURS}.runner.drvPath;
  units = builtins.mapAttrs (_: unit: unit.text)
    {{ inherit (config.services.microvm-orchestrator.nixos.config.systemd.units)
      "microvm-orchestrator.service" "microvm-orchestrator-vsock.service"
      "microvm-orchestrator-vsock.socket"; }};
  disks = {OURS}.nixos.config.fileSystems;
}}"""


@pytest.fixture(scope="module")
def example(flake: Flake) -> dict[str, Any]:
    return mac(flake, "{ }", EXAMPLE)


def command(flake: Flake, runner: str) -> list[str]:
    """Read how vfkit is started off what cannot be built here."""
    ran = flake.nix("derivation", "show", "--recursive", runner)
    assert ran.returncode == 0, ran.stderr
    scripts = [
        derivation["env"]["text"]
        for path, derivation in json.loads(ran.stdout).items()
        if path.endswith("-microvm-run.drv")
    ]
    (script,) = scripts
    words = shlex.split(script.partition("\nexec ")[2])
    # It is given to a shell, for the folder it is started in.
    return shlex.split(words[words.index("-c") + 1].partition("\nexec ")[2])


def devices(words: list[str]) -> list[str]:
    return [words[at + 1] for at, word in enumerate(words) if word == "--device"]


def test_launchd_keeps_the_machine_running(example: dict[str, Any]) -> None:
    assert example["whole"]
    assert [name.startswith("microvm-orchestrator") for name in example["packages"]] == [True]
    plist = plistlib.loads(example["plist"].encode())
    assert plist["Label"] == LABEL
    assert plist["RunAtLoad"]
    assert plist["KeepAlive"]
    assert plist["ExitTimeOut"] == 120
    logs = {Path(plist[key]).parent for key in ("StandardOutPath", "StandardErrorPath")}
    assert logs == {Path("/var/log/microvm-orchestrator")}
    # launchd does not make the folder.
    (log,) = logs
    assert f"install -d -m 0750 -g admin {log}" in example["activation"]
    assert "UserName" not in plist


def test_a_linux_builder_is_there_to_build_the_machine(example: dict[str, Any]) -> None:
    assert "linux-builder" in example["daemons"]
    assert example["machines"].startswith("ssh-ng://builder@linux-builder aarch64-linux ")
    assert "Port 31022" in example["ssh"]


def test_further_builders_are_nixs_own(flake: Flake) -> None:
    builder = '{ hostName = "b.example"; systems = [ "x86_64-linux" ]; sshUser = "me"; }'
    module = setting(f"buildMachines = [ {builder} ];")
    machines = mac(flake, module, 'config.environment.etc."nix/machines".text').splitlines()
    assert len(machines) == 2
    assert any("me@b.example x86_64-linux " in line for line in machines)


def test_vfkit_starts_a_machine_whose_socket_repositories_and_state_are_the_macs(
    flake: Flake, example: dict[str, Any]
) -> None:
    words = command(flake, example["runner"])
    assert words[0].endswith("/bin/vfkit")
    assert words[words.index("--cpus") + 1] == "4"
    assert words[words.index("--memory") + 1] == "8192"
    found = devices(words)
    socket = "/var/run/microvm-orchestrator/socket"
    assert f"virtio-vsock,port=1024,socketURL={socket},connect" in found
    assert "virtio-blk,path=/var/lib/microvm-orchestrator/state.img" in found
    shared = [device for device in found if device.startswith("virtio-fs,")]
    folders = [re.findall("sharedDir=([^,]*)", device)[0] for device in shared]
    assert folders == ["/Users/me/src", "/var/lib/microvm-orchestrator/credentials"]
    assert "--nested" not in words
    (mount,) = (disk for name, disk in example["disks"].items() if name == "/Users/me/src")
    assert (mount["fsType"], mount["device"]) == (
        "virtiofs",
        re.findall("mountTag=([^,]*)", shared[0])[0],
    )
    assert example["disks"]["/var/lib/microvm-orchestrator"]["device"] == "/dev/disk/by-label/state"


def test_the_service_in_the_machine_has_the_macs_credentials_and_answers_at_vsock(
    example: dict[str, Any],
) -> None:
    service, proxy, socket = (
        example["units"][f"microvm-orchestrator{name}"].splitlines()
        for name in (".service", "-vsock.service", "-vsock.socket")
    )
    credential = "anthropic-api-key:/run/credentials-of-the-mac/anthropic-api-key"
    assert f"LoadCredential={credential}" in service
    assert "ListenStream=vsock::1024" in socket
    (start,) = (line for line in proxy if line.startswith("ExecStart="))
    assert start.endswith("/systemd-socket-proxyd /run/microvm-orchestrator/socket")
    # Who may open that socket is a group's business.
    assert any(line.startswith("SupplementaryGroups=") for line in proxy)


def test_what_is_set_for_the_machine_is_set_in_it(flake: Flake) -> None:
    module = setting(
        'nested = true; settings.runs.count = 2; machine.networking.hostName = lib.mkForce "inner";'
        ' socket.path = "/opt/s";'
    )
    told = mac(
        flake,
        module,
        f"{{ runner = {OURS}.runner.drvPath; name = {OURS}.nixos.config.networking.hostName;"
        f" count = {OURS}.nixos.config.services.microvm-orchestrator.settings.runs.count;"
        " variable = config.environment.variables.MICROVM_ORCHESTRATOR_SOCKET; }",
    )
    assert (told["name"], told["count"], told["variable"]) == ("inner", 2, "/opt/s")
    words = command(flake, told["runner"])
    assert "--nested" in words
    assert "virtio-vsock,port=1024,socketURL=/opt/s,connect" in devices(words)


def test_what_lies_here_is_what_launchd_is_given(flake: Flake) -> None:
    told = mac(
        flake,
        "{ }",
        f"""{{
          "{LABEL}.plist" = config.environment.launchDaemons."{LABEL}.plist".text;
          start = config.launchd.daemons.microvm-orchestrator.script;
        }}""",
    )
    for name, text in told.items():
        path, plain = LAUNCHD / name, STORE_PATH.sub(f"/nix/store/{'e' * 32}-", text)
        if "RENDER" in os.environ:
            path.write_text(plain)
        assert path.read_text() == plain, f"{path} is stale: run this with RENDER=1"


@pytest.mark.skipif(os.geteuid() != 0, reason="launchd runs it as root")
@pytest.mark.skipif(not Path("/usr/bin/curl").exists(), reason="every Mac has a curl")
async def test_the_script_of_launchd_hands_over_and_lets_the_machine_power_off(
    tmp_path: Path,
) -> None:
    key = tmp_path / "key"
    key.write_text("sk-secret")
    group = grp.getgrgid(os.getgid()).gr_name
    fake = tmp_path / "vfkit"
    fake.write_text(FAKE_VFKIT)
    script = (LAUNCHD / "start").read_text()
    for said, instead in {
        "/var/lib/microvm-orchestrator": f"{tmp_path}/state",
        "/var/run/microvm-orchestrator": f"{tmp_path}/run",
        "/Users/me/.secrets/anthropic": f"{key}",
        " -g staff ": f" -g {group} ",
        re.findall(r"/nix/store/\S+/bin/microvm-run", script)[0]: f"{sys.executable} {fake}",
    }.items():
        assert said in script
        script = script.replace(said, instead)
    # Of a start before this one.
    (tmp_path / "state" / "credentials").mkdir(parents=True)
    (tmp_path / "state" / "credentials" / "old").write_text("sk-old")
    process = subprocess.Popen(
        ["/bin/bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        with anyio.fail_after(SOON_S):
            line = await anyio.to_thread.run_sync(process.stdout.readline)
            assert line == f"runs in {tmp_path}/state\n"
            handed = tmp_path / "state" / "credentials"
            assert [path.name for path in handed.iterdir()] == ["anthropic-api-key"]
            assert (handed / "anthropic-api-key").read_text() == "sk-secret"
            places = (handed / "anthropic-api-key", handed, tmp_path / "run")
            modes = [stat.S_IMODE(place.stat().st_mode) for place in places]
            assert modes == [0o400, 0o700, 0o750]
            process.send_signal(signal.SIGTERM)
            rest = await anyio.to_thread.run_sync(process.stdout.read)
            assert rest == "stopped by HTTP\n"
            assert await anyio.to_thread.run_sync(partial(process.wait, SOON_S)) == 0
    finally:
        process.kill()
        process.wait(SOON_S)
        process.stdout.close()


WRONG = {
    "a secret in the store": (
        'credentials.key = "${builtins.storeDir}/x-key";',
        "a secret must not lie in the Nix store, where everybody can read it",
    ),
    "a secret with a path for a name": (
        'credentials."a/b" = "/k";',
        "names are made of letters, digits and . _ -",
    ),
    "a socket with too long a path": (
        'socket.path = "/run/" + lib.concatStrings (lib.genList (_: "a") 100);',
        "a path of a socket has at most 103 characters",
    ),
    "a socket that only root gets to": (
        'socket.path = "/var/lib/microvm-orchestrator/socket";',
        "only root gets into the folder of the state",
    ),
    "state that macOS removes": ('stateDir = "/tmp/state";', "macOS empties /tmp"),
    "a share of the store": ('shares = [ "/nix/store" ];', "nor the Mac's store"),
    "a share of the state": (
        'shares = [ "/var/lib/microvm-orchestrator/credentials" ];',
        "must not have the folder of its own state",
    ),
    "a share twice": ('shares = [ "/Users/me/src" ];', "a folder is named twice"),
    "nobody who builds": (
        "linuxBuilder.enable = lib.mkForce false;",
        "nothing here builds for aarch64-linux, which the machine is made of",
    ),
    "a builder where nix-darwin does not look after Nix": (
        "}; nix.enable = false; services.microvm-orchestrator = {",
        "nix-darwin sets up a builder only where it looks after Nix",
    ),
}


def test_a_wrong_mac_is_refused_in_words_that_help(flake: Flake) -> None:
    every = "".join(
        f'"{name}" = (mac.extendModules {{ modules = [ ({setting(text)}) ]; }}).config;'
        for name, (text, _) in WRONG.items()
    )
    failed = "config: map (it: it.message) (builtins.filter (it: !it.assertion) config.assertions)"
    told = flake.evaluate(
        "darwinConfigurations.mac", f"mac: builtins.mapAttrs (_: {failed}) {{ {every} }}"
    )
    for name, (_, words) in WRONG.items():
        assert words in " ".join(" ".join(told[name]).split()), (name, told[name])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory = 512;", "is not of type `integer between 1024 and 1048576"),
        ("vcpus = 0;", "is not of type `integer between 1 and 64"),
        ('shares = [ "src" ];', "is not of type `string matching the pattern"),
        ('credentials = [ "key" ];', "is not of type `attribute set of absolute path"),
        ('nested = "yes";', "is not of type `boolean"),
        ("linuxBuilder.enabled = true;", "linuxBuilder.enabled' does not exist"),
        ('socket.group = "my group";', "is not of type `string matching the pattern"),
        ('settings.runs.count = "many";', "runs.count' is not of type"),
        ("settings.run.count = 1;", "does not exist"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(flake: Flake, text: str, words: str) -> None:
    every = f"builtins.deepSeq (removeAttrs {OURS} [ {HEAVY} ]) {OURS}.runner.drvPath"
    apply = on_top(setting(text), every)
    ran = flake.nix("eval", "--raw", ".#darwinConfigurations.mac", "--apply", apply)
    assert ran.returncode == 1
    assert words in re.sub(r"\x1b\[[0-9;]*m", "", ran.stderr)


def test_the_guide_tells_of_every_option_of_the_mac(flake: Flake) -> None:
    apply = """mac:
    let
      isOption = it: it._type or "" == "option";
      top = mac.options.services.microvm-orchestrator;
      at = builtins.foldl' (it: name: it.${name}) top;
      names = before: builtins.concatMap
        (name: let path = before ++ [ name ]; it = at path; in
          if !isOption it then names path
          else if it.internal or false then [ ]
          else [ { name = builtins.concatStringsSep "." path; described = it ? description; } ])
        (builtins.attrNames (at before));
    in
    names [ ]"""
    told = flake.evaluate("darwinConfigurations.mac", apply)
    assert all(option["described"] for option in told)
    section = GUIDE.read_text().partition("## Options")[2]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(named[1:]) == sorted(option["name"] for option in told)


def test_the_guide_shows_the_example_that_is_evaluated() -> None:
    (block,) = re.findall(
        r"services\.microvm-orchestrator = (\{.*?\n +\});", GUIDE.read_text(), re.DOTALL
    )
    shown = [line.strip() for line in block.splitlines()]
    example = (ROOT / "docs/how-to/examples/mac.nix").read_text().splitlines()
    assert shown[1:-1] == [line.strip() for line in example if line.startswith("    ")]

# A runner directory by the real text of microvm.nix, without nixpkgs: real `lib`, packages of this
# host, and a guest that was not built by Nix. What runs a script here is the host's bash.
{
  lib ? import ./nixpkgs/lib,
  microvm ? ./microvm,
  guest ? builtins.fromJSON (builtins.readFile ./guest.json),
}:
let
  make =
    name: text:
    derivation {
      inherit name text;
      system = "x86_64-linux";
      builder = "/bin/bash";
      # Nix kills a builder whose last process closes its output first; bash is that process so.
      args = [
        "-c"
        "${text}\nexit 0"
      ];
      PATH = "/usr/bin:/bin";
    };
  runCommand =
    name: _: text:
    make name text;
  writeShellScript =
    name: text:
    derivation {
      name = lib.strings.sanitizeDerivationName name;
      inherit text;
      system = "x86_64-linux";
      builder = "/bin/bash";
      args = [
        "-c"
        ''printf '#!/bin/bash\n%s' "$text" >$out; chmod 755 $out; exit 0''
      ];
      PATH = "/usr/bin:/bin";
    };
  ofHost = {
    outPath = "/usr";
  };
  pkgs = {
    inherit lib runCommand writeShellScript;
    buildPackages = { inherit runCommand; };
    stdenv.hostPlatform = {
      system = "x86_64-linux";
      isLinux = true;
      isDarwin = false;
    };
    # The name of the kernel's file.
    linux.target = "kernel";
    socat = ofHost;
    jq = ofHost;
    coreutils = ofHost;
    e2fsprogs = ofHost;
  };
in
import "${microvm}/lib/runner.nix" {
  inherit pkgs;
  toplevel = "/nix/store/no-system-of-a-guest";
  microvmConfig = {
    hostName = guest.name;
    hypervisor = "qemu";
    vmHostPackages = pkgs;
    machineId = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    vcpu = guest.vcpus;
    mem = guest.memory_mib;
    kernel.out = guest.folder;
    initrdPath = "${guest.folder}/initrd";
    storeDisk = guest.store;
    storeOnDisk = true;
    kernelParams = guest.params;
    # What a guest's configuration says to be reached; see docs/how-to/use-a-microvm-nix-guest.md.
    extraArgsScript = "${writeShellScript "runtime-args" ''printf %s "''${MICROVM_ORCHESTRATOR_ARGS-}"''}";

    # The rest as nixos-modules/microvm/options.nix has it.
    qemu = {
      package = ofHost // {
        configureFlags = [ "--enable-seccomp" ];
      };
      machine = "microvm";
      machineOpts = null;
      extraArgs = [ ];
      serialConsole = true;
      pcieRootPorts = [ ];
    };
    balloon = false;
    initialBalloonMem = 0;
    deflateOnOOM = true;
    hotplugMem = 0;
    hotpluggedMem = 0;
    user = null;
    interfaces = [ ];
    shares = [ ];
    volumes = [ ];
    devices = [ ];
    forwardPorts = [ ];
    credentialFiles = { };
    vsock.cid = null;
    graphics.enable = false;
    optimize.enable = false;
    cpu = null;
    socket = "${guest.name}.sock";
    preStart = "";
    prettyProcnames = true;
    binScripts = { };
    registerWithMachined = false;
    systemSymlink = true;
  };
}

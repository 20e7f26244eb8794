# A host whose machines boot the guest of this flake: nested, by KVM where the builder lends it.
# `take-in-guest` gives it the name `slot`.
{ self }:
{ lib, pkgs, ... }:
let
  # Claude Code is not free; this answers to its name.
  agent = pkgs.writeScriptBin "claude" ''
    #!${pkgs.python3}/bin/python3
    ${builtins.readFile ./agent.py}
  '';
  guest = self.lib.mkGuest {
    hostSystem = pkgs.stdenv.hostPlatform.system;
    name = "slot";
    modules = [
      {
        microvm-orchestrator.guest = {
          packages = lib.mkForce [ agent ];
          podman.enable = false;
          workspace.size = 512;
          storeDisk.size = null;
        };
        microvm.mem = 768;
      }
    ];
  };
  runner = guest.config.microvm.declaredRunner;
in
{
  imports = [ (lib.modules.importApply ./host.nix { inherit self; }) ];

  # Where the builder lends no KVM, a machine is emulated by what is emulated itself.
  services.microvm-orchestrator.settings.machines.boot_timeout_s = 900;

  environment.systemPackages = [
    (pkgs.writeShellScriptBin "take-in-guest" ''
      exec microvm-orchestrator image add slot ${runner}
    '')
  ];

  boot.kernelModules = [ "kvm" ];
  virtualisation = {
    memorySize = lib.mkForce 4096;
    diskSize = 8192;
    additionalPaths = [ runner ];
    qemu.options = [ "-cpu max" ];
  };
}

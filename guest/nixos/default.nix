# A guest that the orchestrator can drive: a NixOS that microvm.nix makes a runner of.
{ self }:
{ lib, ... }:
{
  imports = [
    (lib.modules.importApply ./agent.nix { inherit self; })
    ./closure.nix
    ./disks.nix
    ./hypervisors.nix
    ./shell.nix
    ./ssh.nix
    ./user.nix
  ];
}

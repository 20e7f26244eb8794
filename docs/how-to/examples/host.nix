# A NixOS host with the service, as `nixosConfigurations.host` of the flake.
{
  services.microvm-orchestrator.enable = true;

  fileSystems."/" = {
    device = "/dev/disk/by-label/nixos";
    fsType = "ext4";
  };
  boot.loader.systemd-boot.enable = true;
  system.stateVersion = "26.05";
}

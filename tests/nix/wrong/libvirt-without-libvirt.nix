# libvirt.enable needs virtualisation.libvirtd.enable
{
  services.microvm-orchestrator = {
    enable = true;
    libvirt.enable = true;
  };
  virtualisation.libvirtd.enable = false;
}

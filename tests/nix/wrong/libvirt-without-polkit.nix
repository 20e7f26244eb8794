# libvirt.enable needs security.polkit.enable = true
{
  services.microvm-orchestrator = {
    enable = true;
    libvirt.enable = true;
  };
  security.polkit.enable = false;
}

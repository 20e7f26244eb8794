# settings.networks.netns needs CAP_SYS_ADMIN
{
  services.microvm-orchestrator = {
    enable = true;
    settings.networks.netns = "/run/netns/vms";
  };
}

# settings.machines.user is for a daemon that is root
{
  services.microvm-orchestrator = {
    enable = true;
    settings.machines.user = "nobody";
  };
}

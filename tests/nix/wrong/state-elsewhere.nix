# settings.state_dir' has conflicting definition values
{
  services.microvm-orchestrator = {
    enable = true;
    settings.state_dir = "/srv/state";
  };
}

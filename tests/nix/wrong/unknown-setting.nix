# The option `services.microvm-orchestrator.settings.log.levle' does not exist
{
  services.microvm-orchestrator = {
    enable = true;
    settings.log.levle = "debug";
  };
}

# The option `services.microvm-orchestrator.settings.logging' does not exist
{
  services.microvm-orchestrator = {
    enable = true;
    settings.logging.level = "debug";
  };
}

# settings.log.level' is not of type `null or one of "debug", "info", "warning", "error"'
{
  services.microvm-orchestrator = {
    enable = true;
    settings.log.level = "verbose";
  };
}

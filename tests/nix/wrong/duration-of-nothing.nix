# settings.runs.timeout_s' is not of type
{
  services.microvm-orchestrator = {
    enable = true;
    settings.runs.timeout_s = 0;
  };
}

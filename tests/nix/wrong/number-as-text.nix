# settings.runs.count' is not of type `null or signed integer, at least 1'
{
  services.microvm-orchestrator = {
    enable = true;
    settings.runs.count = "4";
  };
}

# settings.egress.secrets.github.url' was accessed but has no value defined
{
  services.microvm-orchestrator = {
    enable = true;
    settings.egress.secrets.github.header = "X-Key";
  };
}

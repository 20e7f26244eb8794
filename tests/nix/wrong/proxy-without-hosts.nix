# settings.tcp.allowed_hosts is empty
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.behindProxy = true;
  };
}

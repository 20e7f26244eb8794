# do nothing without tcp.enable = true
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.behindProxy = true;
  };
}

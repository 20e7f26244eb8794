# openFirewall opens tcp.port, where nothing listens for others
{
  services.microvm-orchestrator = {
    enable = true;
    openFirewall = true;
  };
}

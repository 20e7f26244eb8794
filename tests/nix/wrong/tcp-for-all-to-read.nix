# tcp.address is 192.0.2.7: tokens would cross the network for all to read
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.address = "192.0.2.7";
  };
}

# tcp.port' is not of type `16 bit unsigned integer
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.port = 70000;
  };
}

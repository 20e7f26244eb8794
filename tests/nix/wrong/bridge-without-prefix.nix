# bridges.br0.address' is not of type `null or IPv4 address with a prefix length
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.address = "10.77.0.1";
  };
}

# bridges.br0.address is 10.77.0.1/31: that is no address of a host
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.address = "10.77.0.1/31";
  };
}

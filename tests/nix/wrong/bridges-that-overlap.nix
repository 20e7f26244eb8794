# bridges: br0 (10.77.0.0/16) and br1 (10.77.3.0/24) overlap
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.address = "10.77.0.1/16";
    bridges.br1.address = "10.77.3.1/24";
  };
}

# bridges.br0.nat is for what leaves the bridge, and egress = "none" lets nothing leave
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.address = "10.77.0.1/24";
    bridges.br0.nat = true;
  };
}

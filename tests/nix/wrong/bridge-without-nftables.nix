# bridges are kept apart by rules of nftables
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.address = "10.77.0.1/24";
  };
  networking.nftables.enable = false;
}

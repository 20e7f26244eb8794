# bridges.br0.addressV6 is fd77::/64: that is no address of a host
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.addressV6 = "fd77::/64";
  };
}

# overlap, so this host could not tell where to send
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.addressV6 = "fd77::1/48";
    bridges.br1.addressV6 = "fd77:0:0:5::1/64";
  };
}

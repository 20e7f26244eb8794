# bridges.br0 has neither address nor addressV6
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.br0.egress = "none";
  };
}

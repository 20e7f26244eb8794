# bridges."virtual-machines": a name begins with a letter and has at most ten letters
{
  services.microvm-orchestrator = {
    enable = true;
    bridges.virtual-machines.address = "10.77.0.1/24";
  };
}

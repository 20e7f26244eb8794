# clientGroup is wheel, which has a meaning of its own
{
  services.microvm-orchestrator = {
    enable = true;
    clientGroup = "wheel";
  };
}

# clientGroup is the group of the daemon itself (microvm)
{
  services.microvm-orchestrator = {
    enable = true;
    clientGroup = "microvm";
  };
}

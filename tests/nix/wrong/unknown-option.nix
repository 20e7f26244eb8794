# The option `services.microvm-orchestrator.slots.counts' does not exist
{
  services.microvm-orchestrator = {
    enable = true;
    slots.counts = 4;
  };
}

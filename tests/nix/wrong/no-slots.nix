# slots.count' is not of type `integer between 1 and 1000 (both inclusive)'
{
  services.microvm-orchestrator = {
    enable = true;
    slots.count = 0;
  };
}

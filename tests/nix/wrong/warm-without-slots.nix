# slots.warm.embedded is 3, and slots.count is 2
{
  services.microvm-orchestrator = {
    enable = true;
    slots.count = 2;
    slots.warm.embedded = 3;
  };
}

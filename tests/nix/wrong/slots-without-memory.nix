# slots.memory' is not of type `integer between 64 and 1048576
{
  services.microvm-orchestrator = {
    enable = true;
    slots.memory = 16;
  };
}

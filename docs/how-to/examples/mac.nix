# A Mac with the service, as `darwinConfigurations.mac` of the flake.
{
  services.microvm-orchestrator.enable = true;

  system.stateVersion = 6;
}

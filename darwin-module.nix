{ self }:
{ lib, ... }:
{
  options.services.microvm-orchestrator.enable = lib.mkEnableOption "the microVM orchestrator";
}

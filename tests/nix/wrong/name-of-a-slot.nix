# slots.runners."Web_1": a name begins with a small letter
{ pkgs, ... }:
{
  services.microvm-orchestrator = {
    enable = true;
    slots.runners.Web_1.runner = pkgs.hello;
  };
}

# slots.runners.web.runner is for vfkit, which macOS alone has
{ pkgs, ... }:
{
  services.microvm-orchestrator = {
    enable = true;
    slots.runners.web.runner = pkgs.hello // {
      hypervisor = "vfkit";
    };
  };
}

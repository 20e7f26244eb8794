# settings.pages.enabled and webUI.enable say two things
{
  services.microvm-orchestrator = {
    enable = true;
    settings.pages.enabled = false;
  };
}

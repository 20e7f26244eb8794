# runner' is not of type `package'
{
  services.microvm-orchestrator = {
    enable = true;
    slots.runners.web.runner = "/srv/web";
  };
}

# repos.site.merge' is not of type `null or one of "auto", "squash"
{
  services.microvm-orchestrator = {
    enable = true;
    repos.site.path = "/srv/site";
    repos.site.merge = "octopus";
  };
}

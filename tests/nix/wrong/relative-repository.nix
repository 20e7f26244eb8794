# is not of type `absolute path on this host, written as a string'
{
  services.microvm-orchestrator = {
    enable = true;
    repos.site.path = "site";
  };
}

# repos: site and web are both /srv/site. A repository has one alias
{
  services.microvm-orchestrator = {
    enable = true;
    repos.site.path = "/srv/site";
    repos.web.path = "/srv/site";
  };
}

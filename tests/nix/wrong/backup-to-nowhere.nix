# backup.directory is set, and nothing is copied there: set backup.enable = true
{
  services.microvm-orchestrator = {
    enable = true;
    backup.directory = "/srv/backup";
  };
}

# backup.keep' is not of type `positive integer
{
  services.microvm-orchestrator = {
    enable = true;
    backup.enable = true;
    backup.keep = 0;
  };
}

# services.microvm-orchestrator.user is root
{
  services.microvm-orchestrator = {
    enable = true;
    user = "root";
  };
}

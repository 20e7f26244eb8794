# services.microvm-orchestrator.user is ada, and users.users has nobody of that name
{
  services.microvm-orchestrator = {
    enable = true;
    user = "ada";
  };
}

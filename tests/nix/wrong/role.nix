# settings.access.gid_roles."100"' is not of type `one of
{
  services.microvm-orchestrator = {
    enable = true;
    settings.access.gid_roles."100" = "root";
  };
}

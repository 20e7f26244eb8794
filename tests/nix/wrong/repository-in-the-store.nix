# repos.site.path lies in the Nix store, where nothing can be merged into
{
  services.microvm-orchestrator = {
    enable = true;
    repos.site.path = "${builtins.toFile "site" ""}";
  };
}

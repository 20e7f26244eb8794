# the sshKey of mac.example.org lies in the Nix store
{
  services.microvm-orchestrator = {
    enable = true;
    buildMachines = [
      {
        hostName = "mac.example.org";
        systems = [ "aarch64-darwin" ];
        sshKey = "${builtins.toFile "id" "PRIVATE"}";
      }
    ];
  };
}

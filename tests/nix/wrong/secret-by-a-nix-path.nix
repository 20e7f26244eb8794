# is not of type `absolute path on this host, written as a string'
{
  services.microvm-orchestrator = {
    enable = true;
    credentials.anthropic-api-key = ./secret-by-a-nix-path.nix;
  };
}

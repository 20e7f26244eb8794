# credentials."anthropic-api-key" lies in the Nix store, where everybody may read it
{
  services.microvm-orchestrator = {
    enable = true;
    credentials.anthropic-api-key = "${builtins.toFile "key" "sk-ant-0123"}";
  };
}

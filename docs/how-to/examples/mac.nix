# A Mac with the service, as `darwinConfigurations.mac` of the flake.
{
  services.microvm-orchestrator = {
    enable = true;
    linuxBuilder.enable = true;
    shares = [ "/Users/me/src" ];
    credentials.anthropic-api-key = "/Users/me/.secrets/anthropic";
  };

  system.stateVersion = 6;
}

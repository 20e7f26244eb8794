# What is there to work with: the programs of agents, git, containers, Nix.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm-orchestrator.guest;
in
{
  options.microvm-orchestrator.guest = {
    packages = lib.mkOption {
      type = lib.types.listOf lib.types.package;
      default = [
        pkgs.claude-code
        pkgs.codex
        pkgs.opencode
      ];
      defaultText = lib.literalExpression "[ pkgs.claude-code pkgs.codex pkgs.opencode ]";
      description = "The programs of agents, and what else every task is to find.";
    };
    podman.enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      description = "Whether there are rootless containers, as `podman` and as `docker`.";
    };
  };

  config = {
    # Of what is asked for here only Claude Code is not free.
    nixpkgs.config.allowUnfreePredicate = package: lib.getName package == "claude-code";

    environment.systemPackages = [
      pkgs.git
      pkgs.gnutar
      pkgs.gzip
      pkgs.jq
      pkgs.curl
      pkgs.procps
      pkgs.util-linux
    ]
    ++ cfg.packages;

    environment.etc.gitconfig.text = ''
      [init]
      	defaultBranch = main
      [safe]
      	# Whoever works in a guest is alone in it.
      	directory = *
      [gc]
      	auto = 0
    '';

    virtualisation.podman = {
      inherit (cfg.podman) enable;
      dockerCompat = cfg.podman.enable;
    };

    nix.settings = {
      experimental-features = [
        "nix-command"
        "flakes"
      ];
      allowed-users = [
        "root"
        cfg.user
      ];
      trusted-users = [ "root" ];
      # Neither works with a store that lies above another one.
      auto-optimise-store = false;
    };
    nix.optimise.automatic = false;
    nix.gc.automatic = false;
  };
}

# The service on NixOS: `services.microvm-orchestrator.enable = true`. Each part below holds its
# options, what they render and what it refuses.
{ self }:
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.services.microvm-orchestrator;
in
{
  imports = [
    (lib.modules.importApply ./python/nix/module/server.nix { inherit self; })
    ./python/nix/module/sockets.nix
    ./python/nix/module/slots.nix
    ./python/nix/module/bridges.nix
    ./python/nix/module/networks.nix
    ./python/nix/module/repos.nix
    ./python/nix/module/upkeep.nix
    ./python/nix/module/builders.nix
  ];

  options.services.microvm-orchestrator = {
    enable = lib.mkEnableOption "the daemon that gives AI agents disposable machines";

    user = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "microvm";
      description = ''
        The user the daemon and its machines run as. microvm.nix gives the taps it makes to
        `microvm`. To let the daemon work on repositories in a home, name that home's user.
      '';
    };

    group = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "microvm";
      description = "The primary group of the daemon. What is its own, its members may not read.";
    };

    clientGroup = mkOption {
      type = types.strMatching "[a-z_][a-z0-9_-]{0,30}";
      default = "microvm-orchestrator";
      description = ''
        The group whose members are clients: they may open the socket. What they may do there is
        `settings.access.default_role`.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.user != "root";
        message = ''
          services.microvm-orchestrator.user is root: whoever broke out of a machine would be it.
          Leave it out, or name a user without rights.
        '';
      }
      {
        assertion = config.users.users ? ${cfg.user};
        message = ''
          services.microvm-orchestrator.user is ${cfg.user}, and users.users has nobody of that
          name.
        '';
      }
      {
        assertion = cfg.clientGroup != cfg.group && cfg.socket.group != cfg.group;
        message = ''
          services.microvm-orchestrator.clientGroup is the group of the daemon itself
          (${cfg.group}). Clients would share the rights of machines on files; name another group.
        '';
      }
      {
        assertion =
          !lib.elem cfg.clientGroup [
            "wheel"
            "kvm"
            "root"
            "nixbld"
            "libvirtd"
          ];
        message = ''
          services.microvm-orchestrator.clientGroup is ${cfg.clientGroup}, which has a meaning of
          its own. Name a group that is for clients only.
        '';
      }
    ];

    # Another user is somebody who is there already. The module of microvm.nix has a `microvm` too.
    users.users = lib.mkIf (cfg.user == "microvm") {
      microvm = {
        isSystemUser = true;
        group = lib.mkDefault cfg.group;
        description = lib.mkDefault "microVM orchestrator";
        home = lib.mkDefault "/var/lib/microvm-orchestrator";
      };
    };
    users.groups = lib.genAttrs [
      cfg.group
      cfg.clientGroup
    ] (_: { });
  };
}

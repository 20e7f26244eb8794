# Who works in the guest: a user without root, whom Nix does not trust.
{ config, lib, ... }:
let
  cfg = config.microvm-orchestrator.guest;
in
{
  options.microvm-orchestrator.guest.user = lib.mkOption {
    type = lib.types.strMatching "[a-z][a-z0-9-]{0,30}";
    default = "agent";
    description = ''
      The user whose commands and files are those for which the daemon names no user. The daemon
      can name `root`; what runs in the guest cannot become it.
    '';
  };

  config = {
    assertions = [
      {
        assertion = cfg.user != "root";
        message = "microvm-orchestrator.guest.user: what works in the guest must not be root.";
      }
      {
        assertion = !lib.elem "wheel" config.users.users.${cfg.user}.extraGroups;
        message = "microvm-orchestrator.guest.user: ${cfg.user} must not be in the group wheel.";
      }
      {
        assertion =
          !lib.any (name: lib.elem name config.nix.settings.trusted-users) [
            cfg.user
            "@${cfg.user}"
            "*"
          ];
        message = ''
          nix.settings.trusted-users names ${cfg.user}: whom Nix trusts is as good as root.
        '';
      }
    ];

    users.users.${cfg.user} = {
      isNormalUser = true;
      uid = 1000;
      group = cfg.user;
      home = "/workspace/home";
      createHome = true;
      # Rootless containers need both.
      autoSubUidGidRange = true;
      linger = true;
    };
    users.groups.${cfg.user}.gid = 1000;

    # `d` also corrects the owner of a volume that is new.
    systemd.tmpfiles.settings."10-microvm-orchestrator"."/workspace".d = {
      mode = "0755";
      inherit (cfg) user;
      group = cfg.user;
    };

    security.sudo.enable = false;
    services.getty.autologinUser = lib.mkDefault cfg.user;
  };
}

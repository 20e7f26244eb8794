# An SSH server without a network, for who takes the guest in by `image add --ssh-user`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm-orchestrator.guest.ssh;
  inherit (config.microvm-orchestrator.guest) user;
  ofQemu = config.microvm.hypervisor == "qemu";
  port = "dev-virtio\\x2dports-ssh.device";
in
{
  options.microvm-orchestrator.guest.ssh = {
    enable = lib.mkEnableOption "an SSH server at a virtio port of QEMU, else at port 22 of vsock";
    authorizedKeys = lib.mkOption {
      type = lib.types.listOf lib.types.str;
      default = [ ];
      example = [ "ssh-ed25519 AAAAC3Nz... microvm-orchestrator" ];
      description = "The keys that are let in; `image get` shows the daemon's.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.authorizedKeys != [ ];
        message = ''
          microvm-orchestrator.guest.ssh.authorizedKeys: nobody could log in. Add the line that
          `microvm-orchestrator image get` shows as ssh_authorized_key.
        '';
      }
    ];

    services.openssh = {
      enable = true;
      openFirewall = false;
      settings = {
        PasswordAuthentication = false;
        PermitRootLogin = "prohibit-password";
      };
    };
    users.users.${user}.openssh.authorizedKeys.keys = cfg.authorizedKeys;

    # Begins when there is such a port, ends with its connection, and is there again for the next.
    systemd.services.sshd-port = lib.mkIf ofQemu {
      description = "SSH server at a virtio port";
      wantedBy = [ port ];
      bindsTo = [ port ];
      wants = [ "sshd.service" ];
      after = [
        port
        "sshd.service"
      ];
      unitConfig.StartLimitIntervalSec = 0;
      serviceConfig = {
        ExecStart = pkgs.writeShellScript "sshd-port" ''
          exec ${pkgs.openssh}/bin/sshd -i <>/dev/virtio-ports/ssh >&0
        '';
        Restart = "always";
        RestartSec = 0;
      };
    };
    systemd.sockets.sshd-at-vsock = lib.mkIf (!ofQemu) {
      wantedBy = [ "sockets.target" ];
      listenStreams = [ "vsock::22" ];
      socketConfig.Accept = true;
    };
    systemd.services."sshd-at-vsock@" = lib.mkIf (!ofQemu) {
      description = "SSH server at a port of vsock";
      serviceConfig = {
        ExecStart = "-${pkgs.openssh}/bin/sshd -i";
        StandardInput = "socket";
      };
    };
  };
}

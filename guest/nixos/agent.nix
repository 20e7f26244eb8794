# The agent that answers the daemon, as guest/protocol.md says, and what every guest does beside it.
{ self }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm-orchestrator.guest;
  ofQemu = config.microvm.hypervisor == "qemu";
  # In the tree `wire.py` is a link to the daemon's own file, which lies outside of this folder.
  agent =
    pkgs.runCommand "microvm-agent"
      {
        nativeBuildInputs = [ pkgs.python3 ];
      }
      ''
        mkdir -p $out
        cp ${self}/guest/agent/*.py ${self}/guest/nixos/as_user.py $out/
        python3 -m compileall -q --invalidation-mode unchecked-hash -s $out $out
      '';
  # Run whenever the guest becomes somebody else: its SSH host keys came with whoever was saved.
  fresh = pkgs.writeShellScript "microvm-fresh" ''
    set -eu
    ${lib.optionalString config.services.openssh.enable ''
      rm -f /etc/ssh/ssh_host_*
      ${pkgs.openssh}/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
      ${config.systemd.package}/bin/systemctl try-restart --no-block sshd.service
    ''}
  '';
in
{
  options.microvm-orchestrator.guest.agent.port = lib.mkOption {
    type = lib.types.str;
    default = if ofQemu then "port:ctl" else "vsock:1024";
    defaultText = lib.literalExpression ''"port:ctl" with QEMU, else "vsock:1024"'';
    description = ''
      Where the agent waits for the daemon: `port:NAME` is a virtio port, `vsock:NUMBER` one of the
      guest's vsock. The daemon looks at the defaults.
    '';
  };

  config = {
    system.build.microvmAgent = agent;

    boot.kernelModules = [
      (if ofQemu then "virtio_console" else "vmw_vsock_virtio_transport")
    ];
    # The daemon gives addresses to `eth0` and so on, as any guest's kernel names them.
    boot.kernelParams = [ "net.ifnames=0" ];
    networking.useDHCP = lib.mkDefault false;
    networking.firewall.enable = lib.mkDefault false;

    systemd.services.microvm-agent = {
      description = "Agent of the microVM orchestrator";
      wantedBy = [ "multi-user.target" ];
      after = [ "systemd-tmpfiles-setup.service" ];
      unitConfig = {
        # It ends well when the host asks the guest to power off, and there is no other way in.
        SuccessAction = "poweroff";
        StartLimitIntervalSec = 0;
      };
      serviceConfig = {
        ExecStart = lib.concatStringsSep " " [
          "${pkgs.python3}/bin/python3 -I -S ${agent}/as_user.py"
          cfg.agent.port
          "user=${cfg.user}"
          "disk=/workspace"
          "hook=${fresh}"
        ];
        # 64: it was asked for a reboot. Every runner's hypervisor ends then.
        SuccessExitStatus = 64;
        Restart = "on-failure";
        RestartSec = 0;
        # A command that the kernel ends for its memory takes nobody along.
        OOMPolicy = "continue";
        OOMScoreAdjust = 0;
        TasksMax = "infinity";
        LimitNOFILE = 1048576;
      };
    };

    # What the daemon asks for by its path, and where it looks for what it asks for by name.
    systemd.tmpfiles.settings."10-microvm-orchestrator" = {
      "/bin/mkdir"."L+".argument = "${pkgs.coreutils}/bin/mkdir";
      "/bin/bash"."L+".argument = "${pkgs.bashInteractive}/bin/bash";
      "/usr/local/bin"."L+".argument = "/run/current-system/sw/bin";
      "/usr/local/sbin"."L+".argument = "/run/wrappers/bin";
      # A guest short of memory would drop and read its programs again for ever. What was used
      # within this time is kept, and the kernel ends a program when it cannot.
      "/sys/kernel/mm/lru_gen/enabled".w.argument = "y";
      "/sys/kernel/mm/lru_gen/min_ttl_ms".w.argument = "1000";
    };

    # A clone says who it is once it runs; until then nothing waits for a name or a clock.
    services.timesyncd.enable = lib.mkDefault false;
  };
}

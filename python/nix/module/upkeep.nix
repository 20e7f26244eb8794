# What is done by the clock: copies of the store, and figures for Prometheus.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) hostPath inStore maybe;
  cfg = config.services.microvm-orchestrator;
  option = "services.microvm-orchestrator";

  backups =
    if cfg.backup.directory == null then
      "/var/lib/microvm-orchestrator/backups"
    else
      cfg.backup.directory;
  tool = lib.getExe' pkgs.coreutils;

  # A daemon whose socket was stopped too is to stay down: no clock starts it.
  listened = [ "microvm-orchestrator.socket" ];

  sandbox = (import ./sandbox.nix).client // {
    Type = "oneshot";
    UMask = "0077";
  };
in
{
  options.services.microvm-orchestrator = {
    backup = {
      enable = lib.mkEnableOption "copies of the store by the clock";
      schedule = mkOption {
        type = types.str;
        default = "daily";
        description = "When, as a calendar event of systemd.";
      };
      directory = maybe hostPath ''
        Where the copies go, a folder that `user` may write; else `backups` in the state directory.
      '';
      keep = mkOption {
        type = types.ints.positive;
        default = 14;
        description = "How many are kept.";
      };
    };

    metrics = {
      enable = lib.mkEnableOption ''
        figures for Prometheus, written to a file for the textfile collector of its node exporter.
        `/metrics` of the daemon is served without it too, over the network to those with a token'';
      interval = mkOption {
        type = types.str;
        default = "1min";
        description = "How often they are written, as a time span of systemd.";
      };
      directory = mkOption {
        type = hostPath;
        default = "/var/lib/microvm-orchestrator-metrics";
        readOnly = true;
        description = ''
          Where `microvm-orchestrator.prom` is written. Say so to the exporter:
          `--collector.textfile.directory=`.
        '';
      };
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.backup.directory != null -> cfg.backup.enable;
        message = ''
          ${option}.backup.directory is set, and nothing is copied there: set backup.enable = true.
        '';
      }
      {
        assertion = cfg.backup.directory == null || !inStore cfg.backup.directory;
        message = ''
          ${option}.backup.directory lies in the Nix store, where nothing can be written.
        '';
      }
      {
        assertion = cfg.backup.schedule != "";
        message = ''
          ${option}.backup.schedule is empty: say when, as in "daily" or "*-*-* 03:00".
        '';
      }
    ];

    systemd.services.microvm-orchestrator-backup = lib.mkIf cfg.backup.enable {
      description = "Copy of the microVM orchestrator's store";
      requisite = listened;
      after = listened ++ [ "microvm-orchestrator.service" ];
      environment = {
        MICROVM_ORCHESTRATOR_SOCKET = cfg.socket.path;
        TZ = "UTC";
      };
      startAt = cfg.backup.schedule;
      # The daemon writes the copy; this ends the old ones.
      script = ''
        umask 077
        ${tool "mkdir"} -p ${lib.escapeShellArg backups}
        cd ${lib.escapeShellArg backups}
        printf -v now '%(%Y%m%dT%H%M%SZ)T' -1
        ${lib.getExe cfg.package} backup create "$PWD/store-$now.sqlite" >/dev/null
        ${tool "ls"} -1r store-*.sqlite | ${tool "tail"} -n +${toString (cfg.backup.keep + 1)} |
          while read -r old; do ${tool "rm"} -- "$old"; done
      '';
      serviceConfig = sandbox // {
        User = cfg.user;
        Group = cfg.group;
        ReadWritePaths = "-${
          if cfg.backup.directory == null then "/var/lib/microvm-orchestrator" else backups
        }";
      };
    };
    systemd.timers.microvm-orchestrator-backup = lib.mkIf cfg.backup.enable {
      timerConfig = {
        Persistent = true;
        RandomizedDelaySec = "10min";
      };
    };

    systemd.services.microvm-orchestrator-metrics = lib.mkIf cfg.metrics.enable {
      description = "Figures of the microVM orchestrator";
      requisite = listened;
      after = listened;
      # A reader sees the whole of a file or the one before.
      script = ''
        cd ${cfg.metrics.directory}
        ${lib.getExe pkgs.curl} --silent --show-error --fail --max-time 20 \
          --unix-socket ${lib.escapeShellArg cfg.socket.path} --output new http://localhost/metrics
        ${tool "chmod"} 0644 new
        ${tool "mv"} new microvm-orchestrator.prom
      '';
      serviceConfig = sandbox // {
        DynamicUser = true;
        SupplementaryGroups = cfg.socket.group;
        StateDirectory = "microvm-orchestrator-metrics";
        StateDirectoryMode = "0755";
      };
    };
    systemd.timers.microvm-orchestrator-metrics = lib.mkIf cfg.metrics.enable {
      wantedBy = [ "timers.target" ];
      timerConfig = {
        OnActiveSec = "10s";
        OnUnitActiveSec = cfg.metrics.interval;
      };
    };
  };
}

# The daemon: its unit, its settings, its credentials.
{ self }:
{
  config,
  lib,
  pkgs,
  utils,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) hostPath inStore;
  cfg = config.services.microvm-orchestrator;
  settings = import ./settings.nix { inherit lib; };

  kinds = [
    "anthropic-api-key"
    "anthropic-oauth"
    "openai-api-key"
    "secret"
  ];
  isCredential =
    name: lib.any (kind: name == kind || lib.hasPrefix "${kind}." name) kinds && name != "secret";
  credentialNames = lib.attrNames cfg.credentials;

  configFile = (pkgs.formats.toml { }).generate "microvm-orchestrator.toml" (
    settings.said cfg.settings
  );

  kernelNetworks = cfg.settings.networks.kind == "kernel";
  capabilities = lib.optional kernelNetworks "CAP_NET_ADMIN";

  repoPaths = lib.mapAttrsToList (_: repo: repo.path) cfg.repos;
  inHome =
    path:
    lib.any (home: lib.hasPrefix home path) [
      "/home/"
      "/root/"
      "/run/user/"
    ];
  homes = lib.filter inHome repoPaths;
  elsewhere =
    lib.filter (path: !inHome path) repoPaths
    ++ lib.optional (cfg.backup.directory != null) cfg.backup.directory;
in
{
  options.services.microvm-orchestrator = {
    package = mkOption {
      type = types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      defaultText = lib.literalExpression "the package of this flake";
      description = "The microvm-orchestrator to run.";
    };

    settings = mkOption {
      type = settings.type;
      default = { };
      example = lib.literalExpression ''
        {
          log.level = "debug";
          store.events.max_count = "none";
        }
      '';
      description = ''
        The daemon's own settings, as in its TOML file; `null` leaves one to the daemon. Each is
        told in the [reference of the settings](config.md). The module sets `state_dir`, `socket`,
        `tcp.listen` and what follows from `slots`.
      '';
    };

    credentials = mkOption {
      type = types.attrsOf hostPath;
      default = { };
      example = {
        anthropic-api-key = "/run/secrets/anthropic";
        "secret.github" = "/run/secrets/github-token";
      };
      description = ''
        Files of keys that are handed to the daemon by `LoadCredential=`, and that no guest sees. A
        name is a kind (${lib.concatMapStringsSep ", " (kind: "`${kind}`") (lib.init kinds)}) or a
        kind with a name behind a dot, as in `secret.github`. A file in the store is refused:
        everybody may read that.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      lib.mapAttrsToList (name: path: {
        assertion = !inStore path;
        message = ''
          services.microvm-orchestrator.credentials."${name}" lies in the Nix store, where everybody
          may read it. Name a file outside of it, as sops-nix or agenix make one.
        '';
      }) cfg.credentials
      ++ map (name: {
        assertion = isCredential name;
        message = ''
          services.microvm-orchestrator.credentials."${name}": a name is
          ${lib.concatStringsSep ", " (lib.init kinds)} or one of these and secret with a name
          behind a dot, as in secret.github.
        '';
      }) credentialNames
      ++ [
        {
          assertion = cfg.settings.networks.netns == null;
          message = ''
            services.microvm-orchestrator.settings.networks.netns needs CAP_SYS_ADMIN, which this
            unit never has. Use
            systemd.services.microvm-orchestrator.serviceConfig.NetworkNamespacePath.
          '';
        }
        {
          assertion = cfg.settings.machines.user == null;
          message = ''
            services.microvm-orchestrator.settings.machines.user is for a daemon that is root. Here
            machines run as services.microvm-orchestrator.user.
          '';
        }
      ];

    services.microvm-orchestrator.settings = {
      state_dir = "/var/lib/microvm-orchestrator";
      networks.kind = lib.mkDefault "userspace";
      log.format = lib.mkDefault "json";
    };

    environment.systemPackages = [ cfg.package ];
    # Where the command line looks; `config show` then says what the daemon reads.
    environment.etc."microvm-orchestrator/config.toml".source = configFile;

    systemd.services.microvm-orchestrator = {
      description = "Disposable machines for AI agents";
      wantedBy = [ "multi-user.target" ];
      requires = [ "microvm-orchestrator.socket" ];
      after = [
        "network.target"
        "microvm-orchestrator.socket"
      ];
      # `nix build` takes runners in; the daemon asks the Nix daemon for it, as any user would.
      path = lib.optional config.nix.enable config.nix.package;
      # A home may be out of its reach.
      environment.XDG_CACHE_HOME = "/var/lib/microvm-orchestrator/cache";
      # In one go, so that clients wait at the socket for a moment only. Machines run on.
      stopIfChanged = false;
      serviceConfig = (import ./sandbox.nix).hypervisor // {
        Type = "notify";
        ExecStart = utils.escapeSystemdExecArgs [
          (lib.getExe cfg.package)
          "serve"
          "--config"
          configFile
        ];
        Restart = "on-failure";
        # Settings that can never work: trying again is of no use.
        RestartPreventExitStatus = 78;
        WatchdogSec = 60;
        TimeoutStopSec = 30;
        # Machines outlive the daemon, each in a control group with limits below this unit's.
        KillMode = "process";
        Delegate = "memory cpu pids";
        # Where a group has limits below it, no process may be started in itself.
        DelegateSubgroup = "daemon";
        LimitNOFILE = 65536;

        User = cfg.user;
        Group = cfg.group;
        SupplementaryGroups = [ "kvm" ] ++ lib.optional cfg.libvirt.enable "libvirtd";
        StateDirectory = "microvm-orchestrator";
        StateDirectoryMode = "0700";
        LoadCredential = lib.mapAttrsToList (name: path: "${name}:${path}") cfg.credentials;

        AmbientCapabilities = capabilities;
        CapabilityBoundingSet = if capabilities == [ ] then "" else capabilities;
        # A home is empty but for the repositories in it that were named.
        ProtectHome = if homes == [ ] then true else "tmpfs";
        BindPaths = map (path: "-${path}") homes;
        ReadWritePaths = map (path: "-${path}") elsewhere;
        DevicePolicy = "closed";
        DeviceAllow = [
          "/dev/kvm rw"
        ]
        ++ lib.optionals (kernelNetworks || cfg.slots.runners != { }) [
          "/dev/net/tun rw"
          "/dev/vhost-net rw"
          "/dev/vhost-vsock rw"
        ];
        # Not ProtectControlGroups: the limits of machines are files there, and they are ours.
        RemoveIPC = true;
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
          "AF_NETLINK"
        ];
        # Not MemoryDenyWriteExecute: QEMU writes code where there is no KVM.
      };
    };
  };
}

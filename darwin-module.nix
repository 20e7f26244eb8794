# The orchestrator on a Mac. The daemon needs Linux, so launchd keeps one machine of vfkit's up, a
# NixOS with the service in it; its socket, repositories and credentials are the Mac's.
{ self }:
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  cfg = config.services.microvm-orchestrator;
  name = "microvm-orchestrator";
  toml = pkgs.formats.toml { };
  guestSystem = lib.replaceStrings [ "darwin" ] [ "linux" ] pkgs.stdenv.hostPlatform.system;
  # Of vsock; it leads to where the daemon listens inside.
  port = 1024;
  handedOver = "${cfg.stateDir}/credentials";
  inStore = path: lib.hasPrefix builtins.storeDir (toString path);
  within = folder: path: path == folder || lib.hasPrefix "${folder}/" path;
  folder = types.strMatching "/[A-Za-z0-9._/ -]*[A-Za-z0-9._-]";

  shareOf = path: {
    proto = "virtiofs";
    tag = "mac-${builtins.substring 0 12 (builtins.hashString "sha256" path)}";
    source = path;
    mountPoint = path;
  };

  machine =
    {
      config,
      lib,
      pkgs,
      ...
    }:
    let
      inside = config.services.microvm-orchestrator.socket;
    in
    {
      networking.hostName = name;
      # The address is vfkit's to give.
      networking.useDHCP = lib.mkDefault true;
      system.stateVersion = lib.mkDefault "26.05";

      microvm = {
        hypervisor = "vfkit";
        vmHostPackages = cfg.hostPackages;
        vcpu = cfg.vcpus;
        mem = cfg.memory;
        socket = "vfkit.sock";
        interfaces = [
          {
            type = "user";
            id = "nat";
            mac = "02:6d:76:6f:00:01";
          }
        ];
        volumes = [
          {
            image = "${cfg.stateDir}/state.img";
            label = "state";
            mountPoint = "/var/lib/${name}";
            size = cfg.disk;
          }
        ];
        shares =
          map shareOf cfg.shares
          ++ lib.optional (cfg.credentials != { }) {
            proto = "virtiofs";
            tag = "credentials";
            source = handedOver;
            mountPoint = "/run/credentials-of-the-mac";
            readOnly = true;
          };
        vfkit.extraArgs = [
          "--device"
          "virtio-vsock,port=${toString port},socketURL=${cfg.socket.path},connect"
        ]
        ++ lib.optional cfg.nested "--nested";
      };

      services.microvm-orchestrator = {
        enable = true;
        inherit (cfg) settings;
        credentials = lib.mapAttrs (file: _: "/run/credentials-of-the-mac/${file}") cfg.credentials;
      };

      # Who may open the socket on the Mac is decided there.
      systemd.sockets."${name}-vsock" = {
        description = "The orchestrator's socket, for the Mac";
        wantedBy = [ "sockets.target" ];
        listenStreams = [ "vsock::${toString port}" ];
      };
      systemd.services."${name}-vsock" = {
        description = "The orchestrator's socket, for the Mac";
        requires = [ "${name}-vsock.socket" ];
        after = [ "${name}-vsock.socket" ];
        serviceConfig = {
          ExecStart = "${pkgs.systemd}/lib/systemd/systemd-socket-proxyd ${inside.path}";
          DynamicUser = true;
          SupplementaryGroups = [ inside.group ];
          PrivateTmp = true;
          PrivateNetwork = true;
        };
      };
    };
in
{
  options.services.microvm-orchestrator = {
    enable = lib.mkEnableOption ''
      the microVM orchestrator. On a Mac it runs in a Linux machine of its own, which vfkit starts
    '';
    package = mkOption {
      type = types.package;
      default = self.packages.${pkgs.stdenv.hostPlatform.system}.default;
      defaultText = lib.literalExpression "microvm-orchestrator.packages.\${system}.default";
      description = "The package whose command line and MCP bridge are installed on the Mac.";
    };
    hostPackages = mkOption {
      type = types.pkgs;
      default = pkgs;
      defaultText = lib.literalExpression "pkgs";
      internal = true;
      description = "The packages that run on the Mac, vfkit among them.";
    };
    nixos = mkOption {
      type = types.raw;
      default = self.inputs.nixpkgs.lib.nixosSystem {
        system = guestSystem;
        modules = [
          self.inputs.microvm.nixosModules.microvm
          self.nixosModules.default
          machine
          cfg.machine
        ];
      };
      internal = true;
      readOnly = true;
      description = "The NixOS in the machine.";
    };
    runner = mkOption {
      type = types.package;
      default = cfg.nixos.config.microvm.declaredRunner;
      defaultText = lib.literalMD "the machine with the service in it, built for vfkit";
      description = "The runner directory that launchd starts.";
    };
    machine = mkOption {
      type = types.deferredModule;
      default = { };
      example = lib.literalExpression "{ services.microvm-orchestrator.slots.count = 2; }";
      description = ''
        What else the NixOS in the machine is to be; all options of the NixOS module are there.
      '';
    };
    vcpus = mkOption {
      type = types.ints.between 1 64;
      default = 4;
      description = "The processors of the machine.";
    };
    memory = mkOption {
      type = types.ints.between 1024 1048576;
      default = 8192;
      description = "The memory of the machine, in MiB; what runs in it has its memory from there.";
    };
    disk = mkOption {
      type = types.ints.between 1024 4194304;
      default = 65536;
      description = ''
        The size of the disk that holds the state, in MiB; it takes of the Mac what is written to
        it.
      '';
    };
    nested = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether the machine gets the processor's help to run machines itself. That takes an M3 or
        newer and macOS 15.
      '';
    };
    shares = mkOption {
      type = types.listOf folder;
      default = [ ];
      example = [ "/Users/me/src" ];
      description = ''
        Folders of the Mac that the machine has under the same paths, so that repositories in them
        can be registered.
      '';
    };
    settings = mkOption {
      inherit (toml) type;
      default = { };
      example = {
        runs.count = 2;
      };
      description = "The settings of the daemon; the reference lists them.";
    };
    credentials = mkOption {
      type = types.attrsOf types.path;
      default = { };
      example = {
        anthropic-api-key = "/Users/me/.secrets/anthropic";
      };
      description = ''
        Files on the Mac with secrets, by the names that the daemon knows them by. They are read
        when the machine starts and never come into the store.
      '';
    };
    socket = {
      path = mkOption {
        type = types.strMatching "/.*[^/]";
        default = "/var/run/${name}/socket";
        description = "Where the command line and the MCP bridge find the daemon.";
      };
      group = mkOption {
        type = types.strMatching "[A-Za-z0-9_-]+";
        default = "staff";
        description = "The group that may use the socket, and so everything that the daemon can.";
      };
    };
    stateDir = mkOption {
      type = folder;
      default = "/var/lib/${name}";
      description = "Where the disk of the machine lies, readable by root only.";
    };
    logDir = mkOption {
      type = folder;
      default = "/var/log/${name}";
      description = "Where `console.log` and `vfkit.log` are written.";
    };
    linuxBuilder.enable = mkOption {
      type = types.bool;
      default = false;
      description = ''
        Whether to run nix-darwin's Linux builder, which the machine is built by. Without it another
        builder for Linux has to be in `nix.buildMachines`.
      '';
    };
    buildMachines = mkOption {
      type = types.listOf (types.attrsOf types.anything);
      default = [ ];
      example = [
        {
          hostName = "builder.example.com";
          systems = [ "x86_64-linux" ];
          sshUser = "builder";
          sshKey = "/etc/nix/builder_key";
        }
      ];
      description = ''
        Further machines that Nix builds by, as in `nix.buildMachines`: for the guests of systems
        that neither the Mac nor the Linux builder is.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = pkgs.stdenv.hostPlatform.isAarch64;
        message = "services.${name}: vfkit machines need a Mac with an Apple processor.";
      }
      {
        assertion = !lib.any inStore (lib.attrValues cfg.credentials);
        message = ''
          services.${name}.credentials: a secret must not lie in the Nix store, where everybody can
          read it. Write the path as a string: "/Users/me/key", not ./key.
        '';
      }
      {
        assertion = lib.all (file: builtins.match "[A-Za-z0-9._-]+" file != null) (
          lib.attrNames cfg.credentials
        );
        message = "services.${name}.credentials: names are made of letters, digits and . _ -";
      }
      {
        # What a unix socket's address holds on a Mac.
        assertion = lib.stringLength cfg.socket.path <= 103;
        message = "services.${name}.socket.path: a path of a socket has at most 103 characters.";
      }
      {
        assertion = !within "/tmp" cfg.stateDir && !within "/private/tmp" cfg.stateDir;
        message = "services.${name}.stateDir: macOS empties /tmp; the state would be lost.";
      }
      {
        assertion = !within cfg.stateDir (dirOf cfg.socket.path);
        message = ''
          services.${name}.socket.path: only root gets into the folder of the state, so nobody could
          use a socket there.
        '';
      }
      {
        assertion =
          !lib.any (
            path: within "/nix" path || within cfg.stateDir path || within path cfg.stateDir
          ) cfg.shares;
        message = ''
          services.${name}.shares: the machine must not have the folder of its own state, nor the
          Mac's store; share the folders of your repositories.
        '';
      }
      {
        assertion = lib.unique cfg.shares == cfg.shares;
        message = "services.${name}.shares: a folder is named twice.";
      }
      {
        assertion = cfg.linuxBuilder.enable -> config.nix.enable;
        message = ''
          services.${name}.linuxBuilder.enable: nix-darwin sets up a builder only where it looks
          after Nix (nix.enable); Determinate Nix has a builder of its own.
        '';
      }
      {
        assertion =
          cfg.linuxBuilder.enable
          || !config.nix.enable
          || lib.any (
            each: each.system or null == guestSystem || lib.elem guestSystem (each.systems or [ ])
          ) config.nix.buildMachines;
        message = ''
          services.${name}: nothing here builds for ${guestSystem}, which the machine is made of.
          Set services.${name}.linuxBuilder.enable, or name a builder in nix.buildMachines.
        '';
      }
    ];

    environment.systemPackages = [ cfg.package ];
    # The command line looks at /run/${name}/socket by itself, which is this by nix-darwin's link.
    environment.variables = lib.mkIf (cfg.socket.path != "/var/run/${name}/socket") {
      MICROVM_ORCHESTRATOR_SOCKET = cfg.socket.path;
    };

    nix = lib.mkIf config.nix.enable {
      linux-builder.enable = lib.mkIf cfg.linuxBuilder.enable true;
      distributedBuilds = lib.mkIf (cfg.buildMachines != [ ]) true;
      inherit (cfg) buildMachines;
    };

    launchd.daemons.microvm-orchestrator = {
      script = ''
        set -eu
        /usr/bin/install -d -m 0700 ${
          lib.escapeShellArgs [
            cfg.stateDir
            handedOver
          ]
        }
        # What is made in a folder has its group on a Mac, and the socket is made in this one.
        /usr/bin/install -d -m 0750 -g ${lib.escapeShellArg cfg.socket.group} \
          ${lib.escapeShellArg (dirOf cfg.socket.path)}
        /bin/rm -rf ${lib.escapeShellArg handedOver}/*
        ${lib.concatStrings (
          lib.mapAttrsToList (file: path: ''
            /usr/bin/install -m 0400 ${lib.escapeShellArg (toString path)} \
              ${lib.escapeShellArg "${handedOver}/${file}"}
          '') cfg.credentials
        )}
        /bin/rm -f ${lib.escapeShellArg cfg.socket.path}
        cd ${lib.escapeShellArg cfg.stateDir}
        umask 007
        # launchd asks by a signal; vfkit asks the machine to power off when it is told so by HTTP.
        stop() {
          /usr/bin/curl -s --unix-socket vfkit.sock -H 'Content-Type: application/json' \
            -d '{"state": "Stop"}' http://vfkit/vm/state || kill "$vm"
        }
        trap stop TERM INT
        ${cfg.runner}/bin/microvm-run </dev/null &
        vm=$!
        # The first wait ends with the signal, the second with the machine.
        wait "$vm" || wait "$vm"
      '';
      serviceConfig = {
        RunAtLoad = true;
        KeepAlive = true;
        # Between the polite request and SIGKILL.
        ExitTimeOut = 120;
        ThrottleInterval = 10;
        ProcessType = "Interactive";
        StandardOutPath = "${cfg.logDir}/console.log";
        StandardErrorPath = "${cfg.logDir}/vfkit.log";
      };
    };

    # launchd opens the logs before the script runs.
    system.activationScripts.preActivation.text = ''
      /usr/bin/install -d -m 0750 -g admin ${lib.escapeShellArg cfg.logDir}
    '';
  };
}

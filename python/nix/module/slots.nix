# Places for machines: how many and how large; and slots with a guest of microvm.nix of their own,
# which systemd starts at boot, each as an instance of `microvm-slot@.service`.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) inStore slotName;
  cfg = config.services.microvm-orchestrator;
  inherit (cfg) slots;
  option = "services.microvm-orchestrator";
  folder = "/var/lib/microvm-slots";
  # Root starts a program of the runner's, to make taps. So its place is none that a guest, or who
  # broke out of one, could put something else into.
  declared = "/etc/microvm-slots";
  taps = "/run/microvm-slot-taps";
  tool = lib.getExe' pkgs.coreutils;

  runners = lib.attrNames slots.runners;
  started = lib.filter (name: slots.runners.${name}.autostart) runners;
  badNames = lib.filter (name: builtins.match slotName name == null) runners;
  tooMuch = lib.filterAttrs (_: wanted: wanted > slots.count) slots.warm;

  # As the daemon reckons for machines of its own: QEMU, its tables, translated code.
  roomMib = slots.memory + 256 + slots.memory / 8;

  sandbox = (import ./sandbox.nix).hypervisor // {
    ProtectHome = true;
    ProtectControlGroups = true;
  };

  # What the runner was when it was started, also after a switch: its way to stop, and what the
  # garbage collector must leave it.
  remember = pkgs.writeShellScript "microvm-slot-remember" ''
    set -eu
    ${tool "ln"} -sfT "$(${tool "readlink"} -f "$1")" booted
  '';
  # microvm-shutdown asks the guest to power off and may return at once; systemd kills what is left
  # when this returns, or has taken too long.
  stop = pkgs.writeShellScript "microvm-slot-stop" ''
    [ -n "''${MAINPID-}" ] || exit 0
    [ ! -x booted/bin/microvm-shutdown ] || booted/bin/microvm-shutdown || true
    exec ${tool "tail"} --pid="$MAINPID" -f /dev/null
  '';
in
{
  options.services.microvm-orchestrator.slots = {
    count = mkOption {
      type = types.ints.between 1 1000;
      default = 16;
      description = "How many machines may run at once.";
    };
    memory = mkOption {
      type = types.ints.between 64 1048576;
      default = 512;
      description = "The memory of a slot, in MiB: what a machine has when nothing is said.";
    };
    vcpus = mkOption {
      type = types.ints.between 1 512;
      default = 4;
      description = ''
        The processors of a slot. Slots share: a machine may have more where others have fewer; all
        that run have at most `count` times this many.
      '';
    };
    disk = mkOption {
      type = types.ints.between 16 16777216;
      default = 4096;
      description = "The size of a new cache disk, in MiB. It takes what is written to it.";
    };
    image = mkOption {
      type = types.strMatching "[A-Za-z0-9][A-Za-z0-9._:-]{0,127}";
      default = "embedded";
      description = ''
        What a machine boots when nothing is said: `embedded`, or the name of an image that was
        taken in.
      '';
    };
    warm = mkOption {
      type = types.attrsOf types.ints.positive;
      default = { };
      example = {
        embedded = 2;
      };
      description = "How many machines of an image stand ready to be claimed, by its name.";
    };
    runners = mkOption {
      type = types.attrsOf (
        types.submodule {
          options = {
            runner = mkOption {
              type = types.package;
              description = ''
                A runner of microvm.nix: `config.microvm.declaredRunner` of a guest, as
                `lib.mkGuest` makes one.
              '';
            };
            autostart = mkOption {
              type = types.bool;
              default = true;
              description = "Whether it starts with this host.";
            };
          };
        }
      );
      default = { };
      description = ''
        Guests that systemd runs beside the daemon, as `microvm-slot@NAME.service`, each in a
        sandbox of its own: it has no capability and sees no file of the daemon. The daemon does not
        drive them, and they take no slot of its.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions =
      map (name: {
        assertion = false;
        message = ''
          ${option}.slots.runners."${name}": a name begins with a small letter and has small
          letters, digits and dashes, at most 31 of them.
        '';
      }) badNames
      ++ lib.mapAttrsToList (image: wanted: {
        assertion = false;
        message = ''
          ${option}.slots.warm.${image} is ${toString wanted}, and slots.count is
          ${toString slots.count}: that many could never be claimed.
        '';
      }) tooMuch
      ++ lib.concatMap (
        name:
        let
          inherit (slots.runners.${name}) runner;
        in
        [
          {
            assertion = inStore runner;
            message = "${option}.slots.runners.${name}.runner is no package.";
          }
          {
            assertion = !(runner ? hypervisor) || runner.hypervisor != "vfkit";
            message = ''
              ${option}.slots.runners.${name}.runner is for vfkit, which macOS alone has. Set
              microvm.hypervisor of the guest to qemu, cloud-hypervisor or firecracker.
            '';
          }
        ]
      ) runners;

    services.microvm-orchestrator.settings.machines = {
      count = slots.count;
      vcpus = slots.count * slots.vcpus;
      default_memory_mib = slots.memory;
      default_image = slots.image;
      cache_mib = slots.disk;
      warm = slots.warm;
    };

    systemd.slices.microvm-slots = lib.mkIf (runners != [ ]) {
      description = "Slots with guests of their own";
      sliceConfig = {
        MemoryMax = "${toString (lib.length runners * roomMib)}M";
        CPUQuota = "${toString (lib.length runners * (slots.vcpus + 1) * 100)}%";
        TasksMax = 4096;
      };
    };

    systemd.targets.multi-user.wants = map (name: "microvm-slot@${name}.service") started;

    systemd.services."microvm-slot-taps@" = lib.mkIf (runners != [ ]) {
      description = "Taps of the microVM in slot %i";
      before = [ "microvm-slot@%i.service" ];
      partOf = [ "microvm-slot@%i.service" ];
      after = [ "network.target" ];
      restartIfChanged = false;
      unitConfig.ConditionPathExists = "${declared}/%i/bin/tap-up";
      serviceConfig = sandbox // {
        Type = "oneshot";
        RemainAfterExit = true;
        RuntimeDirectory = "microvm-slot-taps/%i";
        WorkingDirectory = "${taps}/%i";
        ExecStartPre = "${remember} ${declared}/%i";
        ExecStart = "${taps}/%i/booted/bin/tap-up";
        ExecStop = "-${taps}/%i/booted/bin/tap-down";
        CapabilityBoundingSet = "CAP_NET_ADMIN";
        DevicePolicy = "closed";
        DeviceAllow = [ "/dev/net/tun rw" ];
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_NETLINK"
        ];
      };
    };

    systemd.services."microvm-slot@" = lib.mkIf (runners != [ ]) {
      description = "MicroVM in slot %i";
      requires = [ "microvm-slot-taps@%i.service" ];
      after = [
        "network.target"
        "microvm-slot-taps@%i.service"
      ];
      # A switch leaves it running; it is what was declared anew when it is started the next time.
      restartIfChanged = false;
      unitConfig.ConditionPathExists = "${declared}/%i/bin/microvm-run";
      serviceConfig = sandbox // {
        Slice = "microvm-slots.slice";
        ExecStartPre = "${remember} ${declared}/%i";
        ExecStart = "${declared}/%i/bin/microvm-run";
        ExecStop = "${stop}";
        WorkingDirectory = "${folder}/%i";
        # A guest that reboots ends its hypervisor.
        Restart = "always";
        RestartSec = 5;
        KillMode = "mixed";
        TimeoutStopSec = 60;
        User = cfg.user;
        Group = "kvm";
        MemoryMax = "${toString roomMib}M";
        CPUQuota = "${toString ((slots.vcpus + 1) * 100)}%";
        TasksMax = 256;
        LimitMEMLOCK = "infinity";
        LimitNOFILE = 65536;
        CapabilityBoundingSet = "";
        # Other slots run as the same user, and what they see could else be seen by /proc.
        PrivateUsers = true;
        # Of what services keep, it sees its own folder.
        TemporaryFileSystem = "/var/lib:ro";
        BindPaths = "${folder}/%i";
        # Whoever is the daemon's user is its administrator at the socket.
        InaccessiblePaths = [
          "-/run/credentials"
          "-${if dirOf cfg.socket.path == "/run" then cfg.socket.path else dirOf cfg.socket.path}"
        ];
        DevicePolicy = "closed";
        DeviceAllow = [
          "/dev/kvm rw"
          "/dev/net/tun rw"
          "/dev/vhost-net rw"
          "/dev/vhost-vsock rw"
        ];
        RestrictAddressFamilies = [
          "AF_UNIX"
          "AF_INET"
          "AF_INET6"
        ];
      };
    };

    boot.kernelModules = lib.optionals (runners != [ ]) [
      "tun"
      "vhost_net"
      "vhost_vsock"
    ];

    environment.etc = lib.mapAttrs' (
      name: slot: lib.nameValuePair "microvm-slots/${name}" { source = slot.runner; }
    ) slots.runners;

    systemd.tmpfiles.rules =
      lib.optional (runners != [ ]) "d ${folder} 0755 root root -"
      ++ lib.concatMap (name: [
        "d ${folder}/${name} 0700 ${cfg.user} kvm -"
        "L+ /nix/var/nix/gcroots/microvm-slot-${name} - - - - ${folder}/${name}/booted"
      ]) runners;

    security.polkit = lib.mkIf (runners != [ ]) {
      enable = lib.mkDefault true;
      extraConfig = ''
        // The daemon's user may start and stop slots, and nothing else of systemd.
        polkit.addRule(function (action, subject) {
          if (
            action.id == "org.freedesktop.systemd1.manage-units" &&
            subject.user == "${cfg.user}" &&
            /^microvm-slot@${slotName}\.service$/.test(action.lookup("unit")) &&
            ["start", "stop", "restart"].indexOf(action.lookup("verb")) >= 0
          ) {
            return polkit.Result.YES;
          }
        });
      '';
    };
  };
}

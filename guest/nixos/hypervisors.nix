# How the daemon, or who looks after the machine without it, gets at the guest from outside.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.microvm-orchestrator.guest;
  inherit (config.microvm) hypervisor;
  reached = [
    "qemu"
    "cloud-hypervisor"
    "firecracker"
    "vfkit"
  ];
in
{
  options.microvm-orchestrator.guest = {
    emulated = lib.mkEnableOption ''
      running without KVM: QEMU emulates a processor and a PC. A guest without this is emulated too
      where the daemon finds no KVM that works, but at the machine `microvm`, whose clock may drift
    '';
    vfkit.socket = lib.mkOption {
      type = lib.types.strMatching "/.{1,102}";
      default = "/var/run/microvm-orchestrator/${config.networking.hostName}.sock";
      defaultText = lib.literalExpression ''"/var/run/microvm-orchestrator/''${config.networking.hostName}.sock"'';
      description = ''
        The socket on the Mac that leads to the agent. vfkit makes one for each port, and wants its
        whole path.
      '';
    };
  };

  config = lib.mkMerge [
    {
      assertions = [
        {
          assertion = lib.elem hypervisor reached;
          message = ''
            microvm.hypervisor: the agent cannot be reached with ${hypervisor}; use one of
            ${lib.concatStringsSep ", " reached}.
          '';
        }
        {
          assertion = cfg.emulated -> hypervisor == "qemu";
          message = ''
            microvm-orchestrator.guest.emulated: only QEMU emulates, and ${hypervisor} is asked for.
          '';
        }
        {
          assertion = lib.all (interface: interface.type != "macvtap") config.microvm.interfaces;
          message = ''
            microvm.interfaces: the daemon opens no macvtap interfaces; use the types "user" and
            "tap", or links of the daemon's own.
          '';
        }
      ];
    }

    (lib.mkIf (hypervisor == "qemu") {
      # The daemon's own monitor, the port of the agent and the links of a machine: all of them are
      # open sockets, which are known when the machine starts and not before.
      microvm.extraArgsScript = "${pkgs.writeShellScript "runtime-args" ''
        printf %s "''${MICROVM_ORCHESTRATOR_ARGS-}"
      ''}";
      # Not 2048: with exactly that much QEMU hangs.
      microvm.mem = lib.mkDefault 2560;
      microvm.vcpu = lib.mkDefault 2;
    })

    (lib.mkIf cfg.emulated {
      microvm.cpu = "max";
      # The clock of the machine `microvm` needs hardware to be measured against.
      microvm.qemu.machine = "q35";
      microvm.qemu.machineOpts = {
        accel = "tcg";
        acpi = "on";
        mem-merge = "on";
      };
    })

    (lib.mkIf (hypervisor == "cloud-hypervisor" || hypervisor == "firecracker") {
      # A unix socket on the host, so all guests may have the same number.
      microvm.vsock.cid = lib.mkDefault 4000;
    })

    (lib.mkIf (hypervisor == "vfkit") {
      microvm.vfkit.extraArgs = [
        "--device"
        "virtio-vsock,port=1024,socketURL=${cfg.vfkit.socket},connect"
      ];
    })
  ];
}

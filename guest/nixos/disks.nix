# What a machine keeps for itself: an upper layer of the store, and where its tasks work.
{ config, lib, ... }:
let
  cfg = config.microvm-orchestrator.guest;
  overlay = "/nix/.rw-store";
  size =
    default: what:
    lib.mkOption {
      type = lib.types.nullOr (lib.types.ints.between 64 4194304);
      inherit default;
      description = ''
        The size of the disk for ${what}, in MiB; it takes of the host what is written to it. With
        `null` there is none, and what is written lies in the guest's memory.
      '';
    };
in
{
  options.microvm-orchestrator.guest = {
    hostStore = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether the guest reads the host's store, by 9p and read-only, instead of a disk with what
        it needs. Nothing is built for it then, and every path of the host's store can be read in
        it. Only with QEMU.
      '';
    };
    storeDisk.size = size 4096 "what Nix builds in the guest";
    workspace.size = size 8192 "`/workspace`";
  };

  config = {
    assertions = [
      {
        assertion = cfg.hostStore -> config.microvm.hypervisor == "qemu";
        message = ''
          microvm-orchestrator.guest.hostStore: only QEMU shares a folder without a server of its
          own, and ${config.microvm.hypervisor} is asked for.
        '';
      }
      {
        assertion =
          config.microvm.hypervisor == "vfkit"
          || lib.all (share: share.proto != "virtiofs") config.microvm.shares;
        message = ''
          microvm.shares: the daemon starts no virtiofsd, so shares by virtiofs are not served.
        '';
      }
    ];

    microvm.shares = lib.mkIf cfg.hostStore [
      {
        proto = "9p";
        tag = "ro-store";
        source = "/nix/store";
        mountPoint = "/nix/.ro-store";
        readOnly = true;
      }
    ];

    # Names without a folder: each machine has its own, in its folder, until it is deleted.
    microvm.volumes =
      lib.optional (cfg.storeDisk.size != null) {
        image = "store.img";
        label = "rw-store";
        mountPoint = overlay;
        inherit (cfg.storeDisk) size;
      }
      ++ lib.optional (cfg.workspace.size != null) {
        image = "workspace.img";
        label = "workspace";
        mountPoint = "/workspace";
        inherit (cfg.workspace) size;
      };
    microvm.writableStoreOverlay = lib.mkIf (cfg.storeDisk.size != null) overlay;
    # The user's home is made before the other disks are there.
    fileSystems = lib.mkIf (cfg.workspace.size != null) { "/workspace".neededForBoot = true; };
  };
}

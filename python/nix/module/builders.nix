# Other parts of this host that the service works with: Nix builders for foreign systems, libvirt.
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
  own = pkgs.stdenv.hostPlatform.system;
in
{
  options.services.microvm-orchestrator = {
    libvirt.enable = lib.mkEnableOption ''
      libvirt on this host, and the daemon's access to it. `doctor` tells whether it is found; the
      daemon's own machines need none'';

    linuxBuilder = {
      enable = lib.mkEnableOption ''
        building guests for other Linux systems on this host, by emulation of their processors. It
        is slow; a machine of `buildMachines` that has such a processor is not'';
      systems = mkOption {
        type = types.listOf (types.strMatching "[a-z0-9_]+-linux");
        default = lib.remove own [
          "aarch64-linux"
          "x86_64-linux"
        ];
        defaultText = lib.literalExpression "of aarch64-linux and x86_64-linux the other one";
        description = "The systems to build for.";
      };
    };

    buildMachines = mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            hostName = mkOption {
              type = types.strMatching "[A-Za-z0-9._:@-]+";
              description = "The machine's name, as ssh takes it.";
            };
            protocol = mkOption {
              type = types.enum [
                "ssh"
                "ssh-ng"
              ];
              default = "ssh-ng";
              description = "How Nix talks to it.";
            };
            sshUser = maybe types.str "The user there.";
            sshKey = maybe hostPath "The file of the private key, which root can read.";
            systems = mkOption {
              type = types.listOf types.str;
              description = "The systems it builds for.";
            };
            maxJobs = mkOption {
              type = types.ints.positive;
              default = 1;
              description = "How many builds at once.";
            };
            speedFactor = mkOption {
              type = types.ints.positive;
              default = 1;
              description = "How it compares to the others.";
            };
            supportedFeatures = mkOption {
              type = types.listOf types.str;
              default = [ ];
              description = "What it offers, as in kvm and big-parallel.";
            };
            mandatoryFeatures = mkOption {
              type = types.listOf types.str;
              default = [ ];
              description = "What a build must want to be sent there.";
            };
            publicHostKey = maybe types.str "Its host key, base64 of the line in known_hosts.";
          };
        }
      );
      default = [ ];
      description = ''
        Machines that build guests which this host cannot build. They become `nix.buildMachines`, so
        they serve all of this host.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.libvirt.enable -> config.security.polkit.enable;
        message = ''
          ${option}.libvirt.enable needs security.polkit.enable = true: libvirt asks polkit who may
          open its socket.
        '';
      }
      {
        assertion = cfg.libvirt.enable -> config.virtualisation.libvirtd.enable;
        message = ''
          ${option}.libvirt.enable needs virtualisation.libvirtd.enable, which is set to false.
        '';
      }
      {
        assertion = cfg.linuxBuilder.enable -> !lib.elem own cfg.linuxBuilder.systems;
        message = ''
          ${option}.linuxBuilder.systems names ${own}, which this host builds for by itself. Leave
          it out.
        '';
      }
      {
        assertion = cfg.linuxBuilder.enable || cfg.buildMachines != [ ] -> config.nix.enable;
        message = ''
          ${option}.linuxBuilder and buildMachines configure Nix, and nix.enable is false.
        '';
      }
    ]
    ++ lib.concatMap (machine: [
      {
        assertion = machine.systems != [ ];
        message = ''
          ${option}.buildMachines: ${machine.hostName} builds for no system; name its systems.
        '';
      }
      {
        assertion = machine.sshKey == null || !inStore machine.sshKey;
        message = ''
          ${option}.buildMachines: the sshKey of ${machine.hostName} lies in the Nix store, where
          everybody may read it. Name a file outside of it.
        '';
      }
    ]) cfg.buildMachines;

    virtualisation.libvirtd.enable = lib.mkIf cfg.libvirt.enable (lib.mkDefault true);
    security.polkit.enable = lib.mkIf cfg.libvirt.enable (lib.mkDefault true);

    boot.binfmt.emulatedSystems = lib.mkIf cfg.linuxBuilder.enable cfg.linuxBuilder.systems;

    nix = lib.mkIf (cfg.buildMachines != [ ]) {
      distributedBuilds = true;
      buildMachines = cfg.buildMachines;
      settings.builders-use-substitutes = lib.mkDefault true;
    };
  };
}

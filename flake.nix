{
  description = "A daemon that gives AI agents disposable machines and one durable task graph";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    microvm = {
      url = "github:microvm-nix/microvm.nix";
      inputs.nixpkgs.follows = "nixpkgs";
      # Only for its graphics; without it nobody waits for a slow server.
      inputs.spectrum.follows = "";
    };
    # For an example only, which is checked.
    nix-darwin = {
      url = "github:nix-darwin/nix-darwin";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      microvm,
      nix-darwin,
    }:
    let
      inherit (nixpkgs) lib;
      hypervisors = {
        x86_64-linux = [
          "qemu"
          "cloud-hypervisor"
          "firecracker"
        ];
        aarch64-linux = [
          "qemu"
          "cloud-hypervisor"
          "firecracker"
        ];
        aarch64-darwin = [ "vfkit" ];
      };
      eachSystem = f: lib.mapAttrs (system: _: f nixpkgs.legacyPackages.${system}) hypervisors;

      # `guest-qemu` and so on, for each system that starts them.
      guestsOf =
        hostSystem:
        lib.listToAttrs (
          map (hypervisor: {
            name = "guest-${hypervisor}";
            value = self.lib.mkGuest { inherit hostSystem hypervisor; };
          }) hypervisors.${hostSystem}
        );
      runnerOf = _: guest: guest.config.microvm.declaredRunner;
    in
    {
      overlays.default = final: _: {
        microvm-orchestrator = final.callPackage ./python/package.nix { };
      };

      packages = eachSystem (
        pkgs:
        {
          default = pkgs.callPackage ./python/package.nix { };
        }
        // lib.mapAttrs runnerOf (guestsOf pkgs.stdenv.hostPlatform.system)
      );

      # A daemon needs Linux, so a Mac has none to show.
      apps = eachSystem (
        pkgs:
        lib.optionalAttrs pkgs.stdenv.hostPlatform.isLinux {
          demo = {
            type = "app";
            program = lib.getExe (pkgs.callPackage ./python/nix/demo.nix { inherit self; });
            meta.description = "A daemon of its own, and commands in a NixOS machine that it starts";
          };
        }
      );

      nixosModules.default = lib.modules.importApply ./nixos-module.nix { inherit self; };
      darwinModules.default = lib.modules.importApply ./darwin-module.nix { inherit self; };

      # A guest of your own: `modules` come on top of ours.
      lib.mkGuest =
        {
          hostSystem ? "x86_64-linux",
          hypervisor ? "qemu",
          name ? "guest",
          modules ? [ ],
        }:
        lib.nixosSystem {
          # A Mac starts guests of Linux.
          system = lib.replaceString "-darwin" "-linux" hostSystem;
          modules = [
            microvm.nixosModules.microvm
            (lib.modules.importApply ./guest/nixos { inherit self; })
            {
              networking.hostName = lib.mkDefault name;
              microvm.hypervisor = hypervisor;
              microvm.vmHostPackages = nixpkgs.legacyPackages.${hostSystem};
            }
          ]
          ++ modules;
        };

      nixosConfigurations =
        guestsOf "x86_64-linux"
        // guestsOf "aarch64-darwin"
        // lib.mapAttrs' (name: lib.nameValuePair "${name}-aarch64") (guestsOf "aarch64-linux")
        // {
          host = lib.nixosSystem {
            system = "x86_64-linux";
            modules = [
              self.nixosModules.default
              ./docs/how-to/examples/host.nix
            ];
          };
        };

      darwinConfigurations.mac = nix-darwin.lib.darwinSystem {
        pkgs = nixpkgs.legacyPackages.aarch64-darwin;
        modules = [
          self.darwinModules.default
          ./docs/how-to/examples/mac.nix
        ];
      };

      checks = eachSystem (
        pkgs:
        import ./python/nix/checks.nix {
          inherit self pkgs;
          guests =
            guestsOf pkgs.stdenv.hostPlatform.system
            # What is in a guest of a Mac is of Linux.
            // lib.optionalAttrs (pkgs.stdenv.hostPlatform.system == "aarch64-linux") (
              guestsOf "aarch64-darwin"
            );
        }
      );
      devShells = eachSystem (pkgs: {
        default = pkgs.callPackage ./python/nix/shell.nix { inherit self; };
      });
      formatter = eachSystem (pkgs: pkgs.nixfmt-tree);

      templates.default = {
        path = ./docs/template;
        description = "A repository with the development shell that a task needs";
      };
    };
}

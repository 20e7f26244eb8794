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
      eachSystem =
        f:
        lib.genAttrs [
          "x86_64-linux"
          "aarch64-linux"
          "aarch64-darwin"
        ] (system: f nixpkgs.legacyPackages.${system});
    in
    {
      packages = eachSystem (pkgs: rec {
        microvm-orchestrator = pkgs.callPackage ./python/package.nix { };
        default = microvm-orchestrator;
      });

      nixosModules.default = lib.modules.importApply ./nixos-module.nix { inherit self; };
      darwinModules.default = lib.modules.importApply ./darwin-module.nix { inherit self; };

      lib.mkGuest =
        {
          name,
          system ? "x86_64-linux",
          hypervisor ? "qemu",
          modules ? [ ],
        }:
        lib.nixosSystem {
          inherit system;
          modules = [
            microvm.nixosModules.microvm
            (lib.modules.importApply ./guest/nixos { inherit self; })
            {
              networking.hostName = name;
              microvm.hypervisor = hypervisor;
            }
          ]
          ++ modules;
        };

      nixosConfigurations = lib.genAttrs [
        "qemu"
        "cloud-hypervisor"
        "firecracker"
      ] (
        hypervisor:
        self.lib.mkGuest {
          inherit hypervisor;
          name = "guest-${hypervisor}";
        }
      );
    };
}

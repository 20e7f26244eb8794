# What `nix flake check` builds: the package with its tests, the shell, the guest, the VM tests.
{ self, pkgs }:
let
  inherit (pkgs) lib;
  inherit (pkgs.stdenv.hostPlatform) isDarwin isLinux system;
  folder = ../../tests/nixos;

  isTest = name: type: type == "regular" && lib.hasSuffix ".nix" name;
  found = if lib.pathExists folder then builtins.readDir folder else { };
  tests = lib.mapAttrs' (
    name: _:
    lib.nameValuePair "nixos-${lib.removeSuffix ".nix" name}" (
      pkgs.testers.runNixOSTest (lib.modules.importApply (folder + "/${name}") { inherit self; })
    )
  ) (lib.filterAttrs isTest found);

  sources = lib.fileset.toSource {
    root = ../..;
    fileset = lib.fileset.fileFilter (file: file.hasExt "nix") ../..;
  };
in
{
  package = self.packages.${system}.default;
  devShell = self.devShells.${system}.default;
  formatting = pkgs.runCommand "formatting" { nativeBuildInputs = [ pkgs.nixfmt ]; } ''
    find ${sources} -name '*.nix' -exec nixfmt --check {} +
    touch $out
  '';
}
// lib.optionalAttrs isLinux (
  tests
  // {
    # Says how large the guest is; it has no limit, as what is in it is for its user to choose.
    guest-size = (self.lib.mkGuest { hostSystem = system; }).config.system.build.closureSize;
  }
)

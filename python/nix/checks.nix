# What `nix flake check` builds: the package with its tests, the shell, the sizes of the guests, the
# VM tests; and what it evaluates for a Mac.
{
  self,
  pkgs,
  guests,
}:
let
  inherit (pkgs) lib;
  inherit (pkgs.stdenv.hostPlatform) isLinux system;
  folder = ../../tests/nixos;

  isTest = name: type: type == "regular" && lib.hasSuffix ".nix" name;
  found = if lib.pathExists folder then builtins.readDir folder else { };
  tests = lib.mapAttrs' (
    name: _:
    lib.nameValuePair "nixos-${lib.removeSuffix ".nix" name}" (
      pkgs.testers.runNixOSTest (lib.modules.importApply (folder + "/${name}") { inherit self; })
    )
  ) (lib.filterAttrs isTest found);

  # Say how large each is; none has a limit, as what is in it is for its user to choose.
  sizes = lib.mapAttrs' (
    name: guest:
    lib.nameValuePair "guest-size-${lib.removePrefix "guest-" name}" guest.config.system.build.closureSize
  ) guests;

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
  # Evaluated, as only a Mac builds it.
  mac = pkgs.writeText "mac" (
    builtins.unsafeDiscardStringContext self.darwinConfigurations.mac.config.system.build.toplevel.drvPath
  );
}
// lib.optionalAttrs isLinux (tests // sizes)

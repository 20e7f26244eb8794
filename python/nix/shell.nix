# What `make` needs on a machine with Nix.
{
  self,
  stdenv,
  lib,
  mkShell,
  libfaketime,
  nixfmt,
  openssh,
  pyright,
  ruff,
}:
mkShell {
  inputsFrom = [ self.packages.${stdenv.hostPlatform.system}.default ];
  packages = [
    nixfmt
    openssh
    pyright
    ruff
  ]
  ++ lib.optionals stdenv.hostPlatform.isLinux [ libfaketime ];
}

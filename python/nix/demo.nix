# `nix run .#demo`: needs no privilege and leaves nothing behind.
{
  self,
  stdenv,
  writeShellApplication,
}:
let
  own = self.packages.${stdenv.hostPlatform.system};
in
writeShellApplication {
  name = "microvm-orchestrator-demo";
  runtimeInputs = [ own.default ];
  text = ''
    runner=${own.guest-qemu}
    ${builtins.readFile ./demo.sh}
  '';
  meta.description = "A daemon of its own, and commands in a machine that it starts";
}

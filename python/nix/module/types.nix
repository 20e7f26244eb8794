# Types that more than one part of the module uses.
{ lib }:
let
  inherit (lib) types;
in
rec {
  # A string and never a Nix path: that one would be copied to the store, where all may read it.
  hostPath = types.strMatching "/.*" // {
    description = "absolute path on this host, written as a string";
  };
  slotName = "[a-z][a-z0-9-]{0,30}";
  inStore = path: lib.hasPrefix "${builtins.storeDir}/" (toString path);
  maybe =
    type: description:
    lib.mkOption {
      type = types.nullOr type;
      default = null;
      inherit description;
    };
}

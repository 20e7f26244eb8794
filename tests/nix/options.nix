# The options of the module as a list to print, but for the daemon's own settings.
host:
let
  inherit (host.pkgs) lib;
  prefix = "services.microvm-orchestrator.";
  isOurs =
    option:
    lib.hasPrefix prefix option.name
    && !lib.hasPrefix "${prefix}settings." option.name
    && option.visible
    && !option.internal;
  text = value: if value == null then "" else value.text or (toString value);
  told = option: {
    inherit (option) name type;
    description = text (option.description or null);
    default = text (option.default or null);
    example = text (option.example or null);
  };
in
map told (lib.filter isOurs (lib.optionAttrSetToDocList host.options.services.microvm-orchestrator))

# What the module makes of a host, as text by file. It is given the smallest host, whose options it
# takes to be known, and the host to look at.
host: module:
let
  rendered = host.extendModules { modules = [ module ]; };
  inherit (rendered) config;
  inherit (host.pkgs) lib;
  isOurs = name: lib.hasPrefix "microvm-" name;
  units = lib.mapAttrs (_: unit: unit.text) (
    lib.filterAttrs (name: _: isOurs name) config.systemd.units
  );
  json = value: builtins.toJSON value;
  # A string knows what it was made from.
  recipe = text: lib.head (lib.attrNames (builtins.getContext text));
  slot = config.systemd.services."microvm-slot@".serviceConfig;
  network = config.networking;
  table = network.nftables.tables.microvm-orchestrator;
in
{
  # What Nix has to build: how each is called here, and its recipe.
  built = {
    "config.toml" = config.environment.etc."microvm-orchestrator/config.toml".source.drvPath;
    "bin/slot-remember" = recipe slot.ExecStartPre;
    "bin/slot-stop" = recipe slot.ExecStop;
  }
  // lib.mapAttrs' (name: service: {
    name = "bin/${name}";
    value = recipe service.serviceConfig.ExecStart;
  }) (lib.filterAttrs (name: service: isOurs name && service.script != "") config.systemd.services);
  files = units // {
    "nftables.conf" = "table inet microvm-orchestrator {\n${table.content}}\n";
    "polkit.rules" = config.security.polkit.extraConfig;
    "udev.rules" = config.services.udev.extraRules;
    "tmpfiles.conf" = lib.concatMapStrings (rule: "${rule}\n") (
      lib.filter (lib.hasInfix "microvm") config.systemd.tmpfiles.rules
    );
    "machines" = config.environment.etc."nix/machines".text;
    "host.json" = json {
      ports = network.firewall.allowedTCPPorts;
      bridges = lib.attrNames network.bridges;
      addresses = lib.mapAttrs (_: each: {
        v4 = each.ipv4.addresses;
        v6 = each.ipv6.addresses;
      }) network.interfaces;
      forwarding = config.boot.kernel.sysctl."net.ipv4.conf.all.forwarding";
      emulated = config.boot.binfmt.emulatedSystems;
      modules = config.boot.kernelModules;
      leftAlone = network.dhcpcd.denyInterfaces ++ network.networkmanager.unmanaged;
      etc = lib.filter (lib.hasPrefix "microvm-") (lib.attrNames config.environment.etc);
      libvirt = config.virtualisation.libvirtd.enable;
      user = { inherit (config.users.users.microvm) group home isSystemUser; };
      wanted = config.systemd.targets.multi-user.wants;
    };
  };
}

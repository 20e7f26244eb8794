# What a host has and leaves alone where the networks of machines are the kernel's. The capability
# and the device are the unit's.
{ config, lib, ... }:
let
  cfg = config.services.microvm-orchestrator;
  inherit (config.networking) nftables;
  # The bridges and the taps of the daemon, as its code names them.
  ours = [
    "mvb*"
    "mvt*"
  ];
in
{
  config = lib.mkIf (cfg.enable && cfg.settings.networks.kind == "kernel") {
    warnings = lib.optional (nftables.enable && nftables.flushRuleset) ''
      services.microvm-orchestrator.settings.networks.kind is "kernel", and
      networking.nftables.flushRuleset is true: a reload of the firewall takes the rules of machines
      and faults away with its own. Set it to false.
    '';

    # The kernel would load them by itself when they are first asked for, unless it was told to load
    # nothing any more. What a fault can do is then the same from the first one on.
    boot.kernelModules = [
      "bridge"
      "nf_tables"
      "nft_meta_bridge"
      "nft_numgen"
      "sch_htb"
      "sch_netem"
      "tun"
    ];

    # This host takes no part in these networks: nobody is to ask for an address there.
    networking.dhcpcd.denyInterfaces = ours;
    networking.networkmanager.unmanaged = map (name: "interface-name:${name}") ours;
  };
}

# Bridges of this host for guests with taps, and what may leave them.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  addresses = import ./addresses.nix { inherit lib; };
  inherit (import ./types.nix { inherit lib; }) maybe;
  cfg = config.services.microvm-orchestrator;
  inherit (cfg) bridges;
  option = "services.microvm-orchestrator";
  names = lib.attrNames bridges;

  nameOf = "[a-zA-Z][a-zA-Z0-9]{0,9}";
  # Networks that are somebody's own, and not the internet.
  inner = {
    ip = "10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, 192.168.0.0/16";
    ip6 = "::1/128, 64:ff9b::/96, fc00::/7, fe80::/10";
  };

  networksOf =
    name:
    let
      bridge = bridges.${name};
      found =
        family: parse: text:
        lib.optional (text != null) (parse text // { inherit family name; });
    in
    found "ip" addresses.parseV4 bridge.address ++ found "ip6" addresses.parseV6 bridge.addressV6;
  networks = lib.concatMap networksOf names;
  # Each pair once.
  pairs = lib.concatLists (
    lib.imap0 (place: a: map (b: { inherit a b; }) (lib.drop (place + 1) networks)) networks
  );
  overlapping = lib.filter (
    pair: pair.a.family == pair.b.family && addresses.overlap pair.a pair.b
  ) pairs;

  forwardRules =
    name:
    let
      bridge = bridges.${name};
      from = "iifname \"${name}\"";
      to = "oifname \"${name}\"";
      own = network: "${from} ${network.family} saddr != ${network.network} drop";
      toInner = family: "${from} ${family} daddr { ${inner.${family}} } drop";
    in
    [ "${from} ${to} accept" ]
    ++ (
      if bridge.egress == "none" then
        [
          "${from} drop"
          "${to} drop"
        ]
      else
        map own (networksOf name)
        ++ lib.optionals (bridge.address == null) [ "${from} meta nfproto ipv4 drop" ]
        ++ lib.optionals (bridge.addressV6 == null) [ "${from} meta nfproto ipv6 drop" ]
        ++ lib.optionals (bridge.egress == "internet") (
          map toInner [
            "ip"
            "ip6"
          ]
        )
        # Nobody outside begins to talk to a guest.
        ++ [ "${to} ct state new,invalid drop" ]
    );
  natRules =
    name:
    lib.optionals bridges.${name}.nat (
      map (network: "${network.family} saddr ${network.network} oifname != \"${name}\" masquerade") (
        networksOf name
      )
    );
  lines = indent: rules: lib.concatMapStrings (rule: "${indent}${rule}\n") rules;
  out = lib.filter (name: bridges.${name}.egress != "none") names;
  hasV6 = lib.any (name: bridges.${name}.addressV6 != null) out;
in
{
  options.services.microvm-orchestrator.bridges = mkOption {
    type = types.attrsOf (
      types.submodule {
        options = {
          address = maybe addresses.typeV4 ''
            The IPv4 address of this host on the bridge, with its prefix length.
          '';
          addressV6 = maybe addresses.typeV6 ''
            The IPv6 address of this host on the bridge, with its prefix length.
          '';
          nat = mkOption {
            type = types.bool;
            default = false;
            description = "Whether what leaves the bridge goes out under an address of this host.";
          };
          egress = mkOption {
            type = types.enum [
              "none"
              "internet"
              "any"
            ];
            default = "none";
            description = ''
              Where its guests may send: nowhere beyond the bridge, to the internet but to no inner
              network, or anywhere. Nobody outside may begin to talk to them. What they reach on
              this host itself is for the host's firewall to say.
            '';
          };
        };
      }
    );
    default = { };
    example = lib.literalExpression ''
      {
        mvbr0 = {
          address = "10.77.0.1/24";
          addressV6 = "fd77::1/64";
          nat = true;
          egress = "internet";
        };
      }
    '';
    description = ''
      Bridges of this host. A tap whose name begins with a bridge's and a dash, as in `mvbr0-web`,
      is put into it, whoever makes it. The networks of `network create` need none of these.
    '';
  };

  config = lib.mkIf (cfg.enable && bridges != { }) {
    assertions =
      map (pair: {
        assertion = false;
        message = ''
          ${option}.bridges: ${pair.a.name} (${pair.a.network}) and ${pair.b.name}
          (${pair.b.network}) overlap, so this host could not tell where to send. Give one of them
          another network.
        '';
      }) overlapping
      ++ lib.concatMap (name: [
        {
          assertion = builtins.match nameOf name != null;
          message = ''
            ${option}.bridges."${name}": a name begins with a letter and has at most ten letters and
            digits, so that the names of taps, ${name}-…, fit into the kernel's fifteen.
          '';
        }
        {
          assertion = networksOf name != [ ];
          message = "${option}.bridges.${name} has neither address nor addressV6.";
        }
        {
          assertion = bridges.${name}.nat -> bridges.${name}.egress != "none";
          message = ''
            ${option}.bridges.${name}.nat is for what leaves the bridge, and egress = "none" lets
            nothing leave. Set egress to "internet" or "any".
          '';
        }
      ]) names
      ++ map (network: {
        assertion = network.isHost;
        message =
          let
            which = if network.family == "ip" then "address" else "addressV6";
            example = if network.family == "ip" then "10.77.0.1/24" else "fd77::1/64";
          in
          ''
            ${option}.bridges.${network.name}.${which} is
            ${bridges.${network.name}.${which}}: that is no address of a host with guests beside it.
            Take one of a network, as in ${example}.
          '';
      }) networks
      ++ [
        {
          assertion = config.networking.nftables.enable;
          message = ''
            ${option}.bridges are kept apart by rules of nftables, and networking.nftables.enable is
            false. Enable it, or leave the bridges out.
          '';
        }
      ];

    warnings = lib.optional (!config.networking.firewall.enable) ''
      ${option}.bridges: networking.firewall.enable is false, so guests reach every service of this
      host that listens on all addresses.
    '';

    networking = {
      bridges = lib.genAttrs names (_: {
        interfaces = [ ];
      });
      interfaces = lib.genAttrs names (name: {
        ipv4.addresses = map (network: {
          inherit (network) address prefixLength;
        }) (lib.filter (network: network.family == "ip") (networksOf name));
        ipv6.addresses = map (network: {
          inherit (network) address prefixLength;
        }) (lib.filter (network: network.family == "ip6") (networksOf name));
      });
      networkmanager.unmanaged = lib.concatMap (name: [
        "interface-name:${name}"
        "interface-name:${name}-*"
      ]) names;
      # Where the firewall looks at what is forwarded, it lets pass what the rules below let pass.
      firewall.extraForwardRules = lines "" (map (name: "iifname \"${name}\" accept") out);
      nftables = {
        enable = lib.mkDefault true;
        tables.microvm-orchestrator = {
          family = "inet";
          content = ''
            chain forward {
              type filter hook forward priority filter - 5; policy accept;
            ${lines "  " (lib.concatMap forwardRules names)}}
            chain postrouting {
              type nat hook postrouting priority srcnat; policy accept;
            ${lines "  " (lib.concatMap natRules names)}}
          '';
        };
      };
    };

    boot.kernel.sysctl =
      lib.optionalAttrs (out != [ ]) { "net.ipv4.conf.all.forwarding" = lib.mkOverride 99 true; }
      // lib.optionalAttrs hasV6 { "net.ipv6.conf.all.forwarding" = lib.mkOverride 99 true; };

    # For both ways in which NixOS makes networks, and for taps that a runner makes later.
    services.udev.extraRules = lib.concatMapStrings (
      name:
      lib.concatStringsSep ", " [
        ''ACTION=="add"''
        ''SUBSYSTEM=="net"''
        ''KERNEL=="${name}-*"''
        ''RUN+="${lib.getExe' pkgs.iproute2 "ip"} link set dev $name master ${name} up"''
      ]
      + "\n"
    ) names;
  };
}

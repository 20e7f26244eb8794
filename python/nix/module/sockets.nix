# Where clients come in: the unix socket, TCP with TLS or behind a proxy, and the pages on both.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) hostPath inStore maybe;
  inherit (import ./addresses.nix { inherit lib; }) isLoopback;
  cfg = config.services.microvm-orchestrator;
  inherit (cfg) tcp;
  option = "services.microvm-orchestrator";

  hasTls = tcp.tls.certificate != null || tcp.tls.key != null;
  isV6 = lib.hasInfix ":" tcp.address;
  bracketed = if isV6 then "[${tcp.address}]" else tcp.address;
  plain =
    if hasTls then "127.0.0.1:${toString tcp.tls.plainPort}" else "${bracketed}:${toString tcp.port}";
  allowed = cfg.settings.tcp.allowed_hosts;
in
{
  options.services.microvm-orchestrator = {
    socket = {
      path = mkOption {
        type = types.addCheck hostPath (path: lib.stringLength path <= 107) // {
          description = "absolute path of at most 107 characters";
        };
        default = "/run/microvm-orchestrator/socket";
        description = "The unix socket. At the default clients find it by themselves.";
      };
      group = mkOption {
        type = types.str;
        default = cfg.clientGroup;
        defaultText = lib.literalExpression "config.${option}.clientGroup";
        description = "The group that may open the socket.";
      };
    };

    tcp = {
      enable = lib.mkEnableOption "listening on the network, where every request needs a token";
      address = mkOption {
        type = types.strMatching "[0-9a-fA-F.:]+" // {
          description = "IPv4 or IPv6 address, as in 127.0.0.1";
        };
        default = "127.0.0.1";
        description = "The address to listen on.";
      };
      port = mkOption {
        type = types.port;
        default = 7070;
        description = "The port to listen on.";
      };
      behindProxy = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether a reverse proxy of this host passes requests on. It ends TLS, and must hand on the
          Host header; `settings.tcp.allowed_hosts` says for which hosts.
        '';
      };
      tls = {
        certificate = maybe hostPath ''
          The certificate, with its chain, as PEM. With it and `key`, a small unit of its own ends
          TLS and passes requests on to the daemon.
        '';
        key = maybe hostPath "The key of the certificate, as PEM. It is read once, by systemd.";
        plainPort = mkOption {
          type = types.port;
          default = 7071;
          description = "The port on 127.0.0.1 where the daemon listens when TLS is ended for it.";
        };
      };
    };

    webUI.enable = mkOption {
      type = types.bool;
      default = true;
      description = ''
        Whether to serve pages for a browser: over the socket by `microvm-orchestrator web`, and
        where `tcp.enable` is set to whoever logs in there with a token. They show and change
        nothing.
      '';
    };

    openFirewall = mkOption {
      type = types.bool;
      default = false;
      description = "Whether to open `tcp.port` in the firewall.";
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = (tcp.tls.certificate == null) == (tcp.tls.key == null);
        message = ''
          ${option}.tcp.tls needs both: certificate and key.
        '';
      }
      {
        assertion = tcp.tls.key == null || !inStore tcp.tls.key;
        message = ''
          ${option}.tcp.tls.key lies in the Nix store, where everybody may read it. Name a file
          outside of it.
        '';
      }
      {
        assertion = !(hasTls && tcp.behindProxy);
        message = ''
          ${option}.tcp: who ends TLS? Set either tls, or behindProxy for a proxy that does it.
        '';
      }
      {
        assertion = (hasTls || tcp.behindProxy) -> tcp.enable;
        message = ''
          ${option}.tcp.tls and tcp.behindProxy do nothing without tcp.enable = true.
        '';
      }
      {
        assertion = tcp.enable -> hasTls || isLoopback tcp.address;
        message = ''
          ${option}.tcp.address is ${tcp.address}: tokens would cross the network for all to read.
          Set tcp.tls, or listen on 127.0.0.1 and set tcp.behindProxy.
        '';
      }
      {
        assertion = tcp.enable && (hasTls || tcp.behindProxy) -> allowed != null && allowed != [ ];
        message = ''
          ${option}.settings.tcp.allowed_hosts is empty, so the daemon would refuse every request
          that comes by another name than 127.0.0.1. Name the hosts that clients ask for.
        '';
      }
      {
        assertion = tcp.enable && hasTls -> tcp.tls.plainPort != tcp.port;
        message = ''
          ${option}.tcp.tls.plainPort and tcp.port are both ${toString tcp.port}. One is for TLS,
          the other for what is behind it.
        '';
      }
      {
        assertion = cfg.openFirewall -> tcp.enable && !isLoopback tcp.address;
        message = ''
          ${option}.openFirewall opens tcp.port, where nothing listens for others: set tcp.enable,
          and a tcp.address that is not of this host alone.
        '';
      }
      {
        assertion = cfg.settings.pages.enabled == cfg.webUI.enable;
        message = ''
          ${option}: settings.pages.enabled and webUI.enable say two things. Set webUI.enable alone.
        '';
      }
      {
        assertion = !lib.hasPrefix "/var/lib/microvm-orchestrator/" cfg.socket.path;
        message = ''
          ${option}.socket.path is in the state directory, which only the daemon may enter. Clients
          find it in /run.
        '';
      }
    ];

    services.microvm-orchestrator.settings = {
      socket.path = cfg.socket.path;
      socket.group = cfg.socket.group;
      tcp.listen = if tcp.enable then plain else null;
      pages.enabled = lib.mkDefault cfg.webUI.enable;
    };

    networking.firewall.allowedTCPPorts = lib.optional cfg.openFirewall tcp.port;

    systemd.sockets.microvm-orchestrator = {
      description = "Socket of the microVM orchestrator";
      wantedBy = [ "sockets.target" ];
      listenStreams = [ cfg.socket.path ];
      socketConfig = {
        SocketUser = cfg.user;
        SocketGroup = cfg.socket.group;
        SocketMode = "0660";
        DirectoryMode = "0755";
        Backlog = 1024;
      };
    };

    systemd.services.microvm-orchestrator-tls = lib.mkIf (tcp.enable && hasTls) {
      description = "TLS for the microVM orchestrator";
      wantedBy = [ "multi-user.target" ];
      after = [
        "network.target"
        "microvm-orchestrator.service"
      ];
      serviceConfig = (import ./sandbox.nix).small // {
        ExecStart = lib.concatStringsSep " " [
          (lib.getExe pkgs.socat)
          (lib.concatStringsSep "," [
            "OPENSSL-LISTEN:${toString tcp.port}"
            (if isV6 then "pf=ip6" else "pf=ip4")
            "bind=${bracketed}"
            "reuseaddr"
            "fork"
            "max-children=256"
            "cert=%d/certificate"
            "key=%d/key"
            "verify=0"
            "openssl-min-proto-version=TLS1.2"
          ])
          "TCP4:${plain}"
        ];
        LoadCredential = [
          "certificate:${tcp.tls.certificate}"
          "key:${tcp.tls.key}"
        ];
        Restart = "always";
        RestartSec = 1;
        DynamicUser = true;
        AmbientCapabilities = lib.optional (tcp.port < 1024) "CAP_NET_BIND_SERVICE";
        CapabilityBoundingSet = if tcp.port < 1024 then "CAP_NET_BIND_SERVICE" else "";
        UMask = "0077";
        RestrictAddressFamilies = [
          "AF_INET"
          "AF_INET6"
          "AF_UNIX"
        ];
      };
    };
  };
}

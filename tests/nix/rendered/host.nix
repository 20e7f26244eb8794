# A host that uses nearly all of the module; the files beside this one are what Nix makes of it.
{ pkgs, ... }:
{
  services.microvm-orchestrator = {
    enable = true;
    credentials = {
      anthropic-api-key = "/run/secrets/anthropic";
      "secret.github" = "/run/secrets/github";
    };
    settings = {
      log.level = "debug";
      access.gid_roles."100" = "viewer";
      store.events.max_count = "none";
      networks.kind = "kernel";
      tcp.allowed_hosts = [ "vms.example.org" ];
      egress.secrets.github.url = "https://api.github.com";
    };
    slots = {
      count = 8;
      memory = 1024;
      vcpus = 2;
      warm.embedded = 2;
      runners.web.runner = pkgs.writeShellScriptBin "microvm-run" "exec sleep infinity";
    };
    bridges = {
      mvbr0 = {
        address = "10.77.0.1/24";
        addressV6 = "fd77::1/64";
        nat = true;
        egress = "internet";
      };
      lab = {
        address = "10.78.0.1/24";
      };
    };
    tcp = {
      enable = true;
      address = "192.0.2.7";
      tls = {
        certificate = "/var/lib/acme/vms.example.org/fullchain.pem";
        key = "/var/lib/acme/vms.example.org/key.pem";
      };
    };
    openFirewall = true;
    repos = {
      site = {
        path = "/home/ada/site";
        merge = "squash";
        egress = [ "*.example.org" ];
      };
      tools.path = "/srv/git/tools.git";
    };
    backup.enable = true;
    metrics.enable = true;
    libvirt.enable = true;
    linuxBuilder.enable = true;
    buildMachines = [
      {
        hostName = "arm.example.org";
        sshUser = "builder";
        sshKey = "/var/lib/keys/builder";
        systems = [ "aarch64-linux" ];
        supportedFeatures = [ "kvm" ];
      }
    ];
  };
}

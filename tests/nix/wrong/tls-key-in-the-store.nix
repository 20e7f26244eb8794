# tcp.tls.key lies in the Nix store
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.tls.certificate = "/var/lib/acme/x/fullchain.pem";
    tcp.tls.key = "${builtins.toFile "key" "BEGIN PRIVATE KEY"}";
  };
}

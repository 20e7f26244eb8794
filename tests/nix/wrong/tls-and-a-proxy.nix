# who ends TLS? Set either tls, or behindProxy
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.behindProxy = true;
    tcp.tls.certificate = "/var/lib/acme/x/fullchain.pem";
    tcp.tls.key = "/var/lib/acme/x/key.pem";
  };
}

# tcp.tls needs both: certificate and key
{
  services.microvm-orchestrator = {
    enable = true;
    tcp.enable = true;
    tcp.tls.certificate = "/var/lib/acme/x/fullchain.pem";
  };
}

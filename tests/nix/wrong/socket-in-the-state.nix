# socket.path is in the state directory, which only the daemon may enter
{
  services.microvm-orchestrator = {
    enable = true;
    socket.path = "/var/lib/microvm-orchestrator/socket";
  };
}

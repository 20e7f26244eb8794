# socket.path' is not of type `absolute path of at most 107 characters'
{ lib, ... }:
{
  services.microvm-orchestrator = {
    enable = true;
    socket.path = "/run/${lib.strings.replicate 110 "x"}";
  };
}

# buildMachines: mac.example.org builds for no system
{
  services.microvm-orchestrator = {
    enable = true;
    buildMachines = [
      {
        hostName = "mac.example.org";
        systems = [ ];
      }
    ];
  };
}

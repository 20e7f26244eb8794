# linuxBuilder.systems names x86_64-linux, which this host builds for by itself
{
  services.microvm-orchestrator = {
    enable = true;
    linuxBuilder.enable = true;
    linuxBuilder.systems = [ "x86_64-linux" ];
  };
}

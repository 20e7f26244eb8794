# A model API on the host that the daemon asks in place of the real one, with a key that is in its
# keeping alone: the project's scripted one.
{ pkgs, ... }:
let
  port = 8085;
  key = "/run/secrets/anthropic";
  python = pkgs.python3.withPackages (packages: [
    packages.anyio
    packages.h11
  ]);
  program = pkgs.runCommand "model" { } ''
    mkdir $out
    cp ${../../model_api.py} $out/model_api.py
    cp ${./model.py} $out/model.py
  '';
in
{
  services.microvm-orchestrator = {
    credentials.anthropic-api-key = key;
    settings.egress.anthropic_url = "http://127.0.0.1:${toString port}";
  };

  systemd.tmpfiles.settings."10-secrets" = {
    "/run/secrets".d.mode = "0700";
    ${key}.f = {
      mode = "0600";
      argument = "sk-ant-api03-not-a-real-key";
    };
  };

  systemd.services.model = {
    description = "A scripted model API";
    wantedBy = [ "multi-user.target" ];
    serviceConfig = {
      Type = "notify";
      ExecStart = "${python}/bin/python3 ${program}/model.py ${toString port} ${key} /run/model/requests";
      RuntimeDirectory = "model";
    };
  };
}

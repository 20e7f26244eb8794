# The host that the tests beside this folder start from: the service, somebody who is its client,
# somebody who is not, and a repository. Programs that a testScript calls are in its path.
{ self }:
{ pkgs, ... }:
let
  repository = "/srv/git/tools.git";
in
{
  imports = [ self.nixosModules.default ];

  services.microvm-orchestrator = {
    enable = true;
    repos.tools.path = repository;
  };

  users.users = {
    alice = {
      isNormalUser = true;
      extraGroups = [ "microvm-orchestrator" ];
    };
    bob.isNormalUser = true;
  };

  environment.systemPackages = [
    pkgs.git
    pkgs.python3
    pkgs.util-linux
  ];

  # It has one commit, and is the daemon's own.
  systemd.services.repository = {
    description = "A repository to work on";
    before = [ "microvm-orchestrator.service" ];
    requiredBy = [ "microvm-orchestrator.service" ];
    path = [ pkgs.git ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
    };
    script = ''
      [ ! -e ${repository} ] || exit 0
      umask 022
      git init --quiet --bare --initial-branch=main ${repository}
      cd ${repository}
      tree=$(git mktree </dev/null)
      commit=$(git -c user.name=Ada -c user.email=ada@example.org commit-tree -m start "$tree")
      git update-ref refs/heads/main "$commit"
      chown -R microvm:microvm ${repository}
    '';
  };

  virtualisation.cores = 2;
  virtualisation.memorySize = 2048;
}

# Repositories that are registered by their aliases whenever the system is switched to.
{
  config,
  lib,
  ...
}:
let
  inherit (lib) mkOption types;
  inherit (import ./types.nix { inherit lib; }) hostPath inStore maybe;
  cfg = config.services.microvm-orchestrator;
  option = "services.microvm-orchestrator";
  aliases = lib.attrNames cfg.repos;
  aliasPattern = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}";
  samePath = lib.filterAttrs (_: them: lib.length them > 1) (
    # The name of an attribute may not depend on the store; a path there is refused below.
    lib.groupBy (alias: builtins.unsafeDiscardStringContext cfg.repos.${alias}.path) aliases
  );

  # What an option is called on the command line.
  words = {
    branch = "branch";
    image = "image";
    memory = "memory-mib";
    vcpus = "vcpus";
    disk = "disk-mib";
    timeout = "timeout-s";
    driver = "driver";
    model = "model";
    merge = "merge";
    check = "check";
    checkout = "checkout";
    devshell = "devshell";
    rest = "rest";
  };
  said =
    repo:
    lib.concatMap (
      name: lib.optionals (repo.${name} != null) [ "--${words.${name}}=${toString repo.${name}}" ]
    ) (lib.attrNames words)
    ++ map (host: "--egress=${host}") repo.egress;

  register =
    alias:
    let
      repo = cfg.repos.${alias};
      program = [
        (lib.getExe cfg.package)
        "repo"
        "add"
        repo.path
        "--alias=${alias}"
      ];
    in
    "${lib.escapeShellArgs (program ++ said repo)} >/dev/null || failed=1";
in
{
  options.services.microvm-orchestrator.repos = mkOption {
    type = types.attrsOf (
      types.submodule {
        options = {
          path = mkOption {
            type = hostPath;
            description = ''
              The repository's folder, which `user` must be able to write. The service sees no other
              folder of a home.
            '';
          };
          branch = maybe types.str "Where runs start; else what HEAD names.";
          image = maybe types.str "What machines boot: name or digest.";
          memory = maybe types.ints.positive "The memory of machines, in MiB.";
          vcpus = maybe types.ints.positive "The processors of machines.";
          disk = maybe types.ints.positive "A disk for what the guest writes, in MiB.";
          timeout = maybe types.ints.positive "How long a program may take, in seconds.";
          driver = maybe (types.enum [
            "claude"
            "codex"
            "opencode"
          ]) "Which agent; else claude.";
          model = maybe types.str "The agent's model, as the agent names it.";
          merge = maybe (types.enum [
            "auto"
            "squash"
            "branch"
            "review"
            "manual"
          ]) "What becomes of commits; else auto.";
          check = maybe types.str ''
            A shell text that what was merged must pass in a machine of its own before the branch
            moves.
          '';
          checkout = maybe (types.enum [
            "update"
            "leave"
          ]) "Whether a branch that is checked out is moved with its work tree; else update.";
          devshell = maybe (types.enum [
            "auto"
            "require"
            "never"
          ]) "Whether programs run in the development shell of the flake; else auto.";
          rest = maybe (types.enum [
            "patch"
            "commit"
            "drop"
          ]) "What becomes of changes without a commit; else a patch.";
          egress = mkOption {
            type = types.listOf types.str;
            default = [ ];
            example = [ "*.example.org" ];
            description = "Hosts that every run on it may reach, as HOST, HOST:PORT or *.DOMAIN.";
          };
        };
      }
    );
    default = { };
    example = lib.literalExpression ''
      {
        site = {
          path = "/srv/git/site.git";
          merge = "squash";
        };
      }
    '';
    description = ''
      Repositories by their aliases. They are registered when the service has been started, and
      again whenever this changes. What is taken out here stays registered: `repo remove` forgets
      it.
    '';
  };

  config = lib.mkIf (cfg.enable && cfg.repos != { }) {
    assertions =
      lib.concatMap (alias: [
        {
          assertion = builtins.match aliasPattern alias != null;
          message = ''
            ${option}.repos."${alias}": an alias has letters, digits and ._- and at most 64 of them.
          '';
        }
        {
          assertion = !inStore cfg.repos.${alias}.path;
          message = ''
            ${option}.repos.${alias}.path lies in the Nix store, where nothing can be merged into.
            Name the folder itself, as a string: "/home/ada/site".
          '';
        }
      ]) aliases
      ++ lib.mapAttrsToList (path: them: {
        assertion = false;
        message = ''
          ${option}.repos: ${lib.concatStringsSep " and " them} are both ${path}. A repository has
          one alias.
        '';
      }) samePath;

    systemd.services.microvm-orchestrator-repos = {
      description = "Repositories of the microVM orchestrator";
      wantedBy = [ "multi-user.target" ];
      requires = [ "microvm-orchestrator.service" ];
      after = [ "microvm-orchestrator.service" ];
      environment.MICROVM_ORCHESTRATOR_SOCKET = cfg.socket.path;
      # Each is tried, so that one that is gone keeps none of the others out.
      script = ''
        failed=0
        ${lib.concatMapStringsSep "\n" register aliases}
        exit "$failed"
      '';
      serviceConfig = (import ./sandbox.nix).client // {
        Type = "oneshot";
        RemainAfterExit = true;
        # As the daemon's own user one is its administrator.
        User = cfg.user;
        Group = cfg.group;
        ProtectHome = "read-only";
      };
    };
  };
}

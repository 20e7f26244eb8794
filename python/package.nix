{
  lib,
  stdenv,
  callPackage,
  python3Packages,

  # programs that the daemon starts
  git,
  nftables,
  qemu,
  qemu_kvm,
  util-linux,

  # programs that some images need to be made
  apt,
  dpkg,
  nix,
  nodejs,
}:
let
  inherit (stdenv.hostPlatform) isLinux isx86_64;
  pinned = callPackage ./nix/pinned.nix { inherit python3Packages; };

  # On a Mac the program is a client of a daemon in a machine.
  needed = [
    git
  ]
  ++ lib.optionals isLinux [
    nftables
    # Any other architecture emulates the embedded guest, which is of x86_64.
    (if isx86_64 then qemu_kvm else qemu)
    util-linux
  ];
  # Those of the host, where it has them, fit its configuration and its daemon.
  wanted = lib.optionals isLinux [
    apt
    dpkg
    nix
    nodejs
  ];
in
python3Packages.buildPythonApplication (finalAttrs: {
  pname = "microvm-orchestrator";
  version = lib.head (
    builtins.match ".*__version__ = \"([^\"]+)\".*" (
      builtins.readFile ./microvm_orchestrator/__init__.py
    )
  );
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../guest/agent
      ../guest/embedded
      ../guest/protocol.md
      ../pytest.toml
      (lib.fileset.difference ../tests (
        lib.fileset.unions [
          ../tests/nix
          (lib.fileset.maybeMissing ../tests/nixos)
        ]
      ))
      ./microvm_orchestrator
      ./pyproject.toml
    ];
  };
  sourceRoot = "${finalAttrs.src.name}/python";

  # A service has a short PATH, and the daemon looks where distributions keep nft.
  postPatch = lib.optionalString isLinux ''
    substituteInPlace microvm_orchestrator/network/filters.py \
      --replace-fail 'PLACES = "' 'PLACES = "${
        lib.makeBinPath [
          nftables
          util-linux
        ]
      }:'
  '';

  build-system = [ python3Packages.hatchling ];

  dependencies = [
    pinned.asyncssh
    pinned.httpx2
    pinned.mcp
    python3Packages.anyio
    python3Packages.gitpython
    python3Packages.h11
    python3Packages.prometheus-client
    python3Packages.pydantic
    python3Packages.pyyaml
    python3Packages.rich
    python3Packages.sdnotify
    python3Packages.starlette
    python3Packages.structlog
    python3Packages.typer
    python3Packages.uvicorn
  ]
  ++ lib.optionals isLinux [
    python3Packages.libvirt
    python3Packages.pyroute2
  ];

  makeWrapperArgs = [
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath needed)
  ]
  ++ lib.optionals (wanted != [ ]) [
    "--suffix"
    "PATH"
    ":"
    (lib.makeBinPath wanted)
  ];

  nativeCheckInputs = [
    python3Packages.hypothesis
    python3Packages.jsonschema
    python3Packages.pytest-xdist
    python3Packages.pytestCheckHook
  ]
  ++ needed;
  doCheck = isLinux;
  preCheck = ''
    cd ..
    chmod -R u+w .
    export HOME=$TMPDIR
  '';
  # Each file of tests has one process to itself, so what they share they share as before.
  pytestFlags = [ "--dist=loadfile" ];
  enabledTestPaths = [ "tests/unit" ];
  disabledTestPaths = [
    # What these run in the place of a guest lies where distributions have it.
    "tests/unit/agents/test_program.py"
    "tests/unit/execs"
    "tests/unit/lifecycle/test_collect.py"
    "tests/unit/machine/test_agent.py"
    "tests/unit/machine/test_process.py"
    "tests/unit/machine/test_runner.py"
    "tests/unit/machine/test_ssh.py"
    "tests/unit/machine/test_ssh_machines.py"
    "tests/unit/machine/test_ssh_trees.py"
    "tests/unit/service/test_runner_images.py"
    "tests/unit/service/test_ssh_images.py"
    "tests/unit/test_machines.py"
    # These ask the apt of a distribution, or need a Claude Code from the registry.
    "tests/unit/cli/test_setup_token.py"
    "tests/unit/egress/test_claude_code.py"
    "tests/unit/images/test_packages.py"
    # Their other half is in the documentation.
    "tests/unit/cli/test_guides.py"
    "tests/unit/git/test_content.py"
    # It starts the program without the libraries that a build names in PYTHONPATH.
    "tests/unit/git/test_landing_under_fire.py"
  ];
  pythonImportsCheck = [ "microvm_orchestrator" ];
  __darwinAllowLocalNetworking = true;

  passthru = { inherit pinned; };

  meta = {
    description = "Daemon that gives AI agents disposable machines and one durable task graph";
    license = lib.licenses.mit;
    mainProgram = "microvm-orchestrator";
    platforms = lib.platforms.linux ++ lib.platforms.darwin;
  };
})

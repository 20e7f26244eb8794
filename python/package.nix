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

  # programs of the tests
  openssh,
}:
let
  inherit (stdenv.hostPlatform) isLinux isx86_64;
  pinned = callPackage ./nix/pinned.nix { inherit python3Packages; };

  # Those of any other architecture emulate the embedded guest, which is of x86_64.
  hypervisor = if isLinux && isx86_64 then qemu_kvm else qemu;
  needed = [
    git
    hypervisor
  ]
  ++ lib.optionals isLinux [
    nftables
    util-linux
  ];
  # Those of the host, where it has them, fit its configuration and its daemon.
  wanted = [
    nix
    nodejs
  ]
  ++ lib.optionals isLinux [
    apt
    dpkg
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
      (lib.fileset.fileFilter (file: !file.hasExt "nix") ../tests)
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
    python3Packages.rich
    python3Packages.sdnotify
    python3Packages.starlette
    python3Packages.structlog
    python3Packages.typer
    python3Packages.uvicorn
  ]
  ++ lib.optionals isLinux [ python3Packages.pyroute2 ];

  makeWrapperArgs = [
    "--prefix"
    "PATH"
    ":"
    (lib.makeBinPath needed)
    "--suffix"
    "PATH"
    ":"
    (lib.makeBinPath wanted)
  ];

  nativeCheckInputs = [
    openssh
    python3Packages.hypothesis
    python3Packages.jsonschema
    python3Packages.pytest-xdist
    python3Packages.pytestCheckHook
  ]
  ++ needed;
  preCheck = ''
    cd ..
    export HOME=$TMPDIR
  '';
  enabledTestPaths = [ "tests/unit" ];
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

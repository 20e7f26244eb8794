# Packages of Python: what they depend on is evaluated, and nothing is built.
{
  lib,
  mkDrv,
  hostTool,
}:
let
  inputs = [
    "build-system"
    "dependencies"
    "makeWrapperArgs"
    "nativeBuildInputs"
    "nativeCheckInputs"
    "postPatch"
    "preCheck"
    "sourceRoot"
    "src"
  ];

  build =
    args:
    let
      a = if lib.isFunction args then lib.fix args else args;
      meta = a.meta or { };
      program = meta.mainProgram or null;
    in
    mkDrv {
      name = "${a.pname}-${a.version}";
      inherit (a) version;
      inherit meta;
      passthru = a.passthru or { };
      env = lib.genAttrs (lib.filter (name: a ? ${name}) inputs) (name: toString a.${name});
      buildCommand = ''
        mkdir -p $out/bin
      ''
      + lib.optionalString (program != null) ''
        printf '#!/bin/sh\\necho "%s is a stand-in" >&2; exit 127\\n' ${program} >$out/bin/${program}
        chmod +x $out/bin/${program}
      '';
    };

  fetchPypi =
    {
      pname,
      version,
      hash,
      format ? "setuptools",
      ...
    }:
    assert
      builtins.convertHash {
        inherit hash;
        toHashFormat = "base16";
      } != "";
    mkDrv {
      name = "${pname}-${version}";
      env = { inherit format hash; };
      buildCommand = "touch $out";
    };
in
lib.genAttrs [
  "anyio"
  "cryptography"
  "editables"
  "gitpython"
  "h11"
  "hatchling"
  "hypothesis"
  "idna"
  "jsonschema"
  "libvirt"
  "opentelemetry-api"
  "prometheus-client"
  "pydantic"
  "pyjwt"
  "pyroute2"
  "pytest"
  "pytest-xdist"
  "pytestCheckHook"
  "python-multipart"
  "pyyaml"
  "rich"
  "sdnotify"
  "sse-starlette"
  "starlette"
  "structlog"
  "truststore"
  "typer"
  "typing-extensions"
  "typing-inspection"
  "uvicorn"
] (name: hostTool "python3-${name}" [ ] // { optional-dependencies.crypto = [ ]; })
// {
  supervisor = hostTool "supervisor" [
    "supervisord"
    "supervisorctl"
  ];
  buildPythonApplication = build;
  buildPythonPackage = build;
  inherit fetchPypi;
}

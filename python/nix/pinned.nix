# What nixpkgs has older than we need, or not at all: the very wheels of requirements.lock, which
# the tests of this repository ran with. All are pure Python.
{ lib, python3Packages }:
let
  inherit (python3Packages) buildPythonPackage fetchPypi;

  wheel =
    pname: version: hash: attrs:
    let
      module = lib.replaceStrings [ "-" ] [ "_" ] pname;
    in
    buildPythonPackage (
      {
        inherit pname version;
        format = "wheel";
        src = fetchPypi {
          pname = module;
          inherit version hash;
          format = "wheel";
          dist = "py3";
          python = "py3";
        };
        pythonImportsCheck = [ module ];
      }
      // attrs
    );

  pinned = {
    # Its interface changed from 1.x, and every minor release still changes parts that we use.
    mcp = wheel "mcp" "2.3.0" "sha256-3QxEwInRZFPorjGjh3oAVNeiMUyqqB9eBUG5sXNLI3c=" {
      dependencies = [
        pinned.httpx2
        pinned.mcp-types
        python3Packages.anyio
        python3Packages.jsonschema
        python3Packages.opentelemetry-api
        python3Packages.pydantic
        python3Packages.pyjwt
        python3Packages.python-multipart
        python3Packages.sse-starlette
        python3Packages.starlette
        python3Packages.typing-extensions
        python3Packages.typing-inspection
        python3Packages.uvicorn
      ]
      ++ python3Packages.pyjwt.optional-dependencies.crypto;
      meta = {
        description = "SDK of the Model Context Protocol";
        license = lib.licenses.mit;
      };
    };

    mcp-types = wheel "mcp-types" "2.3.0" "sha256-lo79va7fqwatrkDTeKNDlfEJDFkh1L48nN4oOq922R0=" {
      dependencies = [
        python3Packages.pydantic
        python3Packages.typing-extensions
      ];
      meta = {
        description = "Messages of the Model Context Protocol";
        license = lib.licenses.mit;
      };
    };

    httpx2 = wheel "httpx2" "2.16.2" "sha256-8FwTqt5MRdvxyQYGR6EFjwrK1iOY+tludBJp7bM9RvU=" {
      dependencies = [
        pinned.httpcore2
        python3Packages.anyio
        python3Packages.idna
        python3Packages.truststore
        python3Packages.typing-extensions
      ];
      # Newer than nixpkgs may have, for names that we do not ask for.
      pythonRelaxDeps = [ "idna" ];
      meta = {
        description = "HTTP client";
        license = lib.licenses.bsd3;
      };
    };

    httpcore2 = wheel "httpcore2" "2.16.2" "sha256-FgUa4qQvd2AHVD8y3pNJoxeyPSy7ThRWtLrA6IuHQZo=" {
      dependencies = [
        python3Packages.h11
        python3Packages.truststore
      ];
      meta = {
        description = "Connections of an HTTP client";
        license = lib.licenses.bsd3;
      };
    };

    # Exact: it parses what hostile guests send.
    asyncssh = wheel "asyncssh" "2.24.1" "sha256-/FYLT0O+DwxgLRhHg+Xjh29dJNkzolNZ2G5aUKX0b+U=" {
      dependencies = [
        python3Packages.cryptography
        python3Packages.typing-extensions
      ];
      # OpenSSL is that of nixpkgs, and mended there; the bound is for wheels that bring their own.
      pythonRelaxDeps = [ "cryptography" ];
      meta = {
        description = "SSH client and server on asyncio";
        license = lib.licenses.epl20;
      };
    };
  };
in
pinned

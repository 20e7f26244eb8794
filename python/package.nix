{
  lib,
  python3Packages,
}:
python3Packages.buildPythonApplication {
  pname = "microvm-orchestrator";
  version = "0.1.0";
  pyproject = true;
  src = ./.;
  build-system = [ python3Packages.hatchling ];
  meta = {
    mainProgram = "microvm-orchestrator";
    license = lib.licenses.mit;
  };
}

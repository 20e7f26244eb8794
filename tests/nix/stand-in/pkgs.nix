# A stand-in for nixpkgs' package set: every builder is a real derivation that runs with the
# host's /bin/bash and /usr/bin (needs `sandbox = false`), every "package" is a link farm onto
# the host's tools. Enough for NixOS modules to evaluate and for their text outputs to build.
{
  lib,
  system ? "x86_64-linux",
  overlays ? [ ],
}:
let
  hostPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

  # mkDrv: attrs -> package with overrideAttrs/override/outputs
  mkDrv =
    {
      name,
      buildCommand,
      passthru ? { },
      meta ? { },
      env ? { },
      version ? "0",
    }@args:
    let
      drv = derivation (
        removeAttrs env [
          "passthru"
          "meta"
          "nativeBuildInputs"
          "passAsFile"
          "__structuredAttrs"
          "unsafeDiscardReferences"
          "preferLocalBuild"
          "allowSubstitutes"
        ]
        // {
          name = lib.strings.sanitizeDerivationName name;
          inherit system;
          builder = "/bin/bash";
          PATH = lib.makeBinPath (env.nativeBuildInputs or [ ]) + ":" + hostPath;
          args = [
            "-c"
            ''
              set -e
              ${buildCommand}
              exit 0 # keep bash as the last process: nix kills a builder that closes its log pipe early
            ''
          ];
        }
        // lib.optionalAttrs (env ? passAsFile) { passAsFile = lib.concatStringsSep " " env.passAsFile; }
      );
      self =
        drv
        // {
          inherit
            name
            version
            meta
            passthru
            ;
          pname = name;
          outputs = [ "out" ];
          out = self;
          dev = self;
          lib = self;
          bin = self;
          man = self;
          doc = self;
          outputName = "out";
          outputSpecified = true;
          overrideAttrs =
            f:
            mkDrv (
              args
              // (
                let
                  r = (
                    if lib.isFunction f then
                      (
                        let
                          r1 = f (
                            args
                            // env
                            // {
                              configureFlags = [ ];
                              buildInputs = [ ];
                            }
                          );
                        in
                        if lib.isFunction r1 then f { } (args // env) else r1
                      )
                    else
                      f
                  );
                in
                lib.filterAttrs (n: _: n == "name" || n == "meta") r
              )
            );
          override = _: self;
        }
        // passthru;
    in
    self;

  runCommand =
    name: env: buildCommand:
    mkDrv (
      {
        inherit name buildCommand;
        env = env;
      }
      // lib.optionalAttrs (env ? passthru) { inherit (env) passthru; }
      // lib.optionalAttrs (env ? meta) { inherit (env) meta; }
    );

  # a package whose bin/ links to the host's programs of these names
  hostTool =
    name: bins:
    mkDrv {
      inherit name;
      meta.mainProgram = lib.head (bins ++ [ name ]);
      buildCommand = ''
        mkdir -p $out/bin $out/sbin $out/libexec
        for b in ${toString bins}; do
          p=$(command -v "$b" || true)
          if [ -n "$p" ]; then ln -s "$p" "$out/bin/$b"; else
            printf '#!/bin/sh\necho "%s: not on this host" >&2; exit 127\n' "$b" > "$out/bin/$b"; chmod +x "$out/bin/$b"; fi
        done
      '';
    };

  writeTextFile =
    {
      name,
      text,
      executable ? false,
      destination ? "",
      checkPhase ? "",
      meta ? { },
      ...
    }:
    mkDrv {
      inherit name meta;
      env = {
        inherit text;
        passAsFile = [ "text" ];
      };
      buildCommand = ''
        target="$out${destination}"
        mkdir -p "$(dirname "$target")"
        cp "$textPath" "$target"
        ${lib.optionalString executable ''chmod +x "$target"''}
      '';
    };

  json =
    name: value:
    writeTextFile {
      inherit name;
      text = builtins.toJSON value;
    };

  self = {
    _type = "pkgs";
    inherit
      lib
      system
      mkDrv
      runCommand
      writeTextFile
      hostTool
      ;
    path = ./.;
    stdenv = {
      hostPlatform = lib.systems.elaborate system;
      buildPlatform = lib.systems.elaborate system;
      targetPlatform = lib.systems.elaborate system;
      cc = hostTool "cc" [ "cc" ];
      mkDerivation =
        a:
        let
          a' = if lib.isFunction a then lib.fix (s: a s) else a;
        in
        mkDrv {
          name = a'.name or "${a'.pname}-${a'.version or "0"}";
          version = a'.version or "0";
          meta = a'.meta or { };
          passthru = a'.passthru or { };
          buildCommand = "mkdir -p $out";
        };
      shell = "/bin/bash";
    };
    config = { };
    stdenvNoCC = self.stdenv;
    buildPackages = self;
    pkgsBuildBuild = self;
    targetPackages = self;
    linux.target = "bzImage";
    runtimeShell = "/bin/bash";
    runCommandLocal = runCommand;
    writeText = name: text: writeTextFile { inherit name text; };
    writeTextDir =
      path: text:
      writeTextFile {
        name = baseNameOf path;
        inherit text;
        destination = "/${path}";
      };
    writeScript =
      name: text:
      writeTextFile {
        inherit name text;
        executable = true;
      };
    writeScriptBin =
      name: text:
      writeTextFile {
        inherit name text;
        executable = true;
        destination = "/bin/${name}";
        meta.mainProgram = name;
      };
    writeShellScript =
      name: text:
      writeTextFile {
        inherit name;
        executable = true;
        text = "#!/bin/bash\n${text}\n";
      };
    writeShellScriptBin =
      name: text:
      writeTextFile {
        inherit name;
        executable = true;
        destination = "/bin/${name}";
        text = "#!/bin/bash\n${text}\n";
        meta.mainProgram = name;
      };
    writeShellApplication =
      {
        name,
        text,
        runtimeInputs ? [ ],
        ...
      }:
      writeTextFile {
        inherit name;
        executable = true;
        destination = "/bin/${name}";
        meta.mainProgram = name;
        text = "#!/bin/bash\nset -o errexit -o nounset -o pipefail\nexport PATH=\"${lib.makeBinPath runtimeInputs}:$PATH\"\n${text}\n";
      };
    writers = {
      writePython3 =
        name: _: text:
        writeTextFile {
          inherit name;
          executable = true;
          text = "#!/usr/bin/env python3\n${if builtins.isString text then text else builtins.readFile text}";
        };
      writePython3Bin =
        name: _: text:
        writeTextFile {
          inherit name;
          executable = true;
          destination = "/bin/${name}";
          text = "#!/usr/bin/env python3\n${text}";
        };
      writeJSON = json;
      writeBash = self.writeShellScript;
    };
    replaceVars =
      src: vars:
      runCommand (baseNameOf src) { } ''
        cp ${src} $out; chmod u+w $out
        ${lib.concatStringsSep "\n" (
          lib.mapAttrsToList (k: v: "sed -i 's|@${k}@|${toString v}|g' $out") vars
        )}
      '';
    symlinkJoin =
      {
        name,
        paths,
        postBuild ? "",
        ...
      }:
      runCommand name { }
        "mkdir -p $out; for p in ${toString paths}; do cp -rs --no-preserve=mode $p/. $out/ 2>/dev/null || true; done";
    buildEnv = { name, paths, ... }: self.symlinkJoin { inherit name paths; };
    linkFarm =
      name: entries:
      runCommand name { } (
        "mkdir -p $out\n"
        + lib.concatMapStrings (e: "mkdir -p $(dirname $out/${e.name}); ln -s ${e.path} $out/${e.name}\n") (
          if lib.isAttrs entries then
            lib.mapAttrsToList (name: path: { inherit name path; }) entries
          else
            entries
        )
      );
    closureInfo =
      { rootPaths }:
      runCommand "closure-info" { }
        "mkdir -p $out; echo ${toString rootPaths} > $out/store-paths; touch $out/registration";
    writeClosure = paths: runCommand "closure" { } "printf '%s\\n' ${toString paths} > $out";
    callPackageWith =
      auto: f: args:
      let
        fn = if lib.isFunction f then f else import f;
      in
      fn (builtins.intersectAttrs (lib.functionArgs fn) auto // args);
    callPackage = self.callPackageWith self;
    formats = {
      json = { }: {
        type = lib.types.attrsOf lib.types.anything;
        generate = json;
      };
      toml = { }: {
        type =
          with lib.types;
          let
            v =
              nullOr (oneOf [
                bool
                int
                float
                str
                path
                (attrsOf v)
                (listOf v)
              ])
              // {
                description = "TOML value";
              };
          in
          v;
        generate =
          name: value:
          runCommand name { env = builtins.toJSON value; } ''
            printf '%s' "$env" | python3 -c 'import json,sys
            def s(v):
              return ("true" if v else "false") if isinstance(v,bool) else json.dumps(v) if not isinstance(v,dict) else "{ "+", ".join(f"{json.dumps(k)} = {s(x)}" for k,x in v.items() if x is not None)+" }"
            def w(d,p=()):
              t=[(k,v) for k,v in d.items() if isinstance(v,dict)]
              if p: print("["+".".join(json.dumps(x) for x in p)+"]")
              for k,v in d.items():
                if v is not None and not isinstance(v,dict): print(f"{json.dumps(k)} = {s(v)}")
              for k,v in t: w(v,p+(k,))
            w(json.load(sys.stdin))' > $out
          '';
      };
      yaml = { }: {
        type = lib.types.attrsOf lib.types.anything;
        generate = json;
      };
      ini = _: {
        type =
          with lib.types;
          attrsOf (
            attrsOf (
              nullOr (oneOf [
                bool
                int
                float
                str
              ])
            )
          );
        generate =
          name: v:
          writeTextFile {
            inherit name;
            text = lib.generators.toINI { } v;
          };
      };
    };
    makeWrapper = hostTool "makeWrapper" [ ];
    libxcrypt.enabledCryptSchemeIds = [
      "y"
      "gy"
      "7"
      "2b"
      "2y"
      "2a"
      "6"
    ];
    python3 = hostTool "python3" [ "python3" ] // {
      withPackages = _: self.python3;
    };
    python3Packages = import ./python.nix { inherit lib mkDrv hostTool; };
    mkShell =
      {
        packages ? [ ],
        inputsFrom ? [ ],
        ...
      }:
      mkDrv {
        name = "nix-shell";
        env.inputs = toString (packages ++ inputsFrom);
        buildCommand = "mkdir -p $out";
      };
    mkShellNoCC = self.mkShell;
    # There is none on this host, and who builds with Nix has a real one.
    nixfmt = self.writeShellScriptBin "nixfmt" "exit 0";
    nixfmt-tree = self.writeShellScriptBin "treefmt" "exit 0";
    # What nix-darwin asks of its builder before that is built.
    darwin.linux-builder = hostTool "create-builder" [ ] // {
      override = _: self.darwin.linux-builder;
      nixosConfig = {
        virtualisation.cores = 1;
        nixpkgs.hostPlatform.system = lib.replaceString "-darwin" "-linux" system;
        networking.hostName = "nixos";
      };
    };
    # What it packs is not booted: the last word but one is the file, the last one the folder.
    erofs-utils = self.writeShellScriptBin "mkfs.erofs" ''tar -cf "''${@: -2:1}" "''${@: -1}"'';
    bashInteractive = hostTool "bash-interactive" [ "bash" ] // {
      shellPath = "/bin/bash";
    };
    bash = hostTool "bash" [ "bash" ] // {
      shellPath = "/bin/bash";
    };
    shadow = hostTool "shadow" [
      "nologin"
      "useradd"
    ];
    qemu_kvm =
      hostTool "qemu-kvm" [
        "qemu-system-x86_64"
        "qemu-img"
      ]
      // {
        configureFlags = [ ];
      };
    qemu =
      hostTool "qemu" [
        "qemu-system-x86_64"
        "qemu-system-aarch64"
        "qemu-img"
      ]
      // {
        configureFlags = [ ];
      };
    systemd =
      hostTool "systemd" [
        "systemctl"
        "systemd-notify"
        "busctl"
      ]
      // {
        util-linux = self.util-linux;
      };
    nix =
      hostTool "nix" [
        "nix"
        "nix-build"
        "nix-store"
        "nix-instantiate"
      ]
      // {
        version = "2.34.8";
      };
  }
  //
    lib.genAttrs
      [
        "coreutils"
        "coreutils-full"
        "findutils"
        "gnugrep"
        "gnused"
        "gawk"
        "gnutar"
        "gzip"
        "iproute2"
        "iptables"
        "nftables"
        "util-linux"
        "e2fsprogs"
        "xfsprogs"
        "btrfs-progs"
        "dosfstools"
        "socat"
        "jq"
        "curl"
        "openssh"
        "git"
        "kmod"
        "netcat"
        "procps"
        "virtiofsd"
        "cloud-hypervisor"
        "firecracker"
        "crosvm"
        "kvmtool"
        "stratovirt"
        "alioth"
        "vfkit"
        "libusb1"
        "qemu-utils"
        "qemu_test"
        "squashfs-tools-ng"
        "bubblewrap"
        "time"
        "parted"
        "libguestfs"
        "libguestfs-appliance"
        "waypipe"
        "wayland-proxy-virtwl"
        "p7zip"
        "shellcheck"
        "libvirt"
        "dnsmasq"
        "nats-server"
        "prometheus-node-exporter"
        "vim"
        "tmux"
        "claude-code"
        "codex"
        "opencode"
        "hello"
        "fish"
        "xonsh"
        "zsh"
        "apt"
        "dpkg"
        "libfaketime"
        "nodejs"
        "gnumake"
        "podman"
        "pyright"
        "ripgrep"
        "ruff"
      ]
      (
        n:
        hostTool n (
          ({
            coreutils = [
              "ls"
              "cp"
              "mv"
              "rm"
              "mkdir"
              "chmod"
              "chown"
              "cat"
              "touch"
              "truncate"
              "sleep"
              "uname"
              "ln"
              "readlink"
              "basename"
              "dirname"
              "id"
              "nproc"
              "sort"
              "head"
              "tail"
            ];
            coreutils-full = [ "chown" ];
            findutils = [
              "find"
              "xargs"
            ];
            gnugrep = [ "grep" ];
            gnused = [ "sed" ];
            gawk = [ "awk" ];
            gnutar = [ "tar" ];
            iproute2 = [
              "ip"
              "bridge"
              "ss"
            ];
            util-linux = [
              "mount"
              "umount"
              "waitpid"
              "nsenter"
              "prlimit"
              "setpriv"
              "lsblk"
            ];
            e2fsprogs = [
              "mkfs.ext4"
              "mkfs.ext2"
              "e2label"
              "chattr"
            ];
            netcat = [ "nc" ];
            openssh = [
              "ssh"
              "ssh-keygen"
              "sshd"
            ];
            kmod = [ "modprobe" ];
            apt = [ "apt-get" ];
            dpkg = [ "dpkg-deb" ];
            gnumake = [ "make" ];
            libfaketime = [ "faketime" ];
            nftables = [ "nft" ];
            nodejs = [
              "node"
              "npm"
            ];
            ripgrep = [ "rg" ];
            procps = [
              "ps"
              "pkill"
            ];
            xfsprogs = [ "mkfs.xfs" ];
            dosfstools = [ "mkfs.vfat" ];
            qemu-utils = [ "qemu-img" ];
          }).${n} or [ n ]
        )
      );
in
lib.foldl' (prev: o: prev // o prev prev) self overlays

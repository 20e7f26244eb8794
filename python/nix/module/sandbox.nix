# What systemd keeps the units from: all of them, and the small programs among them.
rec {
  every = {
    ProtectSystem = "strict";
    ProtectClock = true;
    ProtectHostname = true;
    ProtectKernelLogs = true;
    ProtectKernelModules = true;
    ProtectKernelTunables = true;
    ProtectProc = "invisible";
    LockPersonality = true;
    RestrictNamespaces = true;
    RestrictRealtime = true;
    RestrictSUIDSGID = true;
    SystemCallArchitectures = "native";
  };

  # What runs no machine; it has no capability unless its unit says so.
  small = every // {
    ProtectHome = true;
    ProtectControlGroups = true;
    PrivateDevices = true;
    CapabilityBoundingSet = "";
    MemoryDenyWriteExecute = true;
    SystemCallFilter = [
      "@system-service"
      "~@privileged @resources"
    ];
  };

  # What asks the daemon at its socket, and nobody else.
  client = small // {
    NoNewPrivileges = true;
    PrivateTmp = true;
    PrivateNetwork = true;
    RestrictAddressFamilies = "AF_UNIX";
  };

  # What is, or starts, a hypervisor.
  hypervisor = every // {
    NoNewPrivileges = true;
    PrivateTmp = true;
    PrivateMounts = true;
    SystemCallErrorNumber = "EPERM";
    SystemCallFilter = [
      # QEMU shuts itself in further.
      "@system-service seccomp"
      "~@privileged @resources"
    ];
    UMask = "0077";
  };
}

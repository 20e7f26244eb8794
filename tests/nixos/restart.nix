# While a run is under way the daemon is restarted, killed, and the host switched to another
# configuration of it: the run's machine never notices.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-restart";
  nodes = {
    machine =
      { nodes, ... }:
      {
        imports = [ (lib.modules.importApply ./parts/guest.nix { inherit self; }) ];
        environment.etc."changed".source = nodes.changed.system.build.toplevel;
        system.switch.enable = true;
      };
    # Never started: `machine` is switched to it.
    changed = {
      imports = [ (lib.modules.importApply ./parts/guest.nix { inherit self; }) ];
      networking.hostName = "machine";
      services.microvm-orchestrator.settings.log.level = "debug";
      system.switch.enable = true;
    };
  };

  testScript = ''
    import json

    # As QEMU is called, and as a runner of microvm.nix calls it.
    MACHINES = "pgrep --euid=microvm --full '^(/.*/)?(qemu-system|microvm@)'"
    UNIT = "microvm-orchestrator.service"
    # It goes on when it is let go.
    SCRIPT = (
        "set -e; echo begun; until [ -e /tmp/gate ]; do sleep 1; done;"
        " cat /proc/sys/kernel/random/boot_id >boot; git add boot; git commit -q -m Made"
    )


    def shown(name):
        return machine.succeed(f"systemctl show --value --property={name} {UNIT}").strip()


    def inside(words):
        return machine.succeed(f"microvm-orchestrator machine exec -n {guest} -- {words}")


    def state():
        return json.loads(machine.succeed("microvm-orchestrator task get it --json"))["state"]


    machine.start()
    machine.wait_for_unit("microvm-orchestrator-repos.service")
    machine.succeed("take-in-guest")
    machine.succeed(
        "microvm-orchestrator run start --repo tools --image slot --key it"
        f" --script '{SCRIPT}'"
    )
    machine.wait_until_succeeds("microvm-orchestrator run output it | grep begun", timeout=1800)
    told = json.loads(machine.succeed("microvm-orchestrator run get it --json"))
    guest = told["run"]["machine_id"]
    boot_id = inside("cat /proc/sys/kernel/random/boot_id")
    hypervisor = machine.succeed(MACHINES)

    with subtest("a daemon that is restarted adopts the machine"):
        before = shown("MainPID")
        machine.succeed(f"systemctl restart {UNIT}")
        assert shown("MainPID") != before
        assert inside("cat /proc/sys/kernel/random/boot_id") == boot_id
        assert state() == "running", state()

    with subtest("so does one that comes after a crash"):
        before = shown("MainPID")
        machine.succeed(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
        machine.wait_until_succeeds(
            f"test $(systemctl show --value --property=MainPID {UNIT}) != {before}"
            f" && systemctl is-active {UNIT}"
        )
        assert inside("cat /proc/sys/kernel/random/boot_id") == boot_id

    with subtest("and the one of another configuration"):
        before = shown("MainPID")
        machine.succeed("/etc/changed/bin/switch-to-configuration test")
        machine.wait_for_unit(UNIT)
        assert shown("MainPID") != before
        words = machine.succeed(f"cat /proc/{shown('MainPID')}/cmdline").split("\0")
        settings = words[words.index("--config") + 1]
        assert "debug" in machine.succeed(f"microvm-orchestrator config show --config {settings}")
        assert inside("cat /proc/sys/kernel/random/boot_id") == boot_id
        assert machine.succeed(MACHINES) == hypervisor

    with subtest("one that is stopped leaves the machine alone, and is started by its next client"):
        machine.succeed(f"systemctl stop {UNIT}")
        assert shown("ActiveState") == "inactive"
        assert machine.succeed(MACHINES) == hypervisor
        assert inside("cat /proc/sys/kernel/random/boot_id") == boot_id
        machine.wait_for_unit(UNIT)

    with subtest("unless its socket is stopped too"):
        machine.succeed(f"systemctl stop microvm-orchestrator.socket {UNIT}")
        machine.fail("microvm-orchestrator whoami")
        assert shown("ActiveState") == "inactive"
        assert machine.succeed(MACHINES) == hypervisor
        machine.succeed(f"systemctl start {UNIT}")
        assert inside("cat /proc/sys/kernel/random/boot_id") == boot_id

    with subtest("the run ends as if nothing had happened"):
        inside("touch /tmp/gate")
        machine.succeed("microvm-orchestrator task wait it --timeout-s 900")
        made = machine.succeed("setpriv --reuid=microvm git -C /srv/git/tools.git show main:boot")
        assert made == boot_id, (made, boot_id)
        machine.wait_until_fails(MACHINES)
  '';
}

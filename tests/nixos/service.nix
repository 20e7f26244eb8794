# Installed, it is reached by those who may, comes back whatever ends it, and says what it does.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-service";
  nodes.machine = lib.modules.importApply ./parts/host.nix { inherit self; };

  testScript = ''
    import json

    SOCKET = "/run/microvm-orchestrator/socket"
    UNIT = "microvm-orchestrator.service"


    def as_user(name, words):
        drop = f"setpriv --reuid={name} --regid=$(id -g {name}) --init-groups"
        return f"HOME=/home/{name} {drop} {words}"


    def shown(name):
        return machine.succeed(f"systemctl show --value --property={name} {UNIT}").strip()


    start_all()
    machine.wait_for_unit(UNIT)

    with subtest("members of the clients' group get in, and nobody else"):
        owners = machine.succeed(f"stat --format=%U:%G:%a {SOCKET}").strip()
        assert owners == "microvm:microvm-orchestrator:660", owners
        owners = machine.succeed("stat --format=%U:%a /var/lib/microvm-orchestrator").strip()
        assert owners == "microvm:700", owners
        assert "operator" in machine.succeed(as_user("alice", "microvm-orchestrator whoami"))
        machine.fail(as_user("bob", f"test -w {SOCKET}"))
        machine.fail(as_user("bob", "microvm-orchestrator whoami"))
        assert "admin" in machine.succeed("microvm-orchestrator whoami")

    with subtest("the repository that was declared is registered"):
        machine.wait_for_unit("microvm-orchestrator-repos.service")
        assert "/srv/git/tools.git" in machine.succeed("microvm-orchestrator repo get tools")

    with subtest("what it says is in the journal, a line an event"):
        pid = shown("MainPID")
        said = machine.succeed(f"journalctl --unit={UNIT} --output=json --no-pager")
        entries = [json.loads(line) for line in said.splitlines()]
        own = [entry for entry in entries if entry.get("_PID") == pid]
        assert own
        assert {entry["_SYSTEMD_UNIT"] for entry in own} == {UNIT}
        assert all("event" in json.loads(entry["MESSAGE"]) for entry in own)

    with subtest("a task that a worker has in hand stays with it through a restart"):
        machine.succeed("microvm-orchestrator task submit Parse --key parse")
        machine.succeed("microvm-orchestrator task claim --worker w --lease-s 900")
        before = shown("MainPID")
        machine.succeed(f"systemctl restart {UNIT}")
        assert shown("MainPID") != before
        machine.succeed("microvm-orchestrator task complete parse --token 1 --worker w")
        machine.succeed("microvm-orchestrator task wait parse --timeout-s 60")

    with subtest("one that is killed is back"):
        before = shown("MainPID")
        machine.succeed(f"kill -KILL {before}")
        machine.wait_until_succeeds(
            f"test $(systemctl show --value --property=MainPID {UNIT}) != {before}"
            f" && systemctl is-active {UNIT}"
        )
        machine.succeed("microvm-orchestrator whoami")

    with subtest("one that was stopped is started by its next client"):
        machine.succeed(f"systemctl stop {UNIT}")
        assert shown("ActiveState") == "inactive"
        machine.succeed("systemctl is-active microvm-orchestrator.socket")
        assert "admin" in machine.succeed("microvm-orchestrator whoami")
        machine.wait_for_unit(UNIT)

    with subtest("one that hangs is ended by the watchdog, and is back"):
        before = shown("MainPID")
        machine.succeed(f"kill -STOP {before}")
        machine.wait_until_succeeds(
            f"test $(systemctl show --value --property=MainPID {UNIT}) != {before}"
            f" && systemctl is-active {UNIT}"
        )
        assert "atchdog timeout" in machine.succeed(f"journalctl --unit={UNIT} --no-pager")
        machine.succeed("microvm-orchestrator task get parse")
  '';
}

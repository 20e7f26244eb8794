# A store of the previous schema is brought up by the release that finds it, and keeps its tasks.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-upgrade";
  nodes.machine = lib.modules.importApply ./parts/host.nix { inherit self; };

  testScript = ''
    UNIT = "microvm-orchestrator.service"
    STORE = "/var/lib/microvm-orchestrator/store.db"


    def sql(*statements):
        """Run statements on the store, and give the first row of each."""
        opened = f"import sqlite3; store = sqlite3.connect('{STORE}'); "
        lines = "; ".join(f"print(store.execute('{each}').fetchone())" for each in statements)
        return machine.succeed(f'python3 -c "{opened}{lines}; store.commit()"')


    def schema():
        return sql("PRAGMA user_version").strip("(,)\n")


    start_all()
    machine.wait_for_unit(UNIT)
    machine.succeed("microvm-orchestrator task submit First --key first")
    machine.succeed("microvm-orchestrator task submit Then --key then --depends-on first")

    with subtest("a store of the previous schema is brought up"):
        # The socket too, or the next client starts the daemon.
        machine.succeed(f"systemctl stop microvm-orchestrator.socket {UNIT}")
        newest = schema()
        # What the last step did is undone.
        assert newest == "2", newest
        sql("ALTER TABLE gate DROP COLUMN whole", "PRAGMA user_version = 1")
        assert schema() == "1"
        machine.succeed(f"chown microvm:microvm {STORE}*")
        machine.succeed(f"systemctl start {UNIT}")
        assert schema() == newest

    with subtest("its tasks are there, and go on"):
        assert "blocked" in machine.succeed("microvm-orchestrator task get then")
        machine.succeed("microvm-orchestrator task claim --worker w")
        machine.succeed("microvm-orchestrator task complete first --token 1 --worker w")
        assert "ready" in machine.succeed("microvm-orchestrator task get then")
        # Of what else there is on this host it may say what it likes.
        machine.succeed("(microvm-orchestrator doctor || true) | grep -qE '^ok +store '")

    with subtest("a store of a newer release is refused, and not touched"):
        machine.succeed(f"systemctl stop microvm-orchestrator.socket {UNIT}")
        sql("PRAGMA user_version = 99")
        machine.succeed(f"chown microvm:microvm {STORE}*")
        machine.fail(f"systemctl start {UNIT}")
        assert schema() == "99"
        assert "schema 99" in machine.succeed(f"journalctl --unit={UNIT} --no-pager")
  '';
}

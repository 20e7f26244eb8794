# The host loses its power while a run is under way: what was acknowledged is there afterwards, the
# repository is whole, nothing of the machine is left, and the task comes to an end.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-reboot";
  nodes.machine = lib.modules.importApply ./parts/guest.nix { inherit self; };

  testScript = ''
    import json

    # As QEMU is called, and as a runner of microvm.nix calls it.
    MACHINES = "pgrep --euid=microvm --full '^(/.*/)?(qemu-system|microvm@)'"
    GIT = "setpriv --reuid=microvm git -C /srv/git/tools.git"
    # The first attempt stands still; what is committed by then is not on the branch.
    SCRIPT = (
        "set -e; echo made >made; git add made; git commit -q -m Made; echo begun; exec sleep 3600"
    )


    def ask(words):
        return json.loads(machine.succeed(f"microvm-orchestrator {words} --json"))


    machine.start()
    machine.wait_for_unit("microvm-orchestrator-repos.service")
    machine.succeed("take-in-guest")
    machine.succeed("microvm-orchestrator task submit Later --key later")
    tip = machine.succeed(f"{GIT} rev-parse main")
    machine.succeed(
        "microvm-orchestrator run start --repo tools --image slot --key it"
        f" --script '{SCRIPT}'"
    )
    machine.wait_until_succeeds("microvm-orchestrator run output it | grep begun", timeout=1800)
    # What the tests themselves wrote; the daemon syncs what it acknowledges.
    machine.succeed("sync")

    machine.crash()
    machine.start()
    machine.wait_for_unit("microvm-orchestrator.service")

    with subtest("what was acknowledged is there"):
        assert ask("task get later")["state"] == "ready"
        # Of what else there is on this host it may say what it likes.
        machine.succeed("(microvm-orchestrator doctor || true) | grep -qE '^ok +store '")

    with subtest("nothing was merged, and the repository is whole"):
        assert machine.succeed(f"{GIT} rev-parse main") == tip
        machine.succeed(f"{GIT} fsck --strict")

    with subtest("the machine that was lost is cleared away, and the task can be cancelled"):
        machine.execute("microvm-orchestrator task cancel it")
        status, _ = machine.execute("microvm-orchestrator task wait it --timeout-s 900")
        assert status in (8, 9), status
        machine.wait_until_fails(MACHINES)

    with subtest("the next run is served"):
        machine.succeed(
            "microvm-orchestrator run start --repo tools --image slot --key next"
            " --script 'echo again'"
        )
        machine.succeed("microvm-orchestrator task wait next --timeout-s 1800", timeout=1900)
        assert "again" in machine.succeed("microvm-orchestrator run output next")
  '';
}

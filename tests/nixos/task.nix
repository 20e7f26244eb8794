# A task from its submission to the merge: a script in a machine of its own, asked for by a client.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-task";
  nodes.machine = lib.modules.importApply ./parts/guest.nix { inherit self; };

  testScript = ''
    import json

    # As QEMU is called, and as a runner of microvm.nix calls it.
    MACHINES = "pgrep --euid=microvm --full '^(/.*/)?(qemu-system|microvm@)'"
    SCRIPT = "set -e; echo by the machine >made; git add made; git commit -q -m Made; echo did it"
    CLIENT = "HOME=/home/alice setpriv --reuid=alice --regid=$(id -g alice) --init-groups"


    def run():
        return json.loads(machine.succeed("microvm-orchestrator run get it --json"))["run"]


    start_all()
    machine.wait_for_unit("microvm-orchestrator-repos.service")
    machine.succeed("take-in-guest")

    with subtest("the commits of a script are on the branch"):
        machine.succeed(
            f"{CLIENT} microvm-orchestrator run start --repo tools --image slot --key it"
            f" --script '{SCRIPT}'"
        )
        machine.succeed("microvm-orchestrator task wait it --timeout-s 1800", timeout=1900)
        assert "did it" in machine.succeed("microvm-orchestrator run output it")
        assert run()["merge"]["state"] == "merged", run()
        made = machine.succeed("setpriv --reuid=microvm git -C /srv/git/tools.git show main:made")
        assert made == "by the machine\n", made

    with subtest("nothing is left of its machine"):
        listed = json.loads(machine.succeed("microvm-orchestrator machine list --json"))
        assert listed["items"] == []
        machine.fail(MACHINES)

    with subtest("a script that fails says so, and merges nothing"):
        machine.succeed(
            "microvm-orchestrator run start --repo tools --image slot --key other"
            " --script 'echo why >&2; exit 3'"
        )
        status, _ = machine.execute("microvm-orchestrator task wait other", timeout=1900)
        assert status == 8, status
        assert "why" in machine.succeed("microvm-orchestrator run output other 2>&1")
        count = "setpriv --reuid=microvm git -C /srv/git/tools.git rev-list --count main"
        assert machine.succeed(count) == "2\n"
  '';
}

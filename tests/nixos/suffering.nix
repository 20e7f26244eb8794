# A machine has less of a processor, and stands still, by faults that outlive the daemon; both are
# seen in its control group and in what its guest gets done.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-suffering";
  nodes.machine = lib.modules.importApply ./parts/guest.nix { inherit self; };

  testScript = ''
    import json
    import shlex

    UNIT = "microvm-orchestrator.service"
    GROUPS = f"/sys/fs/cgroup/system.slice/{UNIT}/microvm-orchestrator"
    SHARE = 0.2
    SLOW = f"{round(SHARE * 100_000)} 100000\n"
    # What a machine with one processor may take.
    USUAL = "200000 100000\n"
    # Counts for as long as it has, and says how far it came.
    COUNT = """
    echo begun
    timeout 20 sh -c 'n=0; trap "echo \\$n; exit" TERM; while :; do n=$((n+1)); done' || :
    """


    def ask(words):
        return json.loads(machine.succeed(f"microvm-orchestrator {words} --json"))


    def inside(script):
        words = "microvm-orchestrator machine exec -n --timeout-s 300 box"
        return f"{words} --script {shlex.quote(script)}"


    def refused(words):
        status, said = machine.execute(f"microvm-orchestrator {words} --json 2>&1")
        assert status, said
        return said


    def inject(words):
        fault = ask(f"fault inject {words} --machine box")
        assert fault["state"] == "active", fault
        return fault["fault_id"]


    def heal(fault):
        assert ask(f"fault heal {fault}")["state"] == "healed"


    def told(name):
        return machine.succeed(f"cat {GROUPS}/{box}/{name}")


    def share_of(command):
        """Write what says how long the machine has used a processor, and how long it might have."""
        used = f"sed -n 's/^usage_usec //p' {GROUPS}/{box}/cpu.stat"
        begin = f"u=$({used}); t=$(date +%s%6N)"
        return f"{begin}; {command}; echo $(($({used}) - u)) $(($(date +%s%6N) - t))"


    def share_at_rest():
        used, passed = map(int, machine.succeed(share_of("sleep 3")).split())
        return used / passed


    def counted():
        """Let the guest count as fast as it can, and tell how far it came with which share."""
        said = machine.succeed(
            # It ends where the command does before its time.
            f"{inside(COUNT)} >/run/counted &"
            " until grep -q begun /run/counted; do kill -0 $!; sleep 0.1; done;"
            f" {share_of('sleep 10')}; wait $!; cat /run/counted"
        )
        used, passed, _, far = said.split()
        share = int(used) / int(passed)
        print(f"the guest counted to {far} with {share:.3f} of a processor")
        return int(far), share


    def state():
        now = ask("machine get box")
        return now["state"], now["reason"]


    def restart_daemon():
        machine.succeed(f"systemctl restart {UNIT}")


    def kill_daemon():
        before = machine.succeed(f"systemctl show --value --property=MainPID {UNIT}").strip()
        machine.succeed(f"systemctl kill --kill-whom=main --signal=KILL {UNIT}")
        machine.wait_until_succeeds(
            f"test $(systemctl show --value --property=MainPID {UNIT}) != {before}"
            f" && systemctl is-active {UNIT}"
        )


    machine.start()
    machine.wait_for_unit(UNIT)
    machine.succeed("take-in-guest")
    ask("machine define box --image slot")
    machine.succeed("microvm-orchestrator machine start box", timeout=1900)
    box = ask("machine get box")["machine_id"]

    with subtest("a machine has limits in a group of its own"):
        assert told("cpu.max") == USUAL
        assert int(told("memory.max")) > 256 << 20
        assert int(told("pids.max")) > 0
        whole, share = counted()
        assert share > 2 * SHARE, share

    with subtest("one that is slow has as much of a processor as was said, and does less"):
        slow = inject(f"slow_cpu --cpu-share {SHARE}")
        assert told("cpu.max") == SLOW
        far, share = counted()
        assert SHARE / 2 < share < 1.1 * SHARE, share
        assert far < whole / 2, (far, whole)

    with subtest("of two shares the smaller one counts"):
        other = inject("slow_cpu --cpu-share 0.3333333")
        assert told("cpu.max") == SLOW
        heal(slow)
        assert told("cpu.max") == "33333 100000\n"
        slow = inject(f"slow_cpu --cpu-share {SHARE}")
        heal(other)
        assert told("cpu.max") == SLOW

    with subtest("it is slow under the next daemon, and under the one after a crash"):
        for end in (restart_daemon, kill_daemon):
            end()
            assert ask(f"fault get {slow}")["state"] == "active"
            assert told("cpu.max") == SLOW
        assert counted()[1] < 1.1 * SHARE

    with subtest("a daemon that starts finds what somebody has changed meanwhile"):
        machine.succeed(
            f"systemctl stop microvm-orchestrator.socket {UNIT}",
            f"echo max >{GROUPS}/{box}/cpu.max",
            f"systemctl start microvm-orchestrator.socket {UNIT}",
        )
        machine.wait_until_succeeds(f"grep -x '{SLOW.strip()}' {GROUPS}/{box}/cpu.max")
        assert ask(f"fault get {slow}")["state"] == "active"

    with subtest("so is the machine when it is started again"):
        machine.succeed("microvm-orchestrator machine stop box")
        machine.wait_until_fails(f"test -e {GROUPS}/{box}")
        machine.succeed("microvm-orchestrator machine start box", timeout=1900)
        assert told("cpu.max") == SLOW

    with subtest("once it is healed it is as fast as before"):
        heal(slow)
        assert told("cpu.max") == USUAL
        far, share = counted()
        assert share > 2 * SHARE, share
        assert far > whole / 2, (far, whole)

    with subtest("what heals while there is no daemon is healed by the next one"):
        short = inject(f"slow_cpu --cpu-share {SHARE} --ttl-s 5")
        machine.succeed(
            f"systemctl stop microvm-orchestrator.socket {UNIT}",
            "sleep 6",
            f"systemctl start microvm-orchestrator.socket {UNIT}",
        )
        machine.wait_until_succeeds(f"grep -x '{USUAL.strip()}' {GROUPS}/{box}/cpu.max")
        assert ask(f"fault get {short}")["state"] == "healed"

    with subtest("a machine that a fault lets stand still does nothing, whoever asks"):
        pause = inject("pause")
        assert state() == ("paused", "a fault lets it stand still")
        assert share_at_rest() < 0.05
        assert "state-forbids" in refused("machine resume box")
        assert "state-forbids" in refused("machine exec box --script true")

    with subtest("so it does under the next daemon, and under the one after a crash"):
        for end in (restart_daemon, kill_daemon):
            end()
            assert ask(f"fault get {pause}")["state"] == "active"
            assert state() == ("paused", "a fault lets it stand still")
            assert share_at_rest() < 0.05

    with subtest("once it is healed it goes on, with the right time"):
        heal(pause)
        assert state() == ("running", "")
        early, late, seen = machine.succeed(f"date +%s; {inside('date +%s')}; date +%s").split()
        assert int(early) - 1 <= int(late) <= int(seen) + 1, (early, late, seen)

    with subtest("a machine that is stopped leaves no group behind"):
        machine.succeed("microvm-orchestrator machine stop box")
        machine.wait_until_fails(f"test -e {GROUPS}/{box}")
        machine.succeed("microvm-orchestrator machine delete box")
  '';
}

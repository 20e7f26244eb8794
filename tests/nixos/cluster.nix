# A cluster on a network of the kernel's is cut apart, slowed down and healed, by a service that has
# the one capability which that takes and no other.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-cluster";
  nodes.machine =
    { pkgs, ... }:
    {
      imports = [ (lib.modules.importApply ./parts/guest.nix { inherit self; }) ];
      services.microvm-orchestrator.settings.networks.kind = "kernel";
      # To look at what the daemon has made.
      environment.systemPackages = [ pkgs.nftables ];
    };

  testScript = ''
    import json
    import re
    import shlex

    UNIT = "microvm-orchestrator.service"
    CLIENT = "HOME=/home/alice setpriv --reuid=alice --regid=$(id -g alice) --init-groups"
    # As QEMU is called, and as a runner of microvm.nix calls it.
    MACHINES = "pgrep --euid=microvm --full '^(/.*/)?(qemu-system|microvm@)'"
    # CAP_NET_ADMIN is the twelfth.
    NET_ADMIN = 1 << 12
    ADDRESSES = {"one": ("10.9.0.11", "fd09::11"), "two": ("10.9.0.12", "fd09::12")}
    TOPOLOGY = """
    cluster_name: pair
    image: slot
    network: {name: lan, subnet: 10.9.0.0/24, subnet6: "fd09::/64"}
    ssh: {connect_timeout_s: 300}
    nodes:
    - {name: one, ip: 10.9.0.11, ip6: "fd09::11"}
    - {name: two, ip: 10.9.0.12, ip6: "fd09::12"}
    """
    # What goes on by itself: timers, and what was counted.
    PASSING = r"_timer +[\d.]+|packets \d+ bytes \d+"
    DELAY_S = 0.3


    def asked(words):
        return f"{CLIENT} microvm-orchestrator {words} --json"


    def ask(words):
        return json.loads(machine.succeed(asked(words)))


    def inside(node, script):
        run = f"node exec pair {node} --timeout-s 120 --script {shlex.quote(script)}"
        return machine.succeed(f"{CLIENT} microvm-orchestrator {run}")


    def reached(node, tries):
        """Name the addresses of the other node that answer one, asked so many times."""
        [other] = ADDRESSES.keys() - {node}
        # A first packet may be lost by who has just given up asking where its neighbour is.
        ping = f"for i in {' '.join(map(str, range(tries)))}; do ping -c 1 -W 1"
        asked = [f"({ping} {to} >&2 && echo {to} && break; done) &" for to in ADDRESSES[other]]
        return sorted(inside(node, f"{' '.join(asked)} wait").split())


    def answers(node, count):
        """Tell how long each answer of the other node took, in milliseconds."""
        [other] = ADDRESSES.keys() - {node}
        said = inside(node, f"ping -c {count} -i 0.2 -W 3 {ADDRESSES[other][0]} || :")
        return [float(took) for took in re.findall(r"time=([0-9.]+) ms", said)]


    def made_for(what):
        """Name the interface that the daemon has made for something."""
        links = json.loads(machine.succeed("ip -json link show"))
        [name] = [each["ifname"] for each in links if what in each.get("ifalias", "").split()]
        return name


    def kernel():
        """Say all that there is of links, queues and rules."""
        said = machine.succeed("ip -details link show", "tc qdisc show", "nft list ruleset")
        return re.sub(PASSING, "", said)


    def cut_in_the_kernel():
        told = json.loads(machine.succeed(f"nft -j list table bridge {bridge}"))
        sets = [each["set"] for each in told["nftables"] if "set" in each]
        return {tuple(pair["concat"]) for each in sets for pair in each.get("elem", ())}


    start_all()
    machine.wait_for_unit(UNIT)
    machine.succeed("take-in-guest")
    empty = kernel()

    with subtest("nodes of a client's cluster reach each other by a bridge of the kernel's"):
        machine.succeed(f"printf %s {shlex.quote(TOPOLOGY)} | {asked('cluster define --file -')}")
        machine.succeed(asked("cluster start pair"), timeout=1900)
        bridge, one, two = (made_for(what) for what in ("network", "10.9.0.11/24", "10.9.0.12/24"))
        assert reached("one", 9) == sorted(ADDRESSES["two"])
        assert reached("two", 9) == sorted(ADDRESSES["one"])
        whole = kernel()

    with subtest("the daemon can change networks and nothing else, and its machines not even that"):
        pid = machine.succeed(f"systemctl show --value --property=MainPID {UNIT}").strip()
        hypervisors = machine.succeed(MACHINES).split()
        assert len(hypervisors) == 2, hypervisors
        for number, capabilities in [(pid, NET_ADMIN), *((each, 0) for each in hypervisors)]:
            status = machine.succeed(f"cat /proc/{number}/status")
            told = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
            held = {int(told[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")}
            assert held == {capabilities}, (number, told)
            assert int(told["CapBnd"], 16) == NET_ADMIN, told["CapBnd"]
            assert told["NoNewPrivs"] == "1"
            assert told["Seccomp"] == "2"

    with subtest("a partition stands in the kernel, and so it does under the next daemon"):
        parted = ask("fault inject partition --network pair.lan --group pair.one --group pair.two")
        assert parted["state"] == "active", parted
        assert cut_in_the_kernel() == {(one, two), (two, one)}
        assert reached("one", 1) == reached("two", 1) == []
        machine.succeed(f"systemctl restart {UNIT}")
        assert ask(f"fault get {parted['fault_id']}")["state"] == "active"
        assert cut_in_the_kernel() == {(one, two), (two, one)}
        assert reached("one", 1) == []

    with subtest("once it is healed the kernel is as it was, to the byte"):
        assert ask(f"fault heal {parted['fault_id']}")["state"] == "healed"
        assert reached("one", 9) == sorted(ADDRESSES["two"])
        assert kernel() == whole

    with subtest("what is slowed down is late by that much, or it is said that it cannot be"):
        usual = min(answers("one", 5))
        slow = f"fault inject impair --network pair.lan --machine pair.one --delay-s {DELAY_S}"
        status, said = machine.execute(f"{asked(slow)} 2>&1")
        if status:
            assert "fault-not-offered" in said, said
            # The kernel lacks it, whoever asks.
            machine.fail("tc qdisc add dev lo root netem delay 1ms")
        else:
            assert "netem" in machine.succeed(f"tc qdisc show dev {two}")
            late = min(answers("one", 5)) - usual
            print(f"of a delay of {DELAY_S} s an answer is {late:.1f} ms late")
            assert 0.9 < late / 1000 / DELAY_S < 1.1, late

    with subtest("what is lost is lost"):
        machine.succeed(asked("fault heal-all"))
        assert kernel() == whole
        lossy = ask("fault inject impair --network pair.lan --machine pair.one --loss 0.5")
        assert 0 < len(answers("one", 20)) < 20
        assert ask(f"fault heal {lossy['fault_id']}")["state"] == "healed"
        assert len(answers("one", 5)) == 5
        assert kernel() == whole

    with subtest("a cluster that is destroyed under a fault leaves nothing"):
        machine.succeed(asked("fault inject link_down --network pair.lan --machine pair.one"))
        machine.succeed(asked("cluster destroy pair --delete-disks"))
        assert kernel() == empty
        machine.wait_until_fails(MACHINES)
  '';
}

# What the daemon's unit cannot do, tried by a program that is started as the daemon is.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-hardening";
  nodes.machine = lib.modules.importApply ./parts/host.nix { inherit self; };

  testScript = ''
    import shlex

    UNIT = "microvm-orchestrator.service"
    # By what each shows: what must not succeed.
    TRIED = {
        "write to the system": "touch /etc/made",
        "write to the store": "touch /nix/store/made",
        "write to another service's state": "touch /var/lib/made",
        "write to a home": "touch /home/alice/made",
        "see a home": "ls /home/alice/own",
        "read what root alone may": "cat /etc/shadow",
        "make a namespace": "UNSHARE --user true",
        "mount something": "MOUNT -t tmpfs none /mnt",
        "set the kernel's": "/bin/sh -c 'echo 1 >/proc/sys/kernel/printk'",
        "set the clock": "date -s 2020-01-01",
        "name the host": "/bin/sh -c 'echo other >/proc/sys/kernel/hostname'",
        "read a disk": "head -c 1 /dev/vda",
        "read the kernel's log": "head -c 1 /dev/kmsg",
        "see processes of others": "ls /proc/1/cwd",
        "make a program that others run as it": "/bin/sh -c 'cd /tmp && : >s && chmod u+s s'",
        "become root": "SETPRIV --reuid=0 true",
    }
    # And what must.
    GRANTED = {
        "write its own state": "touch /var/lib/microvm-orchestrator/made",
        "write a repository that was named": "touch /srv/git/tools.git/made",
        "have temporary files": "touch /tmp/made",
    }


    def probe(words):
        """Say whether a command succeeds in the place of the daemon."""
        for name, place in places.items():
            words = words.replace(name.upper(), place)
        script = f"#!/bin/sh\nexec {words}\n"
        machine.succeed(f"printf %s {shlex.quote(script)} >/run/probe && chmod 755 /run/probe")
        return machine.execute("systemctl start probe.service")[0] == 0


    start_all()
    machine.wait_for_unit(UNIT)
    machine.succeed("mkdir -p /home/alice && touch /home/alice/own && chmod -R 777 /home/alice")
    # They are not in the daemon's path.
    places = {
        name: machine.succeed(f"readlink -f $(command -v {name})").strip()
        for name in ("unshare", "mount", "setpriv")
    }
    # The daemon's own unit, with another program.
    machine.succeed(
        f"systemctl cat {UNIT} | sed"
        " -e 's|^ExecStart=.*|ExecStart=/run/probe|' -e 's|^Type=.*|Type=oneshot|'"
        " -e '/^Restart/d' -e '/^WatchdogSec/d' -e '/^LoadCredential/d'"
        " -e '/^Requires/d' -e '/^After/d' -e '/^.Unit.$/a StartLimitIntervalSec=0'"
        " >/run/systemd/system/probe.service",
        "systemctl daemon-reload",
    )

    with subtest("it can do what it is for"):
        refused = [what for what, words in GRANTED.items() if not probe(words)]
        assert not refused, refused

    with subtest("it can do nothing else"):
        done = [what for what, words in TRIED.items() if probe(words)]
        assert not done, done
        # It was tried, and is so still.
        assert probe("true")

    with subtest("root could do all of that, so it is the unit that refuses"):
        machine.succeed("unshare --user true", "head -c 1 /dev/vda", "ls /home/alice/own")

    with subtest("the daemon itself has no capability that it could use against the host"):
        pid = machine.succeed(f"systemctl show --value --property=MainPID {UNIT}").strip()
        status = machine.succeed(f"cat /proc/{pid}/status")
        told = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        # At most CAP_NET_ADMIN, the twelfth.
        assert int(told["CapBnd"], 16) in (0, 1 << 12), told["CapBnd"]
        assert told["NoNewPrivs"] == "1"
        assert told["Seccomp"] == "2"
  '';
}

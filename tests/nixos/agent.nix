# An agent in a machine works with a model that it has no key for: its commit is merged.
{ self }:
{ lib, ... }:
{
  name = "microvm-orchestrator-agent";
  nodes.machine.imports = [
    (lib.modules.importApply ./parts/guest.nix { inherit self; })
    ./parts/model.nix
  ];

  testScript = ''
    import json

    KEY = "sk-ant-api03-not-a-real-key"
    CLIENT = "HOME=/home/alice setpriv --reuid=alice --regid=$(id -g alice) --init-groups"


    start_all()
    machine.wait_for_unit("model.service")
    machine.wait_for_unit("microvm-orchestrator-repos.service")
    machine.succeed("take-in-guest")

    with subtest("what an agent has committed is on the branch"):
        machine.succeed(
            f"{CLIENT} microvm-orchestrator run start --repo tools --image slot --key it"
            " --prompt 'Make it.'"
        )
        machine.succeed("microvm-orchestrator task wait it --timeout-s 1800", timeout=1900)
        run = json.loads(machine.succeed("microvm-orchestrator run get it --json"))["run"]
        assert run["result"]["summary"] == "Done: it is made.", run
        assert [each["subject"] for each in run["result"]["commits"]] == ["Made"], run
        assert run["merge"]["state"] == "merged", run
        assert run["usage"]["requests"] >= 4, run
        made = machine.succeed("setpriv --reuid=microvm git -C /srv/git/tools.git show main:made")
        assert made == "by the model\n", made

    with subtest("the model was asked with the key, and the guest had another word in its place"):
        lines = machine.succeed("cat /run/model/requests").splitlines()
        asked = [json.loads(line) for line in lines]
        thought = [each for each in asked if each["body"].get("tools")]
        assert len(thought) >= 4
        assert {each["key"] for each in thought} == {KEY}
        said = json.dumps([each["body"] for each in asked])
        assert "ANTHROPIC_API_KEY=sk-ant-placeholder" in said
        assert KEY not in said

    with subtest("the key is nowhere in what is kept of the run"):
        shown = machine.succeed(
            "microvm-orchestrator run get it --json", "microvm-orchestrator run output it"
        )
        assert "Made" in shown
        assert KEY not in shown
  '';
}

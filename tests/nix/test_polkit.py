"""The rule of polkit that Nix rendered: what the daemon's user may ask of systemd, and who else.

polkit reads it as JavaScript. Here node does, with what of polkit the rule calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

RULES = Path(__file__).with_name("rendered") / "polkit.rules"
NODE = Path(sys.executable).with_name("node")
SOON_S = 60
# As polkit asks: the first rule that says anything decides, and else its defaults do.
POLKIT = """
const [rules, id, details, user] = JSON.parse(require("fs").readFileSync(0, "utf8"));
const added = [];
const polkit = { addRule: (rule) => added.push(rule), Result: { YES: "yes" } };
new Function("polkit", rules)(polkit);
const action = { id, lookup: (name) => details[name] };
const said = added.map((rule) => rule(action, { user })).find((each) => each);
process.stdout.write(JSON.stringify(said ?? null));
"""
MANAGE = "org.freedesktop.systemd1.manage-units"
OURS = "microvm-slot@web.service"


def asked(
    unit: str | None = OURS, verb: str | None = "start", user: str = "microvm", action: str = MANAGE
) -> str | None:
    """Tell what polkit says to somebody who asks systemd for something."""
    named: Mapping[str, str | None] = {"unit": unit, "verb": verb}
    details = {name: value for name, value in named.items() if value is not None}
    ran = subprocess.run(
        [NODE, "-e", POLKIT],
        input=json.dumps([RULES.read_text(), action, details, user]),
        capture_output=True,
        text=True,
        check=True,
        timeout=SOON_S,
    )
    return json.loads(ran.stdout)


@pytest.mark.parametrize("verb", ["start", "stop", "restart"])
@pytest.mark.parametrize("unit", [OURS, "microvm-slot@a.service", "microvm-slot@web-2.service"])
def test_the_daemons_user_may_start_and_stop_slots(unit: str, verb: str) -> None:
    assert asked(unit, verb) == "yes"


@pytest.mark.parametrize(
    "unit",
    [
        "microvm-orchestrator.service",
        "microvm-orchestrator.socket",
        "microvm-slots.slice",
        # Root starts this one, by itself, when a slot is.
        "microvm-slot-taps@web.service",
        "microvm-slot@.service",
        "microvm-slot@Web.service",
        "microvm-slot@web.socket",
        "microvm-slot@web.service.d",
        "xmicrovm-slot@web.service",
        "microvm-slot@../sshd.service",
        "microvm-slot@web.service\nsshd.service",
        "sshd.service\nmicrovm-slot@web.service",
        f"microvm-slot@{'a' * 32}.service",
        "sshd.service",
        "",
        # One that is made up on the spot has none.
        None,
    ],
)
def test_of_other_units_it_may_do_nothing(unit: str | None) -> None:
    assert asked(unit) is None


@pytest.mark.parametrize(
    "verb", ["reload", "kill", "set-property", "try-restart", "clean", "START", "", None]
)
def test_nothing_else_may_be_done_to_a_slot(verb: str | None) -> None:
    assert asked(verb=verb) is None


@pytest.mark.parametrize("user", ["alice", "nobody", "microvm2", "Microvm", ""])
def test_nobody_else_is_let_do_it_by_this_rule(user: str) -> None:
    assert asked(user=user) is None


@pytest.mark.parametrize(
    "action",
    [
        "org.freedesktop.systemd1.manage-unit-files",
        "org.freedesktop.systemd1.reload-daemon",
        "org.freedesktop.systemd1.set-environment",
        "org.freedesktop.policykit.exec",
        "org.freedesktop.login1.reboot",
    ],
)
def test_no_other_action_is_allowed_by_it(action: str) -> None:
    assert asked(action=action) is None

"""`agent`: programs with a model that live in machines of their own and are talked to."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Unpack

import typer

from microvm_orchestrator.cli import agent_options, failure, output, values
from microvm_orchestrator.cli.agent_work import (
    AgentBase,
    AgentBranch,
    AgentCapabilities,
    AgentCheck,
    AgentGroups,
    AgentInto,
    AgentMerge,
    AgentPolicy,
    AgentRepo,
    AgentRest,
    AgentWorks,
)
from microvm_orchestrator.cli.command import Session, command
from microvm_orchestrator.cli.operation import WaitS, follow
from microvm_orchestrator.cli.options import Cursor, Limit, complete_agent, complete_role

app = typer.Typer(help="Agents: they live in machines of their own, and can be talked to.")

BRIEF = ("name", "agent_id", "state", "reason", "owner", "created_at")
_SAID = ("message_id", "sender", "state", "text", "answer", "created_at")

AgentRef = Annotated[
    str,
    typer.Argument(
        metavar="AGENT",
        help="The agent's name or id.",
        autocompletion=complete_agent,
        show_default=False,
    ),
]
_Answered = Annotated[
    float | None,
    typer.Option(
        "--wait-s",
        metavar="SECONDS",
        help="How long to wait for the answer, 0 not at all; 30. It is heard all the same.",
    ),
]


@command(
    app,
    "spawn",
    example="agent spawn --name ada --prompt 'Read the tests in /workspace.'\n"
    "agent spawn --name eve --repo site --merge review\n"
    "agent spawn --ephemeral --repo site --prompt 'Mend the failing test, and commit it.'\n"
    "agent spawn --name bob --role architect --system-prompt @house.md --tokens 200000",
)
def spawn(
    here: Session,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="What it is called; else its id.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT|@FILE|-", help="What it is told first."),
    ] = None,
    parent: Annotated[
        str | None,
        typer.Option(
            "--parent",
            metavar="AGENT",
            help="The agent that it belongs to, and ends with.",
            autocompletion=complete_agent,
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="What it is: a name of `role list`, or an alias.",
            autocompletion=complete_role,
        ),
    ] = None,
    system_prompt: Annotated[
        str | None,
        typer.Option("--system-prompt", metavar="TEXT|@FILE|-", help="Added to the program's own."),
    ] = None,
    repo: AgentRepo = None,
    base: AgentBase = None,
    into: AgentInto = None,
    branch: AgentBranch = None,
    merge: AgentMerge = None,
    check: AgentCheck = None,
    rest: AgentRest = None,
    *,
    works: AgentWorks = False,
    groups: AgentGroups = None,
    capabilities: AgentCapabilities = None,
    ephemeral: Annotated[
        bool,
        typer.Option(
            "--ephemeral",
            help="End it by itself, once it has done what it was told.",
            show_default=False,
        ),
    ] = False,
    supervise: agent_options.Supervise = None,
    wait_s: WaitS = None,
    **wish: Unpack[agent_options.Wish],
) -> int:
    """Spawn an agent: a program with a model, in a machine of its own, that can be talked to.

    It lives until `agent end`, whoever leaves and whatever becomes of the daemon; with
    `--ephemeral` until nothing is left that it was told to do.
    """
    given = {
        "name": name,
        "prompt": values.text(prompt),
        "parent": parent,
        "role": role,
        "system_prompt": values.text(system_prompt),
        "repo": repo,
        "base": base,
        "into": into,
        "branch": branch,
        "merge": merge,
        "check": values.text(check),
        "rest": rest,
        "works": works or None,
        "groups": groups or None,
        "capabilities": capabilities or None,
        "ephemeral": ephemeral or None,
        "supervise": supervise,
        **agent_options.said(wish),
    }
    return follow(here, "agent_spawn", given, wait_s, output.record)


@command(app, "get", example="agent get ada")
def get(here: Session, agent: AgentRef) -> None:
    """Look at an agent: how it stands, what it used, and what it says at this moment."""

    def show(answer: dict[str, Any]) -> None:
        told = {name: each for name, each in answer.items() if name != "agent"}
        output.record({**answer["agent"], **told})

    here.tell("agent_get", {"agent": agent}, show)


@command(app, "list", example="agent list --state busy")
def list_(
    here: Session,
    state: Annotated[
        Literal["starting", "idle", "busy", "suspended", "ended", "failed"] | None,
        typer.Option("--state", help="Only those that stand so."),
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List agents, oldest first: yours, or all if you see everything."""
    given = {"state": state, "limit": limit, "cursor": cursor}
    here.tell("agent_list", given, lambda answer: output.page(answer, BRIEF, "no agents"))


def _several(answer: dict[str, Any]) -> None:
    if not answer["agents"]:
        output.say("no agents")
    else:
        output.table(BRIEF, answer["agents"])


@command(app, "tree", example="agent tree")
def tree(here: Session) -> None:
    """Show who belongs to whom, of all agents that live."""

    def show(answer: dict[str, Any]) -> None:
        for each in answer["agents"]:
            output.line(f"{'  ' * each['depth']}{each['name']} [{each['state']}]")

    here.tell("agent_tree", {}, show)


@command(app, "children", example="agent children lead")
def children(here: Session, agent: AgentRef) -> None:
    """List the agents that belong to one and live."""
    here.tell("agent_children", {"agent": agent}, _several)


@command(app, "peers", example="agent peers ada")
def peers(here: Session, agent: AgentRef) -> None:
    """List the agents that live and have the same parent as one."""
    here.tell("agent_peers", {"agent": agent}, _several)


@command(
    app,
    "send-many",
    example="agent send-many 'Stop, and say where you are.' --children-of lead\n"
    "agent send-many @news.md --to ada --to bob",
)
def send_many(
    here: Session,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|@FILE|-", help="What to say to them.", show_default=False),
    ],
    agents: Annotated[
        list[str] | None,
        typer.Option(
            "--to",
            metavar="AGENT",
            help="A name or id; may be repeated.",
            autocompletion=complete_agent,
        ),
    ] = None,
    children_of: Annotated[
        str | None,
        typer.Option(
            "--children-of",
            metavar="AGENT",
            help="Instead: all who belong to this one.",
            autocompletion=complete_agent,
        ),
    ] = None,
    wait_s: _Answered = None,
) -> int:
    """Say the same to several agents at once, and print the answer of each.

    It exits as `agent send` would for the one that fared worst.
    """
    given = {
        "agents": agents or None,
        "children_of": children_of,
        "text": values.text(text),
        "wait_s": wait_s,
    }
    answer = here.client.call("agent_send_many", given)
    if here.json:
        output.emit(answer.raw)
    statuses = {_answer_of(here, each) for each in answer.value["items"]}
    worst_first = (failure.TASK_FAILED, failure.TIMED_OUT)
    return next((status for status in worst_first if status in statuses), failure.OK)


def _answer_of(here: Session, sent: dict[str, Any]) -> int:
    """Print what one of several answered, and give the status to exit with."""
    message: dict[str, Any] | None = sent["message"]
    if message is None:
        failure.say(f"{sent['agent']}: {sent['error']['message']}")
        return failure.TASK_FAILED
    if not here.json and message["answer"] is not None:
        output.line(f"{sent['agent']}:\n{message['answer']}\n")
    return _became(message, f"{sent['agent']}: ")


@command(
    app,
    "send",
    example="agent send ada 'What is missing in the tests?'\nagent send ada - <letter.md",
)
def send(
    here: Session,
    agent: AgentRef,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT|@FILE|-", help="What to say to it.", show_default=False),
    ],
    wait_s: _Answered = None,
) -> int:
    """Say something to an agent, and print its answer.

    It hears messages one at a time, in the order in which they were sent.
    """
    given = {"agent": agent, "text": values.text(text), "wait_s": wait_s}
    return _answer(here, "agent_send", given)


@command(app, "wait", example="agent wait a_01k6vq....msg_01k6vr...")
def wait(
    here: Session,
    message_id: Annotated[
        str, typer.Argument(metavar="MESSAGE", help="The message's id.", show_default=False)
    ],
    timeout_s: Annotated[
        float | None, typer.Option("--timeout-s", metavar="SECONDS", help="How long to wait; 30.")
    ] = None,
) -> int:
    """Wait until a message is answered, and print the answer."""
    return _answer(here, "agent_wait", {"message_id": message_id, "timeout_s": timeout_s})


def _answer(here: Session, call: str, given: dict[str, Any]) -> int:
    answer = here.client.call(call, given)
    message: dict[str, Any] = answer.value
    if here.json:
        output.emit(answer.raw)
    elif message["answer"] is not None:
        output.line(message["answer"])
    return _became(message)


def _became(message: dict[str, Any], name: str = "") -> int:
    """Say what became of a message beside its answer, and give the status to exit with."""
    if brought := _brought(message["brought"]):
        failure.say(f"{name}{brought}")
    match message["state"]:
        case "answered":
            return failure.OK
        case "queued" | "delivered":
            failure.say(f"{name}no answer yet: `agent wait {message['message_id']}` waits on")
            return failure.TIMED_OUT
        case _:
            told: dict[str, Any] = message["error"] or {}
            failure.say(f"{name}{message['state']}: {told.get('message', 'it was never heard')}")
            return failure.TASK_FAILED


def _brought(told: dict[str, Any] | None) -> str:
    """Say in a line what an agent committed meanwhile, and what became of it."""
    if told is None:
        return ""
    count, merge = told["commit_count"], told["merge"]
    parts: list[str] = []
    if count:
        into = f" into {merge['into']}" if merge["state"] == "merged" else ""
        why = f" ({merge['reason']})" if merge["reason"] else ""
        counted = f"{count} commit{'' if count == 1 else 's'}"
        parts.append(f"{counted}, {merge['state']}{into}{why}")
    if told["uncommitted"]:
        parts.append("there are changes without a commit")
    if told["error"] is not None:
        parts.append(f"what it did did not come: {told['error']['message']}")
    return "; ".join(parts)


@command(app, "output", example="agent output ada")
def output_(here: Session, agent: AgentRef, limit: Limit = None, cursor: Cursor = None) -> None:
    """List what was said to an agent and what it answered, oldest first."""
    given = {"agent": agent, "limit": limit, "cursor": cursor}
    here.tell("agent_output", given, lambda answer: output.page(answer, _SAID, "nothing was said"))


@command(app, "inbox", example="agent inbox --since 2026-11-22T09:00:00Z\nagent inbox --of lead")
def inbox(
    here: Session,
    agent: Annotated[
        str | None,
        typer.Option(
            "--of",
            metavar="AGENT",
            help="To what this agent said; by default to what you said.",
            autocompletion=complete_agent,
        ),
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="MOMENT", help="Only those that came after it.")
    ] = None,
    limit: Limit = None,
    cursor: Cursor = None,
) -> None:
    """List the answers that came to what was said to agents."""
    given = {"agent": agent, "since": since, "limit": limit, "cursor": cursor}
    here.tell("agent_inbox", given, lambda answer: output.page(answer, _SAID, "no answers"))


@command(app, "reply", example="agent reply a_01k6vq....msg_01k6vr... 'Take the second one.'")
def reply(
    here: Session,
    message_id: Annotated[
        str, typer.Argument(metavar="MESSAGE", help="The message's id.", show_default=False)
    ],
    text: Annotated[
        str, typer.Argument(metavar="TEXT|@FILE|-", help="The answer.", show_default=False)
    ],
) -> None:
    """Answer a message in its agent's place; one that waits is heard no more."""
    here.tell("agent_reply", {"message_id": message_id, "text": values.text(text)})


@command(app, "interrupt", example="agent interrupt ada")
def interrupt(here: Session, agent: AgentRef) -> None:
    """Break off the turn that an agent is in; it knows what was said, and hears what waits."""
    here.tell("agent_interrupt", {"agent": agent})


@command(app, "branch", example="agent branch ada --name ada-2")
def branch(
    here: Session,
    agent: AgentRef,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What the copy is called; else its id."),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Start a copy of an agent, with its machine and all that was said; both go their own ways."""
    given = {"agent": agent, "name": name}
    return follow(here, "agent_branch", given, wait_s, output.record)


@command(
    app,
    "budget",
    example="agent budget ada --tokens 400000\n"
    "agent budget lead --tree-cost-usd 20 --warn-at 0.5 --warn-at 0.9",
)
def budget(
    here: Session,
    agent: AgentRef,
    **limits: Unpack[agent_options.Budget],
) -> None:
    """Give an agent another budget; what is not said has no limit."""
    given = {"agent": agent, **agent_options.said(limits)}
    here.tell("agent_budget", given, output.record)


@command(app, "suspend", example="agent suspend ada")
def suspend(here: Session, agent: AgentRef, wait_s: WaitS = None) -> int:
    """Stop an agent's machine once it is idle; the next message starts it again."""
    return follow(here, "agent_suspend", {"agent": agent}, wait_s, output.record)


@command(app, "resume", example="agent resume ada")
def resume(here: Session, agent: AgentRef) -> None:
    """Start the machine of a suspended agent again, as its next message would."""
    here.tell("agent_resume", {"agent": agent}, output.record)


@command(app, "collect", example="agent collect ada\nagent collect ada --merge auto")
def collect(
    here: Session,
    agent: AgentRef,
    merge: Annotated[
        AgentPolicy | None,
        typer.Option(
            "--merge", help="What becomes of its commits; by default as it was spawned with."
        ),
    ] = None,
    wait_s: WaitS = None,
) -> int:
    """Bring home what an agent committed by now, put it on its branch, and merge it.

    That is done after each of its turns, too.
    """
    given = {"agent": agent, "merge": merge}
    return follow(here, "agent_collect", given, wait_s, output.record)


@command(app, "end", example="agent end ada\nagent end lead --cascade --force")
def end(
    here: Session,
    agent: AgentRef,
    *,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Also in the middle of a turn, and if its work cannot be brought home.",
            show_default=False,
        ),
    ] = False,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="With all that belong to it.", show_default=False)
    ] = False,
    collect: Annotated[
        bool,
        typer.Option(
            "--collect/--no-collect",
            help="Bring home first what it did on its repository.",
            show_default=False,
        ),
    ] = True,
) -> None:
    """End an agent with its machine and all that is on its disk; what was said is kept."""
    given = {
        "agent": agent,
        "force": force or None,
        "cascade": cascade or None,
        "collect": None if collect else False,
    }
    here.tell("agent_end", given, _several)


@command(app, "delete", example="agent delete ada")
def delete(here: Session, agent: AgentRef) -> None:
    """Forget an agent that has ended, with all that was said to it."""
    here.tell("agent_delete", {"agent": agent}, output.record)

"""The pages in a real browser: live without being loaded again, and quiet about it."""

from __future__ import annotations

import select
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from browser.chromium import PROGRAM, Chromium, Tab, chromium
from daemon import COMMAND, STOP_S, running_daemon
from microvm_orchestrator.cli.client import Client
from system.living import living
from system.running import HOLD, let_go, started

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from daemon import Daemon

pytestmark = pytest.mark.skipif(not PROGRAM.exists(), reason=f"there is no {PROGRAM}")

PATIENCE_S = 30.0
TCP = {"listen": "127.0.0.1:0"}
HOSTILE = "</h1><script>document.title='owned'</script><img src=x onerror=alert(1)><b>bold</b>"
STATE = "document.querySelector('#task .state').textContent"


def ask(daemon: Daemon, call: str, **arguments: Any) -> dict[str, Any]:
    return Client(daemon.socket).call(call, arguments).value


@contextmanager
def address_by_web(daemon: Daemon) -> Generator[str]:
    words = [str(COMMAND), "web", "--socket", str(daemon.socket)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
            yield process.stdout.readline().strip()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(STOP_S)


@contextmanager
def entered(daemon: Daemon, browser: Chromium) -> Generator[tuple[Tab, str]]:
    """Give a tab that is on the first page by `web`, and where that is."""
    with address_by_web(daemon) as address:
        tab = browser.tab()
        here = address.partition("/enter/")[0]
        tab.go(address)
        tab.led_to(f"{here}/")
        assert tab.says("document.querySelector('h1').textContent") == "Overview"
        yield tab, here


@contextmanager
def running(folder: Path) -> Generator[tuple[Daemon, Chromium]]:
    with running_daemon(folder / "state", tcp=TCP) as daemon, chromium(folder) as browser:
        yield daemon, browser


def test_a_task_changes_on_its_page_while_one_looks_at_it(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser), entered(daemon, browser) as (tab, here):
        task_id = ask(daemon, "task_submit", title=HOSTILE, description=HOSTILE)["task_id"]
        tab.go(f"{here}/tasks/{task_id}")
        tab.until("document.getElementById('sign').textContent === 'Live'")
        assert tab.says(STATE) == "ready"
        tab.says("globalThis.mark = 'still the same page'")
        pages = tab.pages
        lease = ask(daemon, "task_claim", worker="bob")["tasks"][0]
        tab.until(f"{STATE} === 'running'")
        token = lease["lease"]["token"]
        given = {"task_id": task_id, "token": token, "worker": "bob"}
        ask(daemon, "task_complete", **given, result={"said": HOSTILE})
        tab.until(f"{STATE} === 'done'")
        tab.until("document.getElementById('task').textContent.includes('</h1><script>')")
        assert tab.says("globalThis.mark") == "still the same page"
        assert tab.pages == pages
        # What it is called is text: no element of it is there, and nothing of it has run.
        assert tab.says("document.querySelector('h1').textContent") == HOSTILE
        assert tab.says("document.querySelectorAll('main b, main img, main script').length") == 0
        assert tab.says("document.title").startswith("</h1>")
        assert tab.complaints == []


def test_what_a_program_says_is_there_as_it_says_it_and_as_nothing_but_text(
    tmp_path: Path,
) -> None:
    said = "document.getElementById('said')"
    with living(tmp_path / "state") as stage, chromium(tmp_path) as browser:
        script = (
            f"cat <<'END'\n{HOSTILE}\nEND\nprintf '\\033[31mred\\033[0m\\n' >&2\n"
            f"{HOLD}echo after; exit 1"
        )
        task_id = started(stage, script=script)
        with entered(stage.daemon, browser) as (tab, here):
            tab.go(f"{here}/tasks/{task_id}")
            tab.until(f"{said}.textContent.includes('held')")
            tab.says("globalThis.mark = 'still the same page'")
            assert HOSTILE in tab.says(f"{said}.textContent")
            assert tab.says("document.querySelector('#said .stderr').textContent") == "red\n"
            assert tab.says(STATE) == "running"
            let_go(stage, task_id)
            tab.until(f"{said}.textContent.includes('after') && 'ended' in {said}.dataset")
            tab.until(f"{STATE} === 'failed'")
            tab.until("document.getElementById('run').innerText.includes('Exit code')")
            assert tab.says(f"{said}.textContent").count("after") == 1
            assert tab.says(f"{said}.querySelectorAll(':not(span)').length") == 0
            assert tab.says("globalThis.mark") == "still the same page"
            # The next attempt is another run, which is followed from its beginning.
            stage.ask("task_retry", task_id=task_id)
            tab.until(f"{said}.textContent.includes('held') && !('ended' in {said}.dataset)")
            assert "after" not in tab.says(f"{said}.textContent")
            let_go(stage, task_id)
            tab.until(f"{said}.textContent.includes('after') && 'ended' in {said}.dataset")
            assert tab.complaints == []


def test_the_first_page_tells_of_a_new_task_and_keeps_the_focus(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser):
        first = ask(daemon, "task_submit", title="first")["task_id"]
        with entered(daemon, browser) as (tab, _):
            tab.until("document.getElementById('sign').textContent === 'Live'")
            tab.says(f"document.querySelector('a[href=\"/tasks/{first}\"]').focus()")
            ask(daemon, "task_submit", title="second")
            tab.until("document.getElementById('table-newest-tasks').innerText.includes('second')")
            assert tab.says("document.querySelector('#counts dd:nth-of-type(2)').innerText") == "2"
            assert tab.says("document.activeElement.textContent") == "first"
            assert tab.complaints == []


def test_every_page_is_quiet_and_can_be_walked_by_its_links(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser):
        ask(daemon, "task_submit", title="a")
        with entered(daemon, browser) as (tab, _):
            links = "[...document.querySelectorAll('nav[aria-label=Pages] a')]"
            for name in tab.says(f"{links}.map((link) => link.textContent)"):
                with tab.loading():
                    tab.says(f"{links}.find((link) => link.textContent === '{name}').click()")
                assert tab.says("document.querySelector('h1').textContent") == name
                assert tab.says("document.querySelector('[aria-current=page]').textContent") == name
                tab.until("document.getElementById('sign').textContent === 'Live'")
                assert tab.says("document.styleSheets[0].cssRules.length") > 0
            assert tab.complaints == []


def test_the_policy_of_a_page_lets_nothing_run_that_stands_in_it(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser), entered(daemon, browser) as (tab, _):
        tab.says(
            "const main = document.querySelector('main');"
            "main.innerHTML = '<img src=x onerror=\"globalThis.ran = 1\">';"
            "const made = document.createElement('script');"
            "made.textContent = 'globalThis.ran = 2'; document.body.append(made); 0"
        )
        tab.says("document.querySelector('main img').decode().catch(() => true)")
        assert tab.says("globalThis.ran") is None
        assert any("Content Security Policy" in said for said in tab.complaints)


def test_over_tcp_one_logs_in_by_a_form_and_out_again(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser):
        token = ask(daemon, "token_create", name="ann", role="viewer")["token"]
        ask(daemon, "task_submit", title="Paint it")
        tab = browser.tab()
        tab.go(f"http://{daemon.tcp}/tasks")
        assert "Paint it" not in tab.says("document.body.innerText")
        tab.complaints.clear()  # that it was refused at first
        tab.says(f"document.getElementById('token').value = '{token}'")
        with tab.loading():
            tab.says("document.forms[0].requestSubmit()")
        assert tab.says("location.pathname") == "/tasks"
        assert "Paint it" in tab.says("document.body.innerText")
        assert tab.says("document.cookie") == ""
        tab.until("document.getElementById('sign').textContent === 'Live'")
        ask(daemon, "task_submit", title="Count it")
        tab.until("document.getElementById('table-tasks').innerText.includes('Count it')")
        assert tab.says("fetch('/v1/tasks').then((answer) => answer.status)") == 401
        tab.complaints.clear()
        with tab.loading():
            tab.says("document.querySelector('form[action=\"/logout\"]').requestSubmit()")
        assert tab.says("document.querySelector('h1').textContent") == "Log in"


def test_without_scripts_the_pages_are_there_all_the_same(tmp_path: Path) -> None:
    with running(tmp_path) as (daemon, browser), entered(daemon, browser) as (tab, here):
        ask(daemon, "task_submit", title="Paint it")
        tab.ask("Emulation.setScriptExecutionDisabled", value=True)
        tab.go(f"{here}/tasks")
        root = tab.ask("DOM.getDocument")["root"]["nodeId"]
        table = tab.ask("DOM.querySelector", nodeId=root, selector="#table-tasks")["nodeId"]
        assert "Paint it" in tab.ask("DOM.getOuterHTML", nodeId=table)["outerHTML"]

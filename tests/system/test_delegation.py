"""The profile `delegation` for a client that knows what its README says, and for jobs in machines.

A whole daemon, real guests, the bridge as an MCP client starts it. The numbers of cases are those
of a list of what systems like this one promised or got wrong.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

import hosted
from machines import LONG_S
from receiver import SECRET, receiver
from stdio_client import StdioClient, stdio_client
from system.living import MEMORY_MIB, Stage, living
from system.running import alias_of, ended, registered, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PROFILE = "delegation"
# As little as the guest is comfortable with: that program's own defaults are for larger hosts.
SMALL = {"DEFAULT_MEMORY": f"{MEMORY_MIB}M", "DEFAULT_CPU": "1", "DEFAULT_DISK": "16M"}
ENDED = {"success", "failed", "timeout"}
# Posts what it is given to where its job says, and prints the status of each answer.
POST = """\
import json, os, sys, urllib.error, urllib.request

url, job, token = (os.environ[name] for name in ("CALLBACK_URL", "JOB_ID", "JOB_TOKEN"))

def post(path, told=None, authorization=f"Bearer {token}"):
    body = b"" if told is None else json.dumps(told).encode()
    headers = {"Content-Type": "application/json"}
    if authorization is not None:
        headers["Authorization"] = authorization
    request = urllib.request.Request(url + path, body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            status, text = answer.status, answer.read()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read()
    print(status, text.decode(), flush=True)

with urllib.request.urlopen(url + "/health") as answer:
    print(answer.status, answer.read().decode(), flush=True)
"""


class Forge(BaseHTTPRequestHandler):
    """A host that wants a secret, and says which one it got."""

    def do_GET(self) -> None:
        body = f"{self.path} for {self.headers['Authorization']}\n".encode()
        self.server.heard.append(body.decode())  # type: ignore[attr-defined]  # set where it starts
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


@pytest.fixture(scope="module")
def forge() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forge) as server:
        server.heard = []  # type: ignore[attr-defined]  # what it was asked, for the test to read
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, forge: ThreadingHTTPServer) -> Iterator[Stage]:
    webhooks = {"allow_private_targets": True}
    egress = {"secrets": {"hub": {"url": f"http://127.0.0.1:{forge.server_port}/api"}}}
    with living(tmp_path_factory.mktemp("jobs") / "s", webhooks=webhooks, egress=egress) as stage:
        yield stage


@pytest.fixture
def client(stage: Stage) -> Iterator[StdioClient]:
    with stdio_client(stage.daemon.socket, PROFILE, SMALL) as client:
        yield client


def submitted(client: StdioClient, task: str, kind: str = "script", **more: Any) -> str:
    manifest = {"task": task, "agentType": kind, **more}
    return str(client.call("submit_job", manifest=manifest)["job_id"])


def status(client: StdioClient, job: str) -> dict[str, Any]:
    return client.call("get_job_status", job_id=job)


def until(client: StdioClient, job: str, *states: str) -> dict[str, Any]:
    """Ask again and again, as clients of that program had to."""
    # A machine that does not come up says so after as long as anything takes here.
    deadline = time.monotonic() + 2 * LONG_S
    while (told := status(client, job))["status"] not in states:
        assert told["status"] not in ENDED, told
        assert time.monotonic() < deadline, told
        time.sleep(0.05)  # there is nothing to wait for in that program's words
    return told


def result(client: StdioClient, job: str) -> dict[str, Any]:
    until(client, job, *ENDED)
    return client.call("get_job_result", job_id=job)


def machines(stage: Stage) -> list[str]:
    return [each["machine_id"] for each in stage.ask("machine_list")["items"]]


def over(stage: Stage, job: str) -> dict[str, Any]:
    """Wait until nothing of a job is under way any more."""
    task_id = stage.ask("task_get", task_id=job, group=PROFILE)["task_id"]
    return stage.hear("run.over", f"{task_id}.1")


def test_a_job_has_its_files_its_environment_and_its_resources_and_gives_its_output(
    stage: Stage, client: StdioClient
) -> None:
    script = """\
cat /workspace/in/data
env | grep -E '^(JOB_ID|CALLBACK_URL|TIMEOUT|STATUS_MODE|COLOUR)=' | sort
nproc
pwd
echo "complaint" >&2
"""
    job = submitted(
        client,
        script,
        files=[{"path": "in/data", "content": base64.b64encode(b"brought\n").decode()}],
        env={"COLOUR": "$(red) 'and' \"blue\""},
        resources={"cpu": 2, "memory": "163840K"},
        timeout=300,
        statusMode="detailed",
        vmTemplate="embedded",
        unheardOf="is dropped",
    )
    told = result(client, job)
    assert told["status"] == "success", told
    assert told["output"].splitlines() == [
        "brought",
        "CALLBACK_URL=http://127.0.0.1:8765",
        "COLOUR=$(red) 'and' \"blue\"",
        f"JOB_ID={job}",
        "STATUS_MODE=detailed",
        "TIMEOUT=300",
        "2",
        "/workspace",
    ]
    assert (told["job_id"], told["status"], told["exit_code"]) == (job, "success", 0)
    assert "error" not in told
    assert told["duration_seconds"] > 0
    seen = status(client, job)
    assert set(seen) >= {"job_id", "status", "created_at", "started_at", "completed_at"}
    summary = next(each for each in client.call("list_jobs") if each["job_id"] == job)
    assert (summary["status"], summary["task"]) == ("success", script[:100])
    listed = client.call("list_jobs", status="failed")
    assert job not in [each["job_id"] for each in listed]
    over(stage, job)
    assert machines(stage) == []
    assert client.refusal("cancel_job", job_id=job) == "Job already completed"


def test_case_22_a_script_job_that_exits_with_3_has_failed_and_keeps_what_it_complained(
    client: StdioClient,
) -> None:
    job = submitted(client, "a task", agent={"command": "echo half; echo why >&2; exit 3"})
    assert client.refusal("get_job_result", job_id=job).startswith("Job not complete. Status: ")
    told = result(client, job)
    assert (told["status"], told["exit_code"]) == ("failed", 3), told
    assert (told["output"], told["error"]) == ("half\n", "why\n")


def test_a_job_uses_a_secret_by_its_name_and_leaves_files_behind(
    client: StdioClient, stage: Stage, forge: ThreadingHTTPServer
) -> None:
    secret = "the-secret-of-the-hub-0123456789"
    stage.ask("credential_set", name="hub", kind="secret", value=secret)
    words = (
        "set -e\n"
        "python3 -c 'import os, urllib.request as u; "
        'print(u.urlopen(os.environ["MICROVM_SECRET_HUB_URL"] + "/me").read().decode())\'\n'
        "env\n"
        'mkdir -p "$ARTIFACTS_DIR/logs"\n'
        'echo kept >"$ARTIFACTS_DIR/logs/one.txt"\n'
    )
    job = submitted(client, "ask", agent={"command": words}, secrets=["hub"])
    told = result(client, job)
    assert told["status"] == "success", told
    heard: list[str] = forge.heard  # type: ignore[attr-defined]  # set where it starts
    assert heard[-1] == f"/api/me for Bearer {secret}\n"
    assert "/api/me for Bearer xxx" in told["output"]
    assert secret not in json.dumps(told)
    [name] = told["artifacts"]
    assert name.endswith("/artifacts/logs/one.txt")
    got = stage.ask("artifact_get", task_id=job, group="delegation", artifact=name)
    assert got["content"] == "kept\n"


@pytest.mark.long
def test_a_check_is_lent_no_secret_of_the_task_whose_commits_it_judges(
    stage: Stage, tmp_path: Path
) -> None:
    stage.ask("credential_set", name="hub", kind="secret", value="another-secret-0123456789")
    # What somebody else may have written into the branch.
    words = "import os, urllib.request as u; u.urlopen('http://127.0.0.1:8484/with/hub/stolen')"
    check = f'! env | grep MICROVM_SECRET && ! python3 -c "{words}"'
    repo = registered(stage, tmp_path / "judged", check=check)
    script = 'python3 -c "$0" && echo 1 >new && git add . && git commit -qm New'
    script = script.replace('"$0"', f'"{words}"'.replace("stolen", "used"))
    task = started(stage, repo=alias_of(stage, repo), script=script, credentials=["hub"])
    run = ended(stage, task)
    assert run["task"]["state"] == "done", run
    assert run["merge"]["check"]["success"]
    assert "403" in run["merge"]["check"]["output"]


def test_case_23_the_text_of_a_task_reaches_its_agent_byte_for_byte(client: StdioClient) -> None:
    odd = 'cat "$0" | sha256sum # $(touch /tmp/x) `id` "\' \\n \u00e9\U0001f600\n\n: \t-n\n'
    wanted = hashlib.sha256(odd.encode()).hexdigest()
    script = submitted(client, odd)
    reader = (
        "import hashlib, json; "
        "task = json.load(open('/opt/job-runner/manifest.json'))['task']; "
        "print(hashlib.sha256(task.encode()).hexdigest())"
    )
    custom = submitted(client, odd, "custom", agent={"command": f'python3 -c "{reader}"'})
    for job in (script, custom):
        told = result(client, job)
        assert told["status"] == "success", told
        assert told["output"].split()[0] == wanted


@pytest.mark.long
def test_case_24_a_job_of_which_nothing_is_heard_for_so_long_is_lost_and_its_machine_destroyed(
    stage: Stage,
) -> None:
    with stdio_client(
        stage.daemon.socket, PROFILE, {**SMALL, "HEARTBEAT_THRESHOLD_SECONDS": "8"}
    ) as client:
        job = submitted(client, "sleep 600")
        until(client, job, "running")
        [machine_id] = machines(stage)
        machine = stage.ask("machine_get", machine=machine_id)
        # As the variables say that the client was started with.
        assert (machine["memory_mib"], machine["vcpus"]) == (MEMORY_MIB, 1)
        pid = hosted.processes(stage.daemon.state_dir)[machine["runtime_id"] or machine_id]
        os.kill(pid, signal.SIGSTOP)
        told = result(client, job)
    assert told["status"] == "failed"
    assert told["error"] == "Job lost: nothing was heard of its guest for 8 s"
    assert machines(stage) == []
    assert pid not in hosted.processes(stage.daemon.state_dir).values()


def test_case_25_a_job_that_is_cancelled_while_its_machine_is_made_leaves_none(
    stage: Stage, client: StdioClient
) -> None:
    job = submitted(client, "sleep 600")
    until(client, job, "provisioning")
    assert client.call("cancel_job", job_id=job) == {"cancelled": True}
    told = status(client, job)
    assert (told["status"], told["error"]) == ("failed", "Cancelled by user")
    over(stage, job)
    assert machines(stage) == []
    assert hosted.processes(stage.daemon.state_dir) == {}
    assert status(client, job)["status"] == "failed"
    assert client.refusal("cancel_job", job_id=job) == "Job already completed"


def test_case_26_a_forged_callback_without_the_job_token_is_401_and_changes_nothing(
    client: StdioClient,
) -> None:
    forged = POST + (
        "end = dict(job_id=job, status='failed', exit_code=9, output='forged', "
        "duration_seconds=1, error='forged')\n"
        "post(f'/callback/{job}/complete', end, None)\n"
        "post(f'/callback/{job}/complete', end, 'Bearer ' + 'x' * 43)\n"
        "post(f'/callback/{job}/status', dict(job_id=job, progress='forged'), 'Basic eDp5')\n"
        "post(f'/callback/another/heartbeat', None, None)\n"
    )
    said = result(client, job := submitted(client, forged, agent=_python(forged)))
    assert said["status"] == "success", said
    told = [line.partition(" ") for line in said["output"].splitlines()]
    assert told[0] == ("200", " ", '{"status":"ok"}')
    assert [status for status, _, _ in told[1:]] == ["401"] * 4
    seen = status(client, job)
    assert (seen["status"], seen.get("progress"), seen.get("error")) == ("success", None, None)


def test_a_job_says_how_far_it_is_and_what_it_says_after_its_end_is_not_heard(
    stage: Stage, client: StdioClient
) -> None:
    script = POST + (
        "post(f'/callback/{job}/heartbeat')\n"
        "half = dict(job_id=job, progress='half of it', output='so far')\n"
        "post(f'/callback/{job}/status', half)\n"
        "post(f'/callback/{job}/status', dict(job_id='another', progress='x'))\n"
        "post(f'/callback/{job}/status', dict(job_id=job))\n"
        "post(f'/callback/another/status', dict(job_id='another', progress='x'))\n"
        "open('/tmp/gate').read()\n"
        "post(f'/callback/{job}/complete', dict(job_id=job, status='failed', exit_code=1,\n"
        "     output='the end', duration_seconds=2, error='by its own word'))\n"
        "post(f'/callback/{job}/status', dict(job_id=job, progress='too late'))\n"
    )
    command = f"mkfifo /tmp/gate && {_python(script)['command']}"
    job = submitted(client, "report", "custom", agent={"command": command})
    until(client, job, "running")
    deadline = time.monotonic() + LONG_S
    while status(client, job).get("progress") != "half of it":
        assert time.monotonic() < deadline
        time.sleep(0.05)  # a poll is all that this client has
    stage.said(machines(stage)[0], "echo >/tmp/gate")
    told = result(client, job)
    codes = [line.split()[0] for line in told["output"].splitlines()]
    assert codes == ["200", "200", "200", "400", "400", "404", "200", "200"], told
    assert (told["status"], told["error"], told["exit_code"]) == ("failed", "by its own word", 0)
    assert status(client, job)["progress"] == "half of it"


def _python(script: str) -> dict[str, str]:
    """A command that runs a program, whatever is in its text."""
    encoded = base64.b64encode(script.encode()).decode()
    return {"command": f"echo {encoded} | base64 -d >/tmp/job.py && python3 /tmp/job.py"}


def test_a_job_that_takes_too_long_has_the_status_timeout_and_a_result(
    stage: Stage, client: StdioClient
) -> None:
    job = submitted(client, "echo begun; sleep 600", timeout=2)
    told = result(client, job)
    assert (told["status"], told["error"]) == ("timeout", "Job exceeded timeout")
    assert told["output"] == "begun\n"
    assert machines(stage) == []


@pytest.mark.anyio
async def test_who_waits_for_jobs_is_sent_signed_callbacks_with_that_programs_payloads(
    stage: Stage,
) -> None:
    async with receiver() as hook:

        def run() -> tuple[str, dict[str, Any]]:
            made = stage.ask(
                "webhook_create", url=hook.url, secret=SECRET, groups=[PROFILE], shape="job"
            )
            with stdio_client(stage.daemon.socket, PROFILE, SMALL) as client:
                job = submitted(client, "echo said; exit 4")
                told = result(client, job)
            return job, {**told, "webhook_id": made["webhook_id"]}

        job, told = await anyio.to_thread.run_sync(run)
        heard: list[dict[str, Any]] = []
        while not heard or "status" not in heard[-1]:
            received = await hook.next()
            assert received.signed_with(SECRET)
            heard.append(json.loads(received.body))
        await anyio.to_thread.run_sync(
            lambda: stage.ask("webhook_delete", webhook_id=told["webhook_id"])
        )
    assert {each["job_id"] for each in heard} == {job}
    assert set(heard[0]) == {"job_id", "progress"}
    end = heard[-1]
    assert (end["status"], end["exit_code"], end["output"]) == ("failed", 4, "said\n")
    assert set(end) == {"job_id", "status", "exit_code", "output", "duration_seconds", "error"}

"""An agent for guests in place of Claude Code, which is not free and so not at hand everywhere.

It is started as that one is, does what the model says with tools of the same names, and tells of it
in the same records: the model API, the proxy and the driver see no difference that matters here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

MODEL = "claude-sonnet-4-5"
TOOLS = ("Bash", "Edit", "Write")
PATIENCE_S = 120


def ask(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Ask the model, straight: the address is one of this guest."""
    tools = [{"name": name, "input_schema": {"type": "object"}} for name in TOOLS]
    body = {"model": MODEL, "max_tokens": 1000, "tools": tools, "messages": messages}
    request = urllib.request.Request(  # noqa: S310  # the daemon says where
        f"{os.environ['ANTHROPIC_BASE_URL']}/v1/messages",
        json.dumps(body).encode(),
        {
            "content-type": "application/json",
            "x-api-key": os.environ["ANTHROPIC_API_KEY"],
            "anthropic-version": "2023-06-01",
        },
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def use(name: str, given: dict[str, Any]) -> str:
    """Do what a tool does; give what it says."""
    if name == "Bash":
        words = ["/bin/sh", "-c", given["command"]]
        ran = subprocess.run(words, capture_output=True, text=True, check=False)
        return ran.stdout + ran.stderr
    path = Path(given["file_path"])
    if name == "Write":
        path.write_text(given["content"])
    else:
        path.write_text(path.read_text().replace(given["old_string"], given["new_string"], 1))
    return "It is written."


def say(**record: Any) -> None:
    print(json.dumps(record), flush=True)


def main() -> None:
    told = json.loads(sys.stdin.readline())["message"]
    messages: list[dict[str, Any]] = [told]
    say(type="system", subtype="init", model=MODEL, mcp_servers=[])
    while True:
        answer = ask(messages)
        say(type="assistant", message=answer)
        messages.append({"role": "assistant", "content": answer["content"]})
        used = [each for each in answer["content"] if each["type"] == "tool_use"]
        if not used:
            break
        results = [
            {
                "type": "tool_result",
                "tool_use_id": each["id"],
                "content": use(each["name"], each["input"]),
            }
            for each in used
        ]
        messages.append({"role": "user", "content": results})
        say(type="user", message=messages[-1])
    said = "".join(each["text"] for each in answer["content"])
    say(type="result", subtype="success", is_error=False, result=said)


if __name__ == "__main__":
    main()

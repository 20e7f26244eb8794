"""What becomes of requests to a model API on their way through an endpoint."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import httpx2
import pytest
from pydantic import SecretStr

from egressing import ASKED, KEY, OPENAI_KEY, PATIENCE_S, TOKEN, keys_in, listening, outlet
from microvm_orchestrator import errors
from microvm_orchestrator.egress.background import Foreground
from microvm_orchestrator.egress.credentials import Kind
from microvm_orchestrator.egress.guest import PLACEHOLDER
from microvm_orchestrator.egress.http import Refusal
from microvm_orchestrator.egress.usage import Tokens
from model_api import Say, Turn, Usage, fail, open_model_api, say, turn, use

if TYPE_CHECKING:
    from pathlib import Path

    from anyio.abc import ByteStream


async def test_the_real_key_takes_the_place_of_the_placeholder(tmp_path: Path) -> None:
    async with (
        open_model_api([say("Hi.")], keys=[KEY]) as api,
        outlet(tmp_path, api=api.url) as out,
    ):
        answer = await out.message()
        [request] = api.requests
    assert answer.status_code == 200
    assert answer.json()["content"] == [{"type": "text", "text": "Hi."}]
    assert request.target == "/v1/messages?beta=true"
    assert request.body == ASKED
    assert request.headers["x-api-key"] == KEY
    assert "authorization" not in request.headers
    assert PLACEHOLDER not in str(request.headers)


async def test_a_token_goes_as_a_bearer_with_the_beta_that_it_needs(tmp_path: Path) -> None:
    kept = await keys_in(
        tmp_path, token=(Kind.ANTHROPIC_OAUTH, TOKEN), key=(Kind.ANTHROPIC_API_KEY, KEY)
    )
    async with (
        open_model_api([say("Hi.")], keys=[TOKEN]) as api,
        outlet(tmp_path, api=api.url, credentials=kept) as out,
    ):
        assert (await out.message()).status_code == 200
        [request] = api.requests
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    assert "x-api-key" not in request.headers
    assert request.headers["anthropic-beta"] == "claude-code-20250219,oauth-2025-04-20"


async def test_a_credential_that_the_task_names_goes_before_the_usual_one(tmp_path: Path) -> None:
    kept = await keys_in(
        tmp_path, token=(Kind.ANTHROPIC_OAUTH, TOKEN), mine=(Kind.ANTHROPIC_API_KEY, KEY)
    )
    async with (
        open_model_api([say("Hi.")], keys=[KEY]) as api,
        outlet(tmp_path, api=api.url, credentials=kept, named=["mine"]) as out,
    ):
        assert (await out.message()).status_code == 200
    with pytest.raises(errors.NotFound, match="no credential other"):
        async with outlet(tmp_path, credentials=kept, named=["other"]):
            pass


async def test_only_headers_that_are_known_pass_either_way(tmp_path: Path) -> None:
    async with open_model_api([fail(429)]) as api, outlet(tmp_path, api=api.url) as out:
        answer = await out.http.post(
            "/v1/messages",
            json=ASKED,
            headers={
                "Authorization": "Bearer of-the-guest",
                "Cookie": "a=b",
                "X-Forwarded-For": "1.2.3.4",
                "Anthropic-Organization": "other",
                "Accept-Encoding": "gzip",
            },
        )
        [request] = api.requests
    assert answer.status_code == 429
    passed = set(request.headers) - {"host", "content-length", "accept-encoding", "x-api-key"}
    assert passed == {
        *("accept", "content-type", "user-agent", "x-app", "x-stainless-lang"),
        *("anthropic-version", "anthropic-beta"),
    }
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["host"] == api.url.removeprefix("http://")
    assert set(answer.headers) == {"content-type", "content-length", "request-id"}


async def test_events_arrive_as_they_are_sent(tmp_path: Path) -> None:
    steps = [anyio.Event() for _ in range(20)]

    async def pause(number: int) -> None:
        await steps[number].wait()

    script = [Turn((Say("Hello there"),), pause=pause)]
    async with open_model_api(script) as api, outlet(tmp_path, api=api.url) as out:
        asked = {**ASKED, "stream": True}
        seen: list[str] = []
        steps[0].set()
        with anyio.fail_after(PATIENCE_S):
            async with out.http.stream("POST", "/v1/messages", json=asked) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("event: "):
                        seen.append(line.removeprefix("event: "))
                        # The next event is sent only now that this one is here.
                        steps[len(seen)].set()
        exchange = await out.told()
    assert seen == [
        *("message_start", "ping", "content_block_start"),
        *("content_block_delta", "content_block_delta", "content_block_stop"),
        *("message_delta", "message_stop"),
    ]
    assert exchange.tokens == Tokens(1000, 50, 0, 200)


async def test_when_the_guest_hangs_up_the_request_ends_upstream(tmp_path: Path) -> None:
    async def pause(number: int) -> None:
        if number == 4:
            await anyio.sleep_forever()

    script = [Turn((Say("A long story"),), pause=pause)]
    async with open_model_api(script) as api, outlet(tmp_path, api=api.url) as out:
        async with out.http.stream(
            "POST", "/v1/messages", json={**ASKED, "stream": True}
        ) as answer:
            async for line in answer.aiter_lines():
                if "content_block_delta" in line:
                    break
        with anyio.fail_after(PATIENCE_S):
            await api.requests[0].hung_up.wait()
        exchange = await out.told()
        # What passed is counted: the input that was told, the output by its length.
        assert exchange.tokens == Tokens(1000, 2, 0, 200, estimated=True)
        assert exchange.status == 200
        assert out.egress.spent.tokens.total == 1202


async def test_the_request_of_a_guest_that_left_before_the_answer_is_told_of(
    tmp_path: Path,
) -> None:
    async def pause(_: int) -> None:
        await anyio.sleep_forever()

    async with (
        open_model_api([Turn((Say("x"),), pause=pause)]) as api,
        outlet(tmp_path, api=api.url) as out,
    ):
        body = json.dumps(ASKED).encode()
        async with out.connected() as stream:
            head = f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            await stream.send(head.encode() + body)
            request = await api.next()
        with anyio.fail_after(PATIENCE_S):
            await request.hung_up.wait()
        exchange = await out.told()
    assert (exchange.status, exchange.bytes_in, exchange.tokens) == (None, len(body), None)


@pytest.mark.parametrize(
    "asks",
    [
        b'"background": true',
        b'"background" :\n' + b" " * 100_000 + b"true",
        b'"\\u0062ac\\u006Bground":true',
        b'"input": "' + b"x" * 200_000 + b'", "background": true, "stream": true',
    ],
)
async def test_nothing_goes_on_in_the_background(tmp_path: Path, asks: bytes) -> None:
    async with open_model_api([say("Hi.")] * 2) as api, outlet(tmp_path, api=api.url) as out:
        answer = await out.http.post("/v1/responses", content=b'{"model": "m", ' + asks + b"}")
        assert answer.status_code == 403
        assert "in the background" in answer.json()["error"]["message"]
        assert answer.headers["x-should-retry"] == "false"
        refused = await out.told()
        assert refused.refused == answer.json()["error"]["message"]
        assert api.requests == []
        # The same words pass where they ask for nothing.
        said = 'Set "background": true, "background": false.'
        quiet = {"model": "gpt-5", "input": said, "background": False, "stream": True}
        assert (await out.http.post("/v1/responses", json=quiet)).status_code == 200
        assert (await out.message(metadata={"background": True})).status_code == 200


@pytest.mark.parametrize("width", [1, 7, 66, 67])
def test_what_goes_on_in_the_background_is_found_however_it_is_cut(width: int) -> None:
    escaped = "".join(f"\\u{ord(letter):04X}" for letter in "background")
    for body in (f'{{"a": 1, "{escaped}": true', '{"background":   true'):
        foreground = Foreground()
        *before, last = [body[at : at + width].encode() for at in range(0, len(body), width)]
        for piece in before:
            foreground.see(piece)
        with pytest.raises(Refusal):
            foreground.see(last)


async def test_each_request_gives_one_record_without_what_it_held(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        answer = await out.message(secret="of the user")
        exchange = await out.told()
    assert (exchange.method, exchange.path, exchange.status) == ("POST", "/v1/messages", 200)
    assert exchange.host == api.url.removeprefix("http://")
    assert exchange.bytes_in == len(api.requests[0].raw)
    assert exchange.bytes_out == len(answer.content)
    assert exchange.duration_s > 0
    assert exchange.model == "claude-sonnet-4-5"
    assert exchange.tokens == Tokens(1000, 50, 0, 200)
    # 1000 * 3 + 50 * 15 + 200 * 0.3, by the million
    assert exchange.cost_usd == pytest.approx(0.00381)
    assert exchange.refused is None
    assert "of the user" not in str(exchange)
    assert "beta" not in str(exchange)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/responses", {"input": "Hello"}),
        ("/v1/responses", {"input": "Hello", "stream": True}),
        ("/v1/chat/completions", {"messages": ASKED["messages"]}),
        (
            "/v1/chat/completions",
            {
                "messages": ASKED["messages"],
                "stream": True,
                "stream_options": {"include_usage": True},
            },
        ),
        ("/v1/messages", ASKED),
        ("/v1/messages", {**ASKED, "stream": True}),
    ],
)
async def test_every_form_of_answer_is_metered_alike(
    tmp_path: Path, path: str, asked: dict[str, Any]
) -> None:
    script = [turn(say("Hi."), use("shell", command="ls"), usage=Usage(70, 9, 0, 30))]
    async with open_model_api(script) as api, outlet(tmp_path, api=api.url) as out:
        asked = {"model": "gpt-5-mini", "tools": [{"name": "shell"}], **asked}
        answer = await out.http.post(path, json=asked)
        exchange = await out.told()
        [request] = api.requests
    assert answer.status_code == 200
    assert exchange.tokens == Tokens(70, 9, 0, 30)
    assert exchange.model == asked["model"]
    assert request.key == (KEY if path == "/v1/messages" else OPENAI_KEY)


async def test_a_stream_that_does_not_say_what_it_took_is_estimated(tmp_path: Path) -> None:
    async with open_model_api([say("x" * 4000)]) as api, outlet(tmp_path, api=api.url) as out:
        asked = {"model": "gpt-5", "messages": ASKED["messages"], "stream": True, "tools": [1]}
        await out.http.post("/v1/chat/completions", json=asked)
        exchange = await out.told()
    assert exchange.tokens is not None
    assert exchange.tokens.estimated
    assert exchange.tokens.output == 1003  # the text, and the role beside it
    assert exchange.tokens.input == -(-exchange.bytes_in // 4)


async def test_the_price_of_an_unknown_model_is_not_guessed(tmp_path: Path) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        await out.message(model="somebody-elses")
        exchange = await out.told()
        spent = out.egress.spent
    assert exchange.cost_usd is None
    assert spent.tokens.total == spent.unpriced_tokens == 1250
    assert spent.cost_usd == 0
    assert spent.unpriced_usd > 0


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/messages/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/messages"),
        ("POST", "/v1/%6dessages"),
        ("POST", "//v1/messages"),
        ("POST", "/v1/messages/"),
        ("POST", "/v1/../v1/messages"),
        ("GET", "/v1/organizations/api_keys"),
        ("GET", "/v1/models/a/b"),
        ("DELETE", "/v1/models/a"),
    ],
)
async def test_what_is_no_request_to_a_model_goes_nowhere(
    tmp_path: Path, method: str, path: str
) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        said = await out.exchanged(
            f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        exchange = await out.told()
        assert api.requests == []
    assert said.startswith(b"HTTP/1.1 403 ")
    assert exchange.status == 403
    assert exchange.refused is not None
    assert path in exchange.refused


async def test_the_models_there_are_can_be_asked_for(tmp_path: Path) -> None:
    async with open_model_api([]) as api, outlet(tmp_path, api=api.url) as out:
        for path in ("/v1/models", "/v1/models?limit=1", "/v1/models/claude-x", "/api/hello"):
            assert (await out.http.get(path)).status_code in {200, 404}
        assert (await out.http.head("/api/hello")).status_code == 200
        counted = await out.http.post("/v1/messages/count_tokens", json=ASKED)
        assert counted.json() == {"input_tokens": 100}
        theirs = await out.http.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        del out.http.headers["anthropic-version"]
        ours = await out.http.get("/v1/models")
        assert (theirs.status_code, ours.status_code) == (200, 200)
        assert [request.key for request in api.requests[-2:]] == [KEY, OPENAI_KEY]
        # None of these took anything.
        assert out.egress.spent.tokens.total == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 529])
async def test_an_error_of_the_api_passes_as_it_is(tmp_path: Path, status: int) -> None:
    async with open_model_api([fail(status)]) as api, outlet(tmp_path, api=api.url) as out:
        answer = await out.message()
        exchange = await out.told()
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert (exchange.status, exchange.tokens, exchange.refused) == (status, None, None)


async def test_an_api_that_is_not_there_is_an_error_that_may_be_tried_again(tmp_path: Path) -> None:
    async with outlet(tmp_path) as out:
        answer = await out.message()
        exchange = await out.told()
    assert answer.status_code == 502
    assert answer.json()["error"]["type"] == "api_error"
    assert "x-should-retry" not in answer.headers
    assert exchange.refused == "127.0.0.1:1 did not answer: ConnectError"


async def test_an_answer_that_breaks_off_breaks_off_for_the_guest_too(tmp_path: Path) -> None:
    script = [Turn((Say("Hello there"),), cut_after=4)]
    async with open_model_api(script) as api, outlet(tmp_path, api=api.url) as out:
        with pytest.raises(httpx2.RemoteProtocolError):
            await out.message(stream=True)
        exchange = await out.told()
    assert exchange.status == 200
    assert exchange.refused is not None
    assert exchange.refused.endswith("did not answer: RemoteProtocolError")
    assert exchange.tokens == Tokens(1000, 2, 0, 200, estimated=True)


async def test_without_a_credential_the_guest_is_told_what_is_missing(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, other=(Kind.SECRET, "not for models"))
    async with (
        open_model_api([say("Hi.")]) as api,
        outlet(tmp_path, api=api.url, credentials=kept) as out,
    ):
        answer = await out.message()
        assert api.requests == []
        assert answer.status_code == 403
        assert answer.headers["x-should-retry"] == "false"
        assert "there is no credential for anthropic" in answer.json()["error"]["message"]
        # As soon as there is one, it is used.
        await kept.set("new", Kind.ANTHROPIC_API_KEY, SecretStr(KEY))
        assert (await out.message()).status_code == 200


@pytest.mark.parametrize("piece", [1, 7, 1000])
async def test_a_key_that_the_api_repeats_does_not_reach_the_guest(
    tmp_path: Path, piece: int
) -> None:
    script = [Turn((Say(f"Your key is {KEY}, and {KEY[:20]} is its beginning."),), piece=piece)]
    async with open_model_api(script) as api, outlet(tmp_path, api=api.url) as out:
        streamed = await out.message(stream=True)
        whole = await out.message()
    for answer in (streamed, whole):
        assert answer.status_code == 200
        # A stream's text is cut in two by the API, in the middle of the key or not.
        assert KEY not in answer.text
    assert f"Your key is {'x' * len(KEY)}, and {KEY[:20]}" in whole.text
    assert len(whole.content) == int(whole.headers["content-length"])


async def test_a_key_in_an_error_or_a_header_does_not_reach_the_guest(tmp_path: Path) -> None:
    part = replace(fail(401, message=f"{KEY} is no key"), headers={"request-id": f"r-{KEY}"})
    async with open_model_api([part]) as api, outlet(tmp_path, api=api.url) as out:
        answer = await out.message()
        exchange = await out.told()
    assert answer.status_code == 401
    assert KEY not in answer.text + str(answer.headers) + str(exchange)
    assert answer.headers["request-id"] == "r-" + "x" * len(KEY)


async def test_an_answer_that_cannot_be_read_is_not_passed_on(tmp_path: Path) -> None:
    async def serve(stream: ByteStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(
                b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"
            )

    async with (
        listening(serve) as port,
        outlet(tmp_path, api=f"http://127.0.0.1:{port}") as out,
    ):
        answer = await out.message()
    assert answer.status_code == 502
    assert "compresses its answer" in answer.text


async def test_many_requests_go_beside_each_other_over_connections_that_stay(
    tmp_path: Path,
) -> None:
    async with open_model_api([say("Hi.")]) as api, outlet(tmp_path, api=api.url) as out:
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(out.message)
        assert len(api.requests) == 20
        assert out.egress.spent.requests == 20
        assert out.egress.spent.tokens == Tokens(20_000, 1000, 0, 4000)


async def test_the_socket_is_for_the_daemon_alone_and_goes_with_the_endpoint(
    tmp_path: Path,
) -> None:
    async with outlet(tmp_path) as out:
        path = out.egress.path
        assert path is not None
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600  # noqa: PTH116 - what the kernel says
    assert not path.exists()
    path.parent.chmod(0o755)
    with pytest.raises(errors.InvalidInput, match="others may enter"):
        async with outlet(tmp_path):
            pass


async def test_when_the_endpoint_closes_requests_end_and_are_told_of(tmp_path: Path) -> None:
    async def pause(_: int) -> None:
        await anyio.sleep_forever()

    async with (
        open_model_api([Turn((Say("x"),), pause=pause)]) as api,
        outlet(tmp_path, api=api.url) as out,
        out.connected() as stream,
    ):
        body = json.dumps(ASKED).encode()
        head = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        await stream.send(head % len(body) + body)
        request = await api.next()
        with anyio.fail_after(PATIENCE_S):
            await out.egress.close()
            exchange = await out.told()
            await request.hung_up.wait()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
    assert (exchange.path, exchange.status) == ("/v1/messages", None)

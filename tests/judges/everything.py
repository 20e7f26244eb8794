"""The tools, resources and prompts that the official conformance suite wants to find.

`beside` puts them into our own server as the daemon builds it, so that what is judged is our
dispatch, our transports and our tasks extension; the product itself has no `test_*` tool. Names and
texts are the suite's.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, cast

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.mcpserver.prompts.base import UserMessage
from mcp.shared.exceptions import MCPError
from mcp.types import (
    INTERNAL_ERROR,
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    AudioContent,
    CreateMessageRequest,
    CreateMessageRequestParams,
    ElicitRequest,
    ElicitRequestFormParams,
    ElicitResult,
    EmbeddedResource,
    ImageContent,
    InputRequest,
    InputRequiredResult,
    ListRootsRequest,
    SamplingMessage,
    TextContent,
    TextResourceContents,
)
from pydantic import BaseModel, Field

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAA"
    "AABJRU5ErkJggg=="
)
WAV = "UklGRiYAAABXQVZFZm10IBAAAAABAAEAQB8AAAB9AAACABAAZGF0YQIAAAA="

fixtures = MCPServer("fixtures", log_level="WARNING")


@fixtures.tool()
async def test_simple_text() -> str:
    return "This is a simple text response for testing."


@fixtures.tool()
async def test_image_content() -> list[ImageContent]:
    return [ImageContent(type="image", data=PNG, mime_type="image/png")]


@fixtures.tool()
async def test_audio_content() -> list[AudioContent]:
    return [AudioContent(type="audio", data=WAV, mime_type="audio/wav")]


def _embedded(uri: str, mime_type: str, text: str) -> EmbeddedResource:
    return EmbeddedResource(
        type="resource", resource=TextResourceContents(uri=uri, mime_type=mime_type, text=text)
    )


@fixtures.tool()
async def test_embedded_resource() -> list[EmbeddedResource]:
    text = "This is an embedded resource content."
    return [_embedded("test://embedded-resource", "text/plain", text)]


@fixtures.tool()
async def test_multiple_content_types() -> list[TextContent | ImageContent | EmbeddedResource]:
    return [
        TextContent(type="text", text="Multiple content types test:"),
        ImageContent(type="image", data=PNG, mime_type="image/png"),
        _embedded(
            "test://mixed-content-resource", "application/json", '{"test": "data", "value": 123}'
        ),
    ]


@fixtures.tool()
async def test_tool_with_logging(ctx: Context) -> str:
    for text in (
        "Tool execution started",
        "Tool processing data",
        "Tool execution completed",
    ):
        await ctx.request_context.session.send_log_message("info", text)  # pyright: ignore[reportDeprecated] - the suite still asks for it
        await anyio.sleep(0.05)
    return "Tool with logging executed successfully"


@fixtures.tool()
async def test_tool_with_progress(ctx: Context) -> str:
    for step in (0, 50, 100):
        await ctx.report_progress(step, 100, f"Completed step {step} of 100")
        await anyio.sleep(0.05)
    return "done"


@fixtures.tool()
async def test_logging_tool(ctx: Context) -> str:
    await ctx.request_context.session.send_log_message("info", "unasked")  # pyright: ignore[reportDeprecated]  # the older protocol has it
    return "logged, if that was asked for"


@fixtures.tool()
async def test_error_handling() -> str:
    raise ToolError("This tool intentionally returns an error for testing")


@fixtures.tool()
async def test_sampling(prompt: str, ctx: Context) -> str:
    answer = await ctx.session.create_message(  # pyright: ignore[reportDeprecated] - the suite still asks for it
        messages=[SamplingMessage(role="user", content=TextContent(type="text", text=prompt))],
        max_tokens=100,
        related_request_id=ctx.request_id,
    )
    text = answer.content.text if answer.content.type == "text" else ""
    return f"LLM response: {text}"


class Reply(BaseModel):
    response: str = Field(description="User's response")


async def _elicited(ctx: Context, message: str, schema: type[BaseModel]) -> str:
    answer = await ctx.elicit(message=message, schema=schema)
    content = answer.data.model_dump_json() if answer.action == "accept" else "{}"
    return f"action={answer.action}, content={content}"


@fixtures.tool()
async def test_elicitation(message: str, ctx: Context) -> str:
    return "User response: " + await _elicited(ctx, message, Reply)


class Defaults(BaseModel):
    name: str = "John Doe"
    age: int = 30
    score: float = 95.5
    status: str = Field(
        default="active", json_schema_extra={"enum": ["active", "inactive", "pending"]}
    )
    verified: bool = True


@fixtures.tool()
async def test_elicitation_sep1034_defaults(ctx: Context) -> str:
    return "Elicitation result: " + await _elicited(ctx, "Please provide information", Defaults)


def _titled(**options: str) -> list[Any]:
    return [{"const": value, "title": title} for value, title in options.items()]


class Enums(BaseModel):
    untitledSingle: str = Field(json_schema_extra={"enum": ["active", "inactive", "pending"]})
    titledSingle: str = Field(json_schema_extra={"oneOf": _titled(low="Low", high="High")})
    untitledMulti: list[str] = Field(
        json_schema_extra={"items": {"type": "string", "enum": ["read", "write", "execute"]}}
    )
    titledMulti: list[str] = Field(
        json_schema_extra={"items": {"anyOf": _titled(feature="New Feature", bug="Bug Fix")}}
    )
    legacyEnum: str = Field(
        json_schema_extra={
            "enum": ["small", "medium", "large"],
            "enumNames": ["Small Size", "Medium Size", "Large Size"],
        }
    )


@fixtures.tool()
async def test_elicitation_sep1330_enums(ctx: Context) -> str:
    return "Elicitation completed: " + await _elicited(ctx, "Please select", Enums)


@fixtures.tool()
async def test_streaming_elicitation(ctx: Context) -> str | InputRequiredResult:
    await ctx.report_progress(1, 2, "about to ask")
    if "ask" in (ctx.input_responses or {}):
        return "answered"
    return _asking(ask=form("Go on?", ok="boolean"))


@fixtures.tool()
async def test_x_mcp_header(
    region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})] = "<none>",  # noqa: PT028 - a tool, not a test
) -> str:
    return f"region={region}"


@fixtures.tool()
async def test_missing_capability(ctx: Context) -> str:
    capabilities = ctx.session.client_capabilities
    if capabilities is None or capabilities.sampling is None:
        raise MCPError(
            code=MISSING_REQUIRED_CLIENT_CAPABILITY,
            message="This tool requires the client 'sampling' capability",
            data={"requiredCapabilities": {"sampling": {}}},
        )
    return "sampling is declared"


@fixtures.tool()
async def test_reconnection(ctx: Context) -> str:
    await ctx.close_sse_stream()
    await anyio.sleep(0.2)
    return "Reconnection test completed"


@fixtures.tool()
async def test_trigger_tool_change(ctx: Context) -> str:
    await ctx.notify_tools_changed()
    return "tool list changed"


@fixtures.tool()
async def test_trigger_prompt_change(ctx: Context) -> str:
    await ctx.notify_prompts_changed()
    return "prompt list changed"


# A call in several rounds: the server asks, the client calls again with the answers.


def form(message: str, **properties: str) -> ElicitRequest:
    schema = {
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }
    return ElicitRequest(
        params=ElicitRequestFormParams(
            message=message, requested_schema=cast("dict[str, Any]", schema)
        )
    )


def _sample(text: str) -> CreateMessageRequest:
    message = SamplingMessage(role="user", content=TextContent(type="text", text=text))
    return CreateMessageRequest(
        params=CreateMessageRequestParams(messages=[message], max_tokens=100)
    )


def field(ctx: Context, key: str, name: str) -> object:
    answer = (ctx.input_responses or {}).get(key)
    return (answer.content or {}).get(name) if isinstance(answer, ElicitResult) else None


def _asking(state: str | None = None, **requests: InputRequest) -> InputRequiredResult:
    return InputRequiredResult(input_requests=requests, request_state=state)


@fixtures.tool()
async def test_input_required_result_elicitation(ctx: Context) -> str | InputRequiredResult:
    name = field(ctx, "user_name", "name")
    return f"Hello, {name}!" if name else _asking(user_name=form("Your name?", name="string"))


@fixtures.tool()
async def test_input_required_result_sampling(ctx: Context) -> str | InputRequiredResult:
    if "capital_question" in (ctx.input_responses or {}):
        return "The model said something."
    return _asking(capital_question=_sample("What is the capital of France?"))


@fixtures.tool()
async def test_input_required_result_list_roots(ctx: Context) -> str | InputRequiredResult:
    if "client_roots" in (ctx.input_responses or {}):
        return "The client has roots."
    return _asking(client_roots=ListRootsRequest())


@fixtures.tool()
async def test_input_required_result_request_state(ctx: Context) -> str | InputRequiredResult:
    if "confirm" in (ctx.input_responses or {}) and ctx.request_state == "nonce":
        return "state-ok: confirmation received"
    return _asking("nonce", confirm=form("Please confirm", ok="boolean"))


@fixtures.tool()
async def test_input_required_result_multiple_inputs(ctx: Context) -> str | InputRequiredResult:
    if {"user_name", "greeting", "client_roots"} <= (ctx.input_responses or {}).keys():
        return "All inputs received."
    return _asking(
        "several",
        user_name=form("Your name?", name="string"),
        greeting=_sample("Generate a greeting"),
        client_roots=ListRootsRequest(),
    )


@fixtures.tool()
async def test_input_required_result_multi_round(ctx: Context) -> str | InputRequiredResult:
    state: dict[str, Any] = json.loads(ctx.request_state) if ctx.request_state else {"round": 0}
    name, color = field(ctx, "step1", "name"), field(ctx, "step2", "color")
    if state["round"] == 2 and color:
        return f"{state['name']} likes {color}."
    if state["round"] == 1 and name:
        after = json.dumps({"round": 2, "name": name})
        return _asking(after, step2=form("Step 2: your favorite color?", color="string"))
    return _asking(json.dumps({"round": 1}), step1=form("Step 1: your name?", name="string"))


@fixtures.tool()
async def test_input_required_result_tampered_state(ctx: Context) -> str | InputRequiredResult:
    if ctx.request_state is None:
        return _asking("round-1", confirm=form("Please confirm", ok="boolean"))
    return f"state-ok: {ctx.request_state}"


@fixtures.tool()
async def test_input_required_result_capabilities(ctx: Context) -> InputRequiredResult:
    capabilities = ctx.client_capabilities
    requests: dict[str, InputRequest] = {}
    if capabilities is None or capabilities.sampling is not None:
        requests["sample"] = _sample("Say hello")
    if capabilities is None or capabilities.elicitation is not None:
        requests["ask"] = form("Your name?", name="string")
    return _asking("gated", **requests)


@fixtures.tool()
async def json_schema_2020_12_tool() -> str:
    return "its schema is what counts"


SCHEMA_2020_12: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "$defs": {
        "address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }
    },
    "properties": {
        "name": {"type": "string"},
        "address": {"$ref": "#/$defs/address"},
        "contactMethod": {"type": "string", "enum": ["phone", "email"]},
        "phone": {"type": "string"},
        "email": {"type": "string"},
    },
    "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
    "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
    "then": {"required": ["phone"]},
    "else": {"required": ["email"]},
    "additionalProperties": False,
}


@fixtures.resource("test://static-text")
async def static_text() -> str:
    return "This is the content of the static text resource."


@fixtures.resource("test://static-binary", mime_type="image/png")
async def static_binary() -> bytes:
    return base64.b64decode(PNG)


@fixtures.resource("test://watched-resource")
async def watched_resource() -> str:
    return "Watched resource content"


@fixtures.resource("test://template/{id}/data", mime_type="application/json")
async def template_data(id: str) -> str:
    return json.dumps({"id": id, "templateTest": True, "data": f"Data for ID: {id}"})


@fixtures.prompt()
async def test_simple_prompt() -> list[UserMessage]:
    return [UserMessage("This is a simple prompt for testing.")]


@fixtures.prompt()
async def test_prompt_with_arguments(arg1: str, arg2: str) -> list[UserMessage]:
    return [UserMessage(f"Prompt with arguments: arg1='{arg1}', arg2='{arg2}'")]


@fixtures.prompt()
async def test_prompt_with_embedded_resource(resourceUri: str) -> list[UserMessage]:
    return [
        UserMessage(_embedded(resourceUri, "text/plain", "Embedded resource content for testing.")),
        UserMessage("Please process the embedded resource above."),
    ]


@fixtures.prompt()
async def test_prompt_with_image() -> list[UserMessage]:
    return [
        UserMessage(ImageContent(type="image", data=PNG, mime_type="image/png")),
        UserMessage("Please analyze the image above."),
    ]


@fixtures.prompt()
async def test_input_required_result_prompt(
    ctx: Context,
) -> list[UserMessage] | InputRequiredResult:
    context = field(ctx, "user_context", "context")
    if context:
        return [UserMessage(f"Use the following context: {context}")]
    return _asking(user_context=form("Which context?", context="string"))


# What the suite's scenarios of the tasks extension call.


@fixtures.tool()
async def greet(name: str = "World") -> str:
    return f"Hello, {name}!"


@fixtures.tool()
async def slow_compute(seconds: float = 1, label: str = "") -> str:
    await anyio.sleep(seconds)
    return f"done {label}"


@fixtures.tool()
async def failing_job() -> str:
    await anyio.sleep(0.2)
    raise ToolError("the job failed")


@fixtures.tool()
async def protocol_error_job() -> str:
    await anyio.sleep(0.2)
    raise MCPError(code=INTERNAL_ERROR, message="protocol error")


@fixtures.tool()
async def confirm_delete(filename: str = "x") -> str:
    return filename


@fixtures.tool()
async def multi_input() -> str:
    return ""


@fixtures.tool()
async def test_tool_with_task(ctx: Context) -> str | InputRequiredResult:
    name = field(ctx, "user_name", "name")
    return f"Hello, {name}!" if name else _asking(user_name=form("Your name?", name="string"))

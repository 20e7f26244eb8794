from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import jsonschema

from microvm_orchestrator.web.stream import PATH
from serving import served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def references(text: str) -> set[str]:
    return set(re.findall(r'"\$ref":\s*"([^"]+)"', text))


def resolve(document: dict[str, Any], reference: str) -> Any:
    found: Any = document
    for step in reference.removeprefix("#/").split("/"):
        found = found[step]
    return found


async def test_the_document_describes_every_call_and_nothing_else(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        answer = await here.http.get("/openapi.json")
        assert answer.headers["content-type"] == "application/json"
        document = answer.json()
        calls = here.service.calls
    assert document["openapi"].startswith("3.1.")
    described = {
        operation["operationId"]: (method, path) for method, path, operation in operations(document)
    }
    others = {"event_stream": ("GET", PATH), "health": ("GET", "/healthz")}
    others["metrics"] = ("GET", "/metrics")
    assert described == {name: (call.method, call.path) for name, call in calls.items()} | others


async def test_every_reference_of_the_document_leads_somewhere(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        answer = await here.http.get("/openapi.json")
    document = answer.json()
    assert references(answer.text)
    for reference in references(answer.text):
        resolve(document, reference)
    for schema in document["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


async def test_arguments_are_described_where_they_are_taken(tmp_path: Path) -> None:
    async with served(tmp_path) as here:
        document = (await here.http.get("/openapi.json")).json()
    listing = document["paths"]["/v1/tasks"]["get"]["parameters"]
    labels = next(each for each in listing if each["name"] == "labels")
    assert (labels["in"], labels["style"], labels["explode"]) == ("query", "deepObject", True)
    cancel = document["paths"]["/v1/tasks/{task_id}/cancel"]["post"]
    assert [each["name"] for each in cancel["parameters"] if each["in"] == "path"] == ["task_id"]
    body = cancel["requestBody"]["content"]["application/json"]["schema"]
    assert "task_id" not in body["properties"]
    assert cancel["requestBody"]["required"] is False
    assert {"401", "403", "404", "405", "409", "413", "415", "422", "503"} < set(
        cancel["responses"]
    )

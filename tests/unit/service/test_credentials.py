"""Credentials over every door: what is shown, what is written where, who may."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from calling import OPERATOR, house
from microvm_orchestrator import errors
from microvm_orchestrator.egress.credentials import FILE
from serving import served

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-ant-api03-a-key-that-nobody-shall-read-0123456789"
WORK = {"name": "work", "kind": "anthropic-api-key"}


async def test_a_credential_is_listed_by_name_and_kind_alone(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("credential_set", **WORK, value=KEY)
        listed = await home.ask("credential_list")
        assert listed == {"items": [made]}
        assert set(made) == {"name", "kind", "created_at", "source"}
        assert home.service.host.credentials.get("work").value.get_secret_value() == KEY
        removed = await home.ask("credential_remove", name="work")
        assert removed == made
        assert await home.ask("credential_list") == {"items": []}


async def test_setting_one_again_replaces_its_value(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("credential_set", **WORK, value=KEY)
        await home.ask("credential_set", **WORK, value=f"{KEY}-2")
        assert len((await home.ask("credential_list"))["items"]) == 1
        assert home.service.host.credentials.get("work").value.get_secret_value() == f"{KEY}-2"


async def test_only_an_admin_touches_credentials(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        for call, given in (
            ("credential_set", {**WORK, "value": KEY}),
            ("credential_list", {}),
            ("credential_remove", {"name": "work"}),
        ):
            with pytest.raises(errors.Denied):
                await home.ask(call, by=OPERATOR, **given)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({**WORK, "value": "x"}, errors.InvalidInput),
        ({**WORK, "value": f"{KEY}\n"}, errors.InvalidInput),
        ({**WORK, "value": KEY * 500}, errors.TooLarge),
        ({**WORK, "value": [KEY]}, errors.InvalidInput),
        ({**WORK, "values": KEY}, errors.InvalidInput),
        ({**WORK, "kind": KEY, "value": KEY}, errors.InvalidInput),
    ],
)
async def test_a_refusal_does_not_repeat_the_value(
    tmp_path: Path, given: dict[str, object], kind: type[errors.OrchestratorError]
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(kind) as refusal:
            await home.ask("credential_set", **given)
        assert KEY not in f"{refusal.value} {refusal.value.hint}"
        audit = await home.ask("audit_list")
        assert KEY not in json.dumps(audit)


def _holding(folder: Path, text: str) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if text.encode() in path.read_bytes()]


async def test_the_value_is_in_one_file_and_nowhere_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with served(tmp_path) as here:
        answers = [
            await here.http.put("/v1/credentials/work", json={"kind": WORK["kind"], "value": KEY}),
            await here.http.put("/v1/credentials/work", json={"kind": "other", "value": KEY}),
            await here.http.put(
                "/v1/credentials/other", json={"kind": "anthropic-oauth", "value": KEY}
            ),
            await here.http.get("/v1/credentials"),
            await here.http.get("/v1/audit"),
            await here.http.get("/v1/events"),
        ]
        rows = answers[4].json()["items"]
    assert [answer.status_code for answer in answers] == [200, 422, 422, 200, 200, 200]
    assert [(row["action"], row["target"], row["outcome"]) for row in rows] == [
        ("credential_set", "other", "invalid-input"),
        ("credential_set", "work", "invalid-input"),
        ("credential_set", "work", "ok"),
    ]
    assert not [answer for answer in answers if KEY in answer.text]
    assert KEY not in "".join(capfd.readouterr())
    assert _holding(tmp_path, KEY) == [FILE]

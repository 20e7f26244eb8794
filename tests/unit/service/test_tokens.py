from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import ADMIN, OPERATOR, PATIENCE_S, VIEWER, House, house
from microvm_orchestrator import errors
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.service.tokens import authenticate
from microvm_orchestrator.store.questions import RecordById

if TYPE_CHECKING:
    from pathlib import Path


async def refusal_of(home: House, token: str) -> str:
    with pytest.raises(errors.Unauthenticated) as refusal:
        await authenticate(home.service, token)
    return f"{refusal.value} {refusal.value.hint}"


def written_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


async def test_a_token_stands_for_its_name_role_and_scope(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask(
            "token_create",
            name="builder",
            role="worker",
            scope={"own": False, "labels": {"team": ["red", "blue"]}},
        )
        assert re.fullmatch(rf"mo_{made['token_id']}_[A-Za-z0-9_-]{{43}}", made["token"])
        assert await authenticate(home.service, made["token"]) == Principal(
            "builder",
            Role.WORKER,
            Scope(everything=False, own=False, labels=(("team", frozenset({"red", "blue"})),)),
            token_id=made["token_id"],
        )


async def test_a_secret_is_shown_once_and_kept_nowhere(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker")
        secret = made["token"][-43:]
        [listed] = (await home.ask("token_list"))["items"]
        assert made == listed | {"token": made["token"]}
        assert secret not in str(listed)
        written = written_below(tmp_path)
        assert made["token_id"].encode() in written
        assert secret.encode() not in written


async def test_every_token_that_is_no_good_is_refused_in_the_same_words(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        good = await home.ask("token_create", name="good", role="viewer")
        gone = await home.ask("token_create", name="gone", role="viewer")
        late = await home.ask("token_create", name="late", role="viewer", expires_in_s=1e-6)
        await home.ask("token_revoke", token_id=gone["token_id"])
        other = "mo_tok_" + "0" * 26 + good["token"][-44:]

        await authenticate(home.service, good["token"])
        bad = [
            gone["token"],
            late["token"],
            other,
            good["token"][:-1] + ("A" if good["token"][-1] != "A" else "B"),
            good["token"] + "\n",
            good["token"].upper(),
            good["token_id"],
            "",
            "mo_" + "x" * 100_000,
            "mo_tok_%00" + good["token"][-44:],
            "ключ",
        ]
        assert {await refusal_of(home, token) for token in bad} == {
            "the token is not valid token_create makes a new one; ask who runs the daemon"
        }


async def test_a_revoked_token_is_refused_from_the_next_request_on(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker")
        await authenticate(home.service, made["token"])
        ended = await home.ask("token_revoke", token_id=made["token_id"])
        assert (ended["live"], ended["revoked_at"] is not None) == (False, True)
        await refusal_of(home, made["token"])
        # Again changes nothing, not even the time.
        assert await home.ask("token_revoke", token_id=made["token_id"]) == ended


async def test_the_last_use_is_noted_once_a_minute(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker")
        assert made["last_used_at"] is None
        for _ in range(3):
            await authenticate(home.service, made["token"])
        [listed] = (await home.ask("token_list"))["items"]
        assert listed["last_used_at"] is not None
        noted = await home.store.query(RecordById("token-use", made["token_id"]), SYSTEM)
        assert noted is not None
        assert noted.version == 1


NARROWED = Principal("narrow", Role.ADMIN, Scope(everything=False))


@pytest.mark.parametrize(
    ("by", "asked", "told"),
    [
        (OPERATOR, {"role": "admin"}, "cannot make a token for admin"),
        (NARROWED, {"role": "viewer"}, "does not see everything"),
        (VIEWER, {"role": "viewer"}, "needs the role operator"),
        (Principal("w", Role.WORKER), {"role": "worker"}, "needs the role operator"),
    ],
)
async def test_nobody_makes_a_token_that_reaches_further_than_they_do(
    tmp_path: Path, by: Principal, asked: dict[str, Any], told: str
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(errors.Denied, match=told):
            await home.ask("token_create", name="x", by=by, **asked)
        assert (await home.ask("token_list"))["items"] == []


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"name": "system"}, "the daemon's own"),
        ({"name": "uid:0"}, "name"),
        ({"name": ""}, "name"),
        ({"role": "root"}, "role"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": -5}, "expires_in_s"),
        ({"expires_in_s": float("inf")}, "expires_in_s"),
        ({"expires_in_s": float("nan")}, "expires_in_s"),
        ({"scope": {"labels": {"colour": ["red"]}}}, "label colour"),
        ({"scope": {"labels": {"team": []}}}, "scope.labels.team"),
        ({"scope": {"everything": True}}, "scope.everything"),
        ({"secret": "mine"}, "secret"),
        ({"role": "admin", "scope": {}}, "the sight of an admin"),
    ],
)
async def test_a_token_that_makes_no_sense_is_refused(
    tmp_path: Path, asked: dict[str, Any], told: str
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(errors.InvalidInput, match=told):
            await home.ask("token_create", **{"name": "x", "role": "viewer"} | asked)
        assert (await home.ask("token_list"))["items"] == []


async def test_a_repeated_request_makes_no_second_token(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker", idempotency_key="k")
        with pytest.raises(errors.KeyReused, match=made["token_id"]):
            await home.ask("token_create", name="w", role="worker", idempotency_key="k")
        assert len((await home.ask("token_list"))["items"]) == 1
        # The key is the caller's own.
        await home.ask("token_create", name="v", role="worker", idempotency_key="k", by=OPERATOR)
        assert len((await home.ask("token_list"))["items"]) == 2


async def test_an_operator_cannot_take_the_name_of_anothers_token(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        await home.ask("token_create", name="alice", role="worker")
        own = {"name": "bob", "role": "worker", "by": OPERATOR}
        await home.ask("token_create", **own)
        with pytest.raises(errors.AlreadyExists, match="alice"):
            await home.ask("token_create", name="alice", role="worker", by=OPERATOR)
        # A successor, before the first is revoked; and an admin may share any name.
        await home.ask("token_create", **own)
        await home.ask("token_create", name="bob", role="worker")
        names = [item["name"] for item in (await home.ask("token_list"))["items"]]
        assert names == ["alice", "bob", "bob", "bob"]


async def test_a_token_that_ends_takes_its_open_connections_along(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker")
        # As a stream that was opened with the token keeps it.
        holder = await authenticate(home.service, made["token"])
        await home.ask("whoami", by=holder)
        await home.ask("token_revoke", token_id=made["token_id"])
        with pytest.raises(errors.Unauthenticated, match="revoked or has run out"):
            await home.ask("whoami", by=holder)


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_wait_ends_with_its_token(tmp_path: Path, how: str) -> None:
    async with house(tmp_path) as home:
        life = {"expires_in_s": 0.3} if how == "expired" else {}
        made = await home.ask("token_create", name="w", role="worker", **life)
        holder = await authenticate(home.service, made["token"])
        refused: list[str] = []

        async def claim() -> None:
            with pytest.raises(errors.Unauthenticated) as refusal:
                await home.ask("task_claim", wait_s=3600.0, by=holder)
            refused.append(refusal.value.code)

        with anyio.fail_after(PATIENCE_S):
            async with anyio.create_task_group() as group:
                group.start_soon(claim)
                await anyio.wait_all_tasks_blocked()
                if how == "revoked":
                    await home.ask("token_revoke", token_id=made["token_id"])
        assert refused == ["unauthenticated"]
        # Nothing was given to somebody who could not have kept it.
        await home.ask("task_submit", key="a")
        assert (await home.ask("task_get", task_id="a"))["state"] == "ready"


async def test_an_admin_sees_all_tokens_and_an_operator_their_own(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        first = await home.ask("token_create", name="first", role="viewer", by=ADMIN)
        await home.ask("token_create", name="second", role="viewer", by=OPERATOR)
        await home.ask("token_create", name="third", role="viewer", by=ADMIN)

        listed = await home.ask("token_list", limit=2)
        rest = await home.ask("token_list", limit=2, cursor=listed["next_cursor"])
        names = [item["name"] for page in (listed, rest) for item in page["items"]]
        assert (names, rest["next_cursor"]) == (["first", "second", "third"], None)

        own = await home.ask("token_list", limit=1, by=OPERATOR)
        assert [item["name"] for item in own["items"]] == ["second"]
        with pytest.raises(errors.NotFound):
            await home.ask("token_revoke", token_id=first["token_id"], by=OPERATOR)
        with pytest.raises(errors.NotFound):
            await home.ask("token_revoke", token_id="tok_none")


async def test_a_narrowed_token_sees_its_own_tasks_and_those_of_its_labels(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask(
            "token_create", name="red", role="operator", scope={"labels": {"team": ["red"]}}
        )
        red = await authenticate(home.service, made["token"])
        await home.ask("task_submit", key="blue", labels={"team": "blue"})
        await home.ask("task_submit", key="red", labels={"team": "red"})
        await home.ask("task_submit", key="own", by=red)

        listed = await home.ask("task_list", by=red)
        assert [task["key"] for task in listed["items"]] == ["red", "own"]
        with pytest.raises(errors.NotFound):
            await home.ask("task_get", task_id="blue", by=red)


async def test_whoami_tells_callers_who_they_are(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask(
            "token_create", name="w", role="worker", scope={"labels": {"team": ["red"]}}
        )
        holder = await authenticate(home.service, made["token"])
        assert await home.ask("whoami", by=holder) == {
            "name": "w",
            "role": "worker",
            "scope": {"own": True, "labels": {"team": ["red"]}},
            "via": "test",
            "token_id": made["token_id"],
        }
        assert await home.ask("whoami", by=VIEWER) == {
            "name": "viewer",
            "role": "viewer",
            "scope": None,
            "via": "test",
            "token_id": None,
        }


async def test_making_and_revoking_tokens_is_audited_by_their_ids(tmp_path: Path) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("token_create", name="w", role="worker", by=OPERATOR)
        await authenticate(home.service, made["token"])
        await home.ask("token_revoke", token_id=made["token_id"], by=OPERATOR)

        rows = (await home.ask("audit_list"))["items"]
        assert [(row["actor"], row["action"], row["target"]) for row in rows] == [
            ("operator", "token_revoke", made["token_id"]),
            ("operator", "token_create", made["token_id"]),
        ]
        assert made["token"] not in str(rows)

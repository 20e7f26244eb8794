from __future__ import annotations

import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from calling import OPERATOR, PATIENCE_S, House, house
from microvm_orchestrator import errors
from microvm_orchestrator.deliveries import deliver
from microvm_orchestrator.deliveries.outbox import Means, Outbox
from microvm_orchestrator.deliveries.post import Poster
from microvm_orchestrator.model.access import Principal, Role, Scope
from microvm_orchestrator.model.records import SYSTEM
from microvm_orchestrator.model.task import Retry
from microvm_orchestrator.model.webhook import KeptWebhook
from microvm_orchestrator.service.tokens import authenticate
from microvm_orchestrator.store.base import Keep
from microvm_orchestrator.store.every import every_record
from microvm_orchestrator.store.questions import RecordById
from receiver import OK, PREFIX, SECRET, SILENCE, Receiver, answer, receiver

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

# A hundredth of a second between attempts instead of minutes.
FAST = Retry(backoff_s=0.01, factor=1.0, max_backoff_s=0.01)
LOCAL: dict[str, object] = {"allow_private_targets": True}


@asynccontextmanager
async def delivering(home: House, pace: Retry = FAST) -> AsyncGenerator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(deliver, home.store, home.service.journal, home.service.settings, pace)
        yield
        group.cancel_scope.cancel()


@asynccontextmanager
async def post_office(tmp_path: Path, **webhooks: object) -> AsyncGenerator[tuple[House, Receiver]]:
    """A service that delivers, and somebody to deliver to."""
    async with (
        house(tmp_path, webhooks=LOCAL | webhooks) as home,
        receiver() as there,
        delivering(home),
    ):
        yield home, there


async def hook(home: House, there: Receiver, **more: Any) -> str:
    made = await home.ask("webhook_create", **{"url": there.url, "secret": SECRET} | more)
    return made["webhook_id"]


async def log_of(home: House, **which: Any) -> list[dict[str, Any]]:
    return (await home.ask("delivery_list", **which))["items"]


async def test_an_event_arrives_signed(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        webhook_id = await hook(home, there, kinds=["task.*"])
        task = await home.ask("task_submit", title="größer", group="g")

        got = await there.next()
        assert got.line == "POST /hook?a=b HTTP/1.1"
        assert got.headers["host"] == f"127.0.0.1:{there.port}"
        assert got.headers["content-type"] == "application/json"
        assert got.headers[f"{PREFIX}event"] == "task.submitted"
        assert got.attempt == 1
        assert got.signed_with(SECRET)
        assert not got.signed_with(SECRET[::-1])
        at = int(got.headers[f"{PREFIX}signature"].removeprefix("t=").partition(",")[0])
        assert abs(at - time.time()) < 60
        assert (got.event["subject"], got.event["group"]) == (task["task_id"], "g")
        [event] = (await home.ask("task_history", task_id=task["task_id"]))["items"]
        assert got.event == event

        async def delivered() -> bool:
            [entry] = await log_of(home)
            return entry["state"] == "delivered"

        await home.until(delivered)
        [entry] = await log_of(home, webhook_id=webhook_id, state="delivered")
        assert entry["delivery_id"] == got.headers[f"{PREFIX}delivery"]
        assert (entry["attempts"], entry["status"], entry["error"]) == (1, 200, None)


async def test_a_hook_gets_the_kinds_and_groups_it_asked_for(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        await hook(home, there, kinds=["task.submitted", "task.cancelled"], groups=["mine"])
        await home.ask("task_submit", key="a", group="other")
        await home.ask("task_submit", key="b", group="mine")
        await home.ask("task_update", task_id="b", group="mine", changes={"title": "new"})
        await home.ask("task_cancel", task_id="b", group="mine")

        got = [await there.next(), await there.next()]
        kinds = sorted((event["kind"], event["group"]) for event in (one.event for one in got))
        assert kinds == [("task.cancelled", "mine"), ("task.submitted", "mine")]


async def test_a_receiver_of_jobs_is_told_how_they_stand_and_of_nothing_else(
    tmp_path: Path,
) -> None:
    async with post_office(tmp_path) as (home, there):
        await hook(home, there, shape="job")
        with pytest.raises(errors.InvalidInput):
            await hook(home, there, shape="job", kinds=["machine.started"])
        held = await home.ask("task_submit", title="a job", key="mine")
        await home.ask("task_claim", worker="w", count=1)
        claimed = await there.next()
        await home.ask(
            "task_heartbeat", task_id="mine", worker="w", token=1, progress={"message": "half"}
        )
        half = await there.next()
        await home.ask("task_cancel", task_id=held["task_id"])
        end = await there.next()

        assert all(each.signed_with(SECRET) for each in (claimed, half, end))
        assert json.loads(claimed.body) == {"job_id": "mine", "progress": "provisioning"}
        assert json.loads(half.body) == {"job_id": "mine", "progress": "half"}
        told = json.loads(end.body)
        assert told["duration_seconds"] > 0
        assert told == {
            "job_id": "mine",
            "status": "failed",
            "exit_code": -1,
            "output": "",
            "duration_seconds": told["duration_seconds"],
            "error": "Cancelled by user",
        }
        assert there.silent


async def test_a_delivery_is_tried_again_until_it_is_taken(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        there.answers = [answer(500), answer(302, "Location: /elsewhere"), answer(404), OK]
        await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")

        got = [await there.next() for _ in range(4)]
        assert [one.attempt for one in got] == [1, 2, 3, 4]
        # A redirect leads nowhere, and the same delivery comes each time.
        assert {one.line for one in got} == {"POST /hook?a=b HTTP/1.1"}
        assert len({(one.body, one.headers[f"{PREFIX}delivery"]) for one in got}) == 1
        assert all(one.signed_with(SECRET) for one in got)


async def test_a_dead_letter_can_be_sent_again(tmp_path: Path) -> None:
    async with post_office(tmp_path, max_attempts=2) as (home, there):
        there.otherwise = answer(503)
        await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")

        async def dead() -> bool:
            return len(await log_of(home, state="dead")) == 1

        await home.until(dead)
        [letter] = await log_of(home)
        assert (letter["attempts"], letter["status"]) == (2, 503)
        assert letter["error"] == "answered 503"
        assert letter["next_attempt_at"] is None
        assert [(await there.next()).attempt for _ in range(2)] == [1, 2]
        assert there.silent

        there.otherwise = OK
        again = await home.ask("delivery_retry", delivery_id=letter["delivery_id"])
        assert (again["state"], again["attempts"]) == ("pending", 0)
        got = await there.next()
        assert (got.attempt, got.headers[f"{PREFIX}delivery"]) == (1, letter["delivery_id"])

        async def delivered() -> bool:
            return len(await log_of(home, state="delivered")) == 1

        await home.until(delivered)
        with pytest.raises(errors.StateForbids, match="is delivered"):
            await home.ask("delivery_retry", delivery_id=letter["delivery_id"])
        assert await every_record(home.store, "delivery-retry", SYSTEM) == []


async def test_a_receiver_that_never_answers_holds_up_nobody_else(tmp_path: Path) -> None:
    async with post_office(tmp_path, timeout_s=3600.0) as (home, quick), receiver() as stuck:
        stuck.otherwise = SILENCE
        await hook(home, stuck, kinds=["task.submitted"])
        await hook(home, quick, kinds=["task.submitted"])
        for _ in range(10):
            await home.ask("task_submit")

        assert len({(await quick.next()).event["subject"] for _ in range(10)}) == 10
        # Of the dead one as many wait as it has hands, and no more.
        for _ in range(4):
            await stuck.next()
        assert stuck.silent


async def test_an_answer_that_takes_too_long_is_a_failure(tmp_path: Path) -> None:
    async with post_office(tmp_path, timeout_s=0.2, max_attempts=1) as (home, there):
        there.otherwise = SILENCE
        await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")

        async def dead() -> bool:
            return len(await log_of(home, state="dead")) == 1

        await home.until(dead)
        assert (await log_of(home))[0]["error"] == "no answer within 0.2 s"


async def test_an_endless_answer_is_cut_off_and_its_status_counts(tmp_path: Path) -> None:
    async with post_office(tmp_path, timeout_s=3600.0) as (home, there):
        there.otherwise = b"HTTP/1.1 200 OK\r\n\r\n"
        there.endless = b"x" * 65_536
        webhook_id = await hook(home, there)
        tested = await home.ask("webhook_test", webhook_id=webhook_id)
        assert (tested["delivered"], tested["status"]) == (True, 200)


async def test_nothing_is_lost_while_nobody_delivers(tmp_path: Path) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        await hook(home, there, kinds=["task.submitted"])
        there.answers = [answer(500)]
        async with delivering(home, Retry(backoff_s=3600.0, max_backoff_s=3600.0)):
            first = await home.ask("task_submit")
            assert (await there.next()).attempt == 1

            async def failed() -> bool:
                return [entry["attempts"] for entry in await log_of(home)] == [1]

            await home.until(failed)
        second = await home.ask("task_submit")
        [entry] = await log_of(home)
        assert entry["state"] == "pending"

        # As if the time had come: the next sender finds it due.
        [kept] = await every_record(home.store, "delivery", SYSTEM)
        kept.body["next_at"] = 0.0
        await home.store.save(kept, SYSTEM)
        async with delivering(home):
            got = {(await there.next()).event["subject"] for _ in range(2)}
        assert got == {first["task_id"], second["task_id"]}


async def submit_many(home: House, count: int) -> set[str]:
    made = await home.ask("graph_submit", tasks=[{"title": f"{n}"} for n in range(count)])
    return {task["task_id"] for task in made["tasks"]}


async def test_a_burst_arrives_whole(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        await hook(home, there, kinds=["task.submitted"])
        tasks = await submit_many(home, 250)
        assert {(await there.next()).event["subject"] for _ in tasks} == tasks


async def settled_all(home: House, count: int) -> None:
    async def settled() -> bool:
        return len(await log_of(home, state="delivered", limit=200)) == count

    await home.until(settled)


async def test_a_lost_cursor_sends_nothing_twice_that_the_log_still_knows(tmp_path: Path) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        webhook_id = await hook(home, there, kinds=["task.submitted"])
        async with delivering(home):
            for _ in await submit_many(home, 20):
                await there.next()
            await settled_all(home, 20)
        await home.store.erase("delivery-cursor", webhook_id, SYSTEM)
        async with delivering(home):
            late = await home.ask("task_submit")
            assert (await there.next()).event["subject"] == late["task_id"]
            await settled_all(home, 21)
        assert there.silent


async def test_what_the_log_forgot_is_not_sent_again_either(tmp_path: Path) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        await hook(home, there, kinds=["task.submitted"])
        async with delivering(home):
            for _ in await submit_many(home, 20):
                await there.next()
            await settled_all(home, 20)
        for record in await every_record(home.store, "delivery", SYSTEM):
            await home.store.erase("delivery", record.id, SYSTEM)
        async with delivering(home):
            late = await home.ask("task_submit")
            assert (await there.next()).event["subject"] == late["task_id"]
            await settled_all(home, 1)
        assert there.silent


async def test_the_log_of_a_hook_is_bounded(tmp_path: Path) -> None:
    sections: dict[str, Any] = {"store": {"events": {"max_age_s": 0.001}}, "webhooks": LOCAL}
    async with house(tmp_path, **sections) as home, receiver() as there, delivering(home):
        await hook(home, there, kinds=["task.submitted"])
        await submit_many(home, 20)
        for _ in range(20):
            await there.next()

        async def forgotten() -> bool:
            return len(await log_of(home)) <= 1

        await home.until(forgotten)


async def test_events_that_went_before_they_were_read_are_owned_up_to(tmp_path: Path) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        webhook_id = await hook(home, there, kinds=["task.submitted"])
        await submit_many(home, 20)
        await home.store.sweep(Keep(event_count=5))
        async with delivering(home):
            seqs = {(await there.next()).event["seq"] for _ in range(5)}
            await settled_all(home, 5)
        assert max(seqs) - min(seqs) == 4
        shown = await home.ask("webhook_get", webhook_id=webhook_id)
        assert shown["missed_at"] is not None


async def test_an_inactive_hook_goes_on_where_it_stopped(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there), receiver() as other:
        webhook_id = await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")
        await there.next()
        await home.ask("webhook_update", webhook_id=webhook_id, active=False)
        await hook(home, other, kinds=["task.submitted"])
        tasks = [(await home.ask("task_submit"))["task_id"] for _ in range(3)]
        for _ in tasks:
            await other.next()
        assert there.silent
        await home.ask("webhook_update", webhook_id=webhook_id, active=True)
        assert {(await there.next()).event["subject"] for _ in range(3)} == set(tasks)


async def test_events_of_before_a_hook_are_not_sent(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        await home.ask("task_submit")
        await hook(home, there, kinds=["task.submitted"])
        late = await home.ask("task_submit")
        assert (await there.next()).event["subject"] == late["task_id"]
        assert len(await log_of(home)) == 1


async def test_a_hook_sees_what_its_maker_sees(tmp_path: Path) -> None:
    red = Scope(everything=False, labels=(("team", frozenset({"red"})),))
    maker = Principal("maker", Role.OPERATOR, red)
    async with post_office(tmp_path) as (home, there):
        await hook(home, there, by=maker, kinds=["task.*"])
        await home.ask("task_submit", labels={"team": "blue"})
        seen = await home.ask("task_submit", labels={"team": "red"})
        own = await home.ask("task_submit", by=maker)
        got = {(await there.next()).event["subject"] for _ in range(2)}
        assert got == {seen["task_id"], own["task_id"]}


async def test_a_hook_ends_with_the_token_it_was_made_with(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        token = await home.ask("token_create", name="maker", role="operator")
        maker = await authenticate(home.service, token["token"])
        ended = await hook(home, there, by=maker, kinds=["task.submitted"])
        lasting = await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")
        for _ in range(2):
            await there.next()

        await home.ask("token_revoke", token_id=token["token_id"])
        after = await home.ask("task_submit")
        assert (await there.next()).event["subject"] == after["task_id"]

        async def settled() -> bool:
            return len(await log_of(home, webhook_id=lasting, state="delivered")) == 2

        await home.until(settled)
        assert len(await log_of(home, webhook_id=ended, state="delivered")) == 1
        assert there.silent


async def outbox_of(home: House, webhook_id: str) -> Outbox:
    record = await home.store.query(RecordById("webhook", webhook_id), SYSTEM)
    assert record is not None
    poster = Poster(home.service.settings.webhooks)
    means = Means(home.store, home.service.journal, poster, max_attempts=9, keep_s=None)
    return Outbox(means, webhook_id, record.version, KeptWebhook.model_validate(record.body))


@pytest.mark.parametrize("end", ["update", "delete", "revoke"])
async def test_no_attempt_begins_after_a_hook_changed_or_may_no_more(
    tmp_path: Path, end: str
) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        made = await home.ask("token_create", name="maker", role="operator")
        maker = await authenticate(home.service, made["token"])
        webhook_id = await hook(home, there, by=maker)
        outbox = await outbox_of(home, webhook_id)
        match end:
            case "update":
                await home.ask("webhook_update", webhook_id=webhook_id, url=f"{there.url}2")
            case "delete":
                await home.ask("webhook_delete", webhook_id=webhook_id)
            case _:
                await home.ask("token_revoke", token_id=made["token_id"])
        await home.ask("task_submit")
        # Nobody told it; it finds out.
        with anyio.fail_after(PATIENCE_S):
            await outbox.run()
        assert there.silent


async def test_a_deleted_hook_leaves_nothing_behind(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        there.otherwise = answer(500)
        webhook_id = await hook(home, there, kinds=["task.submitted"])
        await home.ask("task_submit")
        await there.next()
        await home.ask("webhook_delete", webhook_id=webhook_id)

        with pytest.raises(errors.NotFound):
            await home.ask("webhook_get", webhook_id=webhook_id)
        assert (await home.ask("webhook_list"))["items"] == []

        async def cleared() -> bool:
            kinds = ("webhook", "delivery", "delivery-cursor")
            return not any([await every_record(home.store, kind, SYSTEM) for kind in kinds])

        await home.until(cleared)


async def test_a_hook_on_everything_does_not_hear_itself(tmp_path: Path) -> None:
    async with post_office(tmp_path, max_attempts=1) as (home, there):
        there.answers = [answer(500)]
        await hook(home, there)
        await there.next()  # the news of its own making

        async def dead() -> bool:
            return len(await log_of(home, state="dead")) == 1

        await home.until(dead)
        [letter] = await log_of(home)
        await home.ask("delivery_retry", delivery_id=letter["delivery_id"])
        await there.next()
        await home.ask("task_submit", key="last")
        assert (await there.next()).event["kind"] == "task.submitted"

        async def settled() -> bool:
            return len(await log_of(home, state="delivered")) == 2

        await home.until(settled)
        assert there.silent


async def test_a_test_ping_says_what_the_receiver_answered(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there):
        webhook_id = await hook(home, there, kinds=["task.done"], active=False)
        tested = await home.ask("webhook_test", webhook_id=webhook_id)
        assert (tested["delivered"], tested["status"], tested["error"]) == (True, 200, None)
        got = await there.next()
        assert (got.event["kind"], got.headers[f"{PREFIX}event"]) == ("ping", "ping")
        assert got.headers[f"{PREFIX}delivery"] == tested["delivery_id"]
        assert got.signed_with(SECRET)

        there.answers = [answer(418)]
        tested = await home.ask("webhook_test", webhook_id=webhook_id)
        assert (tested["delivered"], tested["status"]) == (False, 418)
        assert await log_of(home) == []
        rows = (await home.ask("audit_list", action="webhook_test"))["items"]
        assert [row["outcome"] for row in rows] == ["refused", "ok"]


async def test_a_secret_is_shown_once(tmp_path: Path) -> None:
    async with house(tmp_path, webhooks=LOCAL) as home, receiver() as there:
        made = await home.ask("webhook_create", url=there.url)
        assert len(made["secret"]) == 43
        shown = await home.ask("webhook_get", webhook_id=made["webhook_id"])
        assert made == shown | {"secret": made["secret"]}
        [listed] = (await home.ask("webhook_list"))["items"]
        assert listed == shown

        keyed = await home.ask("webhook_create", url=there.url, idempotency_key="k")
        with pytest.raises(errors.KeyReused, match=keyed["webhook_id"]):
            await home.ask("webhook_create", url=there.url, idempotency_key="k")
        assert len((await home.ask("webhook_list"))["items"]) == 2


async def test_an_update_takes_effect_and_leaves_the_rest(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, old), receiver() as new:
        webhook_id = await hook(home, old, kinds=["task.submitted"], description="d")
        await home.ask("task_submit")
        await old.next()
        changed = await home.ask(
            "webhook_update", webhook_id=webhook_id, url=new.url, secret="another secret!!"
        )
        assert (changed["url"], changed["kinds"]) == (new.url, ["task.submitted"])
        assert changed["description"] == "d"
        await home.ask("task_submit")
        assert (await new.next()).signed_with("another secret!!")
        assert old.silent


async def test_deliveries_are_listed_by_hook_and_state_and_in_pages(tmp_path: Path) -> None:
    async with post_office(tmp_path) as (home, there), receiver() as other:
        first = await hook(home, there, kinds=["task.submitted"])
        await hook(home, other, kinds=["task.submitted"])
        for _ in range(5):
            await home.ask("task_submit")

        async def settled() -> bool:
            return len(await log_of(home, state="delivered")) == 10

        await home.until(settled)
        seqs: list[int] = []
        cursor: str | None = None
        while True:
            more = {} if cursor is None else {"cursor": cursor}
            page = await home.ask("delivery_list", webhook_id=first, limit=2, **more)
            seqs += [entry["event_seq"] for entry in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert len(seqs) == 5
        assert seqs == sorted(seqs)
        assert await log_of(home, state="dead") == []


async def test_the_hooks_of_others_are_hidden_from_who_does_not_see_everything(
    tmp_path: Path,
) -> None:
    narrow = Principal("narrow", Role.OPERATOR, Scope(everything=False))
    # The same name, but made when it saw everything.
    wide = Principal("narrow", Role.OPERATOR)
    async with post_office(tmp_path) as (home, there):
        theirs = await hook(home, there, by=wide, kinds=["task.submitted"])
        own = await hook(home, there, by=narrow, kinds=["task.*"], groups=["none"])
        await home.ask("task_submit")
        await there.next()

        listed = await home.ask("webhook_list", by=narrow)
        assert [item["webhook_id"] for item in listed["items"]] == [own]
        assert (await home.ask("delivery_list", by=narrow))["items"] == []
        [letter] = await log_of(home)
        for call in ("webhook_get", "webhook_update", "webhook_test", "webhook_delete"):
            with pytest.raises(errors.NotFound, match=f"no webhook {theirs}"):
                await home.ask(call, webhook_id=theirs, by=narrow)
        with pytest.raises(errors.NotFound, match="no delivery"):
            await home.ask("delivery_retry", delivery_id=letter["delivery_id"], by=narrow)
        assert len((await home.ask("webhook_list", by=OPERATOR))["items"]) == 2


async def test_one_that_was_allowed_once_is_judged_again_at_each_delivery(tmp_path: Path) -> None:
    async with receiver() as there:
        async with house(tmp_path, webhooks=LOCAL) as home:
            webhook_id = await hook(home, there, kinds=["task.submitted"])
        async with house(tmp_path, webhooks={"max_attempts": 2}) as home, delivering(home):
            await home.ask("task_submit")

            async def dead() -> bool:
                return len(await log_of(home, state="dead")) == 1

            await home.until(dead)
            [letter] = await log_of(home)
            assert "127.0.0.1 is at 127.0.0.1, which is not a public address" in letter["error"]
            tested = await home.ask("webhook_test", webhook_id=webhook_id)
            assert (tested["delivered"], tested["status"]) == (False, None)
            assert there.silent


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"kinds": ["*"]}, errors.InvalidInput),
        ({"kinds": ["task.do*"]}, errors.InvalidInput),
        ({"kinds": ["task"]}, errors.InvalidInput),
        ({"kinds": ["task.done'; DROP TABLE event"]}, errors.InvalidInput),
        ({"kinds": ["a.b"] * 101}, errors.TooLarge),
        ({"groups": ["../etc"]}, errors.InvalidInput),
        ({"secret": "too short"}, errors.InvalidInput),
        ({"secret": "x" * 201}, errors.TooLarge),
        ({"url": "http://8.8.8.8/" + "x" * 2000}, errors.TooLarge),
        ({"active": "yes"}, errors.InvalidInput),
        ({"owner": "me"}, errors.InvalidInput),
    ],
)
async def test_a_hook_that_makes_no_sense_is_refused(
    tmp_path: Path, asked: dict[str, Any], kind: type[errors.OrchestratorError]
) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(kind):
            await home.ask("webhook_create", **{"url": "http://8.8.8.8/"} | asked)


async def test_a_worker_has_no_business_with_hooks(tmp_path: Path) -> None:
    worker = Principal("w", Role.WORKER)
    async with house(tmp_path) as home:
        for call in ("webhook_create", "webhook_list", "webhook_test", "delivery_list"):
            with pytest.raises(errors.Denied):
                await home.ask(call, by=worker)

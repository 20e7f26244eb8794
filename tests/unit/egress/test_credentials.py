"""Credentials on disk and in memory: who may read them, which is used, what is refused."""

from __future__ import annotations

import json
import os
import pickle
import stat
from typing import TYPE_CHECKING

import anyio
import pytest
from pydantic import SecretStr

from egressing import KEY, OPENAI_KEY, TOKEN, keys_in
from microvm_orchestrator import errors
from microvm_orchestrator.egress.credentials import COUNT_MOST, FILE, Credentials, Kind

if TYPE_CHECKING:
    from pathlib import Path

ANTHROPIC = (Kind.ANTHROPIC_OAUTH, Kind.ANTHROPIC_API_KEY)


async def test_what_is_set_is_there_for_the_next_daemon(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY), a=(Kind.SECRET, "p w" * 3))
    again = Credentials(tmp_path)
    assert again.every() == kept.every()
    assert [each.name for each in again.every()] == ["a", "work"]
    assert again.get("work").value.get_secret_value() == KEY
    await again.remove("work")
    assert [each.name for each in Credentials(tmp_path).every()] == ["a"]
    with pytest.raises(errors.NotFound):
        await again.remove("work")


async def test_the_file_is_for_the_daemon_alone_and_nothing_stays_beside_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        kept = await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY))
        await kept.set("work", Kind.ANTHROPIC_API_KEY, SecretStr(KEY + "2"))
    finally:
        os.umask(before)
    assert [each.name async for each in anyio.Path(tmp_path).iterdir()] == [FILE]
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600


async def test_no_repr_or_text_of_a_credential_shows_its_value(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY))
    [credential] = kept.every()
    assert KEY not in f"{credential} {credential!r} {kept!r} {vars(kept)}"
    # There is one way to it, and it has a name that one can look for.
    assert KEY.encode() in pickle.dumps(credential.value.get_secret_value())


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o601])
async def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY))
    (tmp_path / FILE).chmod(mode)
    with pytest.raises(errors.ConfigInvalid, match="may be read by others") as refusal:
        Credentials(tmp_path)
    assert "chmod 600" in str(refusal.value.hint)


async def test_a_link_a_pipe_and_a_second_name_of_the_file_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    await keys_in(other, work=(Kind.ANTHROPIC_API_KEY, KEY))
    path = tmp_path / FILE
    path.symlink_to(other / FILE)
    with pytest.raises(errors.ConfigInvalid, match="cannot be opened"):
        Credentials(tmp_path)
    path.unlink()
    path.hardlink_to(other / FILE)
    with pytest.raises(errors.ConfigInvalid, match="not a file of the daemon's own"):
        Credentials(tmp_path)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(errors.ConfigInvalid, match="not a file of the daemon's own"):
        Credentials(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"version": 2, "credentials": {}}',
        '{"version": 1, "credentials": {"a": {"kind": "x", "value": "a-secret-value"}}}',
        json.dumps(
            {
                "version": 1,
                "credentials": {
                    "../a": {"kind": "secret", "value": "a-secret-value", "created_at": 1}
                },
            }
        ),
    ],
)
def test_a_damaged_file_is_refused_and_not_quoted(tmp_path: Path, text: str) -> None:
    path = tmp_path / FILE
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(errors.ConfigInvalid) as refusal:
        Credentials(tmp_path)
    assert "a-secret-value" not in f"{refusal.value} {refusal.value.__cause__}"


async def test_a_link_in_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / f"{FILE}.new").symlink_to(target)
    await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY))
    assert target.read_text() == "untouched"
    assert Credentials(tmp_path).get("work").kind is Kind.ANTHROPIC_API_KEY


async def test_what_cannot_be_written_is_not_kept_in_memory_either(tmp_path: Path) -> None:
    kept = await keys_in(tmp_path, work=(Kind.ANTHROPIC_API_KEY, KEY))
    (tmp_path / f"{FILE}.new").mkdir()
    with pytest.raises(errors.StoreReadOnly, match="cannot be written"):
        await kept.set("other", Kind.SECRET, SecretStr("a-secret"))
    assert [each.name for each in kept.every()] == ["work"]
    assert Credentials(tmp_path).every() == kept.every()


@pytest.mark.parametrize(
    ("name", "kind", "value", "why"),
    [
        ("a b", Kind.SECRET, "a-secret", "the name of a credential"),
        ("../a", Kind.SECRET, "a-secret", "the name of a credential"),
        ("a", Kind.SECRET, "short", "has 5 characters"),
        ("a", Kind.SECRET, "x" * 8193, "has 8193 characters"),
        ("a", Kind.SECRET, "two\nlines-of-it", "a control character"),
        ("a", Kind.SECRET, "escape\x9b1m-x", "a control character"),
        ("a", Kind.OPENAI_API_KEY, "sk-with a blank", "it has blanks or is not ASCII"),
        ("a", Kind.OPENAI_API_KEY, "sk-schlüssel", "it has blanks or is not ASCII"),
        ("a", Kind.ANTHROPIC_OAUTH, KEY, "is no OAuth token"),
        ("a", Kind.ANTHROPIC_API_KEY, TOKEN, "is an OAuth token"),
    ],
)
async def test_what_can_be_no_credential_is_refused_without_repeating_it(
    tmp_path: Path, name: str, kind: Kind, value: str, why: str
) -> None:
    kept = Credentials(tmp_path)
    with pytest.raises(errors.InvalidInput, match=why) as refusal:
        await kept.set(name, kind, SecretStr(value))
    assert value not in f"{refusal.value} {refusal.value.hint}"
    assert kept.every() == []


async def test_there_is_an_end_to_how_many(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(COUNT_MOST)]
    kept = await keys_in(tmp_path, **dict.fromkeys(names, (Kind.SECRET, "a-secret")))
    with pytest.raises(errors.TooLarge):
        await kept.set("one-more", Kind.SECRET, SecretStr("a-secret"))
    await kept.set("n7", Kind.SECRET, SecretStr("another-secret"))
    assert len(Credentials(tmp_path).every()) == COUNT_MOST


async def test_a_token_goes_before_a_key_the_oldest_first_and_the_named_before_all(
    tmp_path: Path,
) -> None:
    kept = await keys_in(
        tmp_path,
        z_key=(Kind.ANTHROPIC_API_KEY, KEY),
        openai=(Kind.OPENAI_API_KEY, OPENAI_KEY),
        other=(Kind.SECRET, "a-secret"),
    )

    def found(*named: str) -> str | None:
        credential = kept.find(ANTHROPIC, named)
        return None if credential is None else credential.name

    assert found() == "z_key"
    await kept.set("a_key", Kind.ANTHROPIC_API_KEY, SecretStr(KEY + "2"))
    file = tmp_path / FILE
    told = json.loads(file.read_text())
    told["credentials"]["a_key"]["created_at"] += 60
    file.write_text(json.dumps(told))
    kept = Credentials(tmp_path)
    assert found() == "z_key"
    await kept.set("token", Kind.ANTHROPIC_OAUTH, SecretStr(TOKEN))
    assert found() == "token"
    assert found("other", "a_key") == "a_key"
    assert found("openai") == "token"
    with pytest.raises(errors.NotFound):
        found("gone")


def test_what_systemd_hands_over_is_read_and_not_written(tmp_path: Path) -> None:
    handed = tmp_path / "handed"
    handed.mkdir()
    (handed / "anthropic-api-key").write_text(KEY + "\n")
    (handed / "openai-api-key.work").write_text(OPENAI_KEY)
    (handed / "tls-certificate").write_text("for somebody else")
    for file in handed.iterdir():
        file.chmod(0o400)
    kept = Credentials(tmp_path, handed)
    assert [(each.name, each.kind, each.source) for each in kept.every()] == [
        ("anthropic-api-key", Kind.ANTHROPIC_API_KEY, "systemd"),
        ("work", Kind.OPENAI_API_KEY, "systemd"),
    ]
    assert kept.get("anthropic-api-key").value.get_secret_value() == KEY

    async def change() -> None:
        with pytest.raises(errors.StateForbids, match="systemd hands over"):
            await kept.set("work", Kind.OPENAI_API_KEY, SecretStr(OPENAI_KEY))
        with pytest.raises(errors.StateForbids, match="systemd hands over"):
            await kept.remove("work")

    anyio.run(change)
    assert not (tmp_path / FILE).exists()


def test_a_file_of_systemd_that_is_no_key_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "anthropic-oauth").write_text(KEY)
    with pytest.raises(errors.ConfigInvalid, match="anthropic-oauth: the value") as refusal:
        Credentials(tmp_path, tmp_path)
    assert KEY not in str(refusal.value)
    with pytest.raises(errors.ConfigInvalid, match="cannot be read"):
        Credentials(tmp_path, tmp_path / "nowhere")

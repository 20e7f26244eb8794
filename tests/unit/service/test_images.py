"""Images that are asked for over the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calling import house

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_build_that_is_refused_says_why_with_its_own_code(tmp_path: Path) -> None:
    async with house(tmp_path) as here:
        operation = await here.ask("image_build", packages=["No Such Name"], wait_s=20)
    assert operation["state"] == "failed"
    assert operation["error"]["code"] == "package-unknown"
    assert "No Such Name" in operation["error"]["message"]


async def test_what_builds_have_fetched_lies_where_it_lasts_when_a_link_leads_there(
    tmp_path: Path,
) -> None:
    state, kept = tmp_path / "state", tmp_path / "kept"
    for folder in (state, kept):
        folder.mkdir(mode=0o700)
    (state / "image-cache").symlink_to(kept)
    async with house(state) as here:
        assert here.service.host.image_cache == kept.resolve()

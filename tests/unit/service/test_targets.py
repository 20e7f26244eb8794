from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from calling import house
from microvm_orchestrator import errors

if TYPE_CHECKING:
    from pathlib import Path

REFUSED = [
    "http://127.0.0.1/",
    "http://localhost:8080/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0/",
    "http://0.0.0.0/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://224.0.0.1/",
    "http://255.255.255.255/",
    "http://198.18.0.1/",
    "http://[::]/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
    "http://[fe80::1]/",
    "http://[fc00::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
    "http://[2001:db8::1]/",
    "ftp://8.8.8.8/",
    "file:///etc/passwd",
    "gopher://8.8.8.8/",
    "//8.8.8.8/",
    "8.8.8.8",
    "http://",
    "http:///path",
    "http://user:password@8.8.8.8/",
    "http://8.8.8.8:0/",
    "http://8.8.8.8:99999/",
    "http://8.8.8.8\x00.example/",
    "http://no such host/",
    "http://" + "a" * 300 + "/",
    "http://[::1/",
]


@pytest.mark.parametrize("url", REFUSED)
async def test_a_target_inside_or_a_url_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    async with house(tmp_path) as home:
        with pytest.raises(errors.TargetRefused):
            await home.ask("webhook_create", url=url)
        assert (await home.ask("webhook_list"))["items"] == []


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/",
        "https://1.1.1.1:8443/x?y=z",
        "http://[2606:4700:4700::1111]/",
        "http://[64:ff9b::808:808]/",
    ],
)
async def test_a_public_target_is_taken(tmp_path: Path, url: str) -> None:
    async with house(tmp_path) as home:
        made = await home.ask("webhook_create", url=url)
        assert made["url"] == url
        with pytest.raises(errors.TargetRefused):
            await home.ask("webhook_update", webhook_id=made["webhook_id"], url="http://[::1]/")
        assert (await home.ask("webhook_get", webhook_id=made["webhook_id"]))["url"] == url

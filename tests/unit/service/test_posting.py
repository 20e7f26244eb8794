from __future__ import annotations

import datetime as dt
import ssl
from typing import TYPE_CHECKING

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from microvm_orchestrator.config import Webhooks
from microvm_orchestrator.deliveries.post import Message, Poster, signature
from microvm_orchestrator.deliveries.target import Target
from receiver import SECRET, answer, receiver

if TYPE_CHECKING:
    from pathlib import Path

PING = Message("dlv_1", "wh_1", "ping", {"kind": "ping"})
# Names below it are promised never to be found.
NOWHERE = "receiver.invalid"


async def test_the_connection_goes_to_the_address_that_was_judged() -> None:
    poster = Poster(Webhooks())
    async with receiver() as there:
        target = Target(httpx2.URL(f"http://{NOWHERE}:{there.port}/p"), ("127.0.0.1",))
        assert await poster.send(target, SECRET, PING, 1) == 200
        got = await there.next()
        assert got.headers["host"] == f"{NOWHERE}:{there.port}"
        assert got.signed_with(SECRET)


async def test_another_address_is_tried_when_nothing_listens_at_the_first() -> None:
    poster = Poster(Webhooks())
    async with receiver() as there:
        url = httpx2.URL(f"http://{NOWHERE}:{there.port}/")
        assert await poster.send(Target(url, ("127.0.0.2", "127.0.0.1")), SECRET, PING, 1) == 200
        with pytest.raises(httpx2.ConnectError):
            await poster.send(Target(url, ("127.0.0.2", "127.0.0.3")), SECRET, PING, 1)
        await there.next()
        assert there.silent


async def test_what_was_sent_is_not_sent_to_another_address() -> None:
    poster = Poster(Webhooks())
    async with receiver() as there:
        there.otherwise = b"nonsense\r\n\r\n"
        url = httpx2.URL(f"http://{NOWHERE}:{there.port}/")
        with pytest.raises(httpx2.RemoteProtocolError):
            await poster.send(Target(url, ("127.0.0.1", "127.0.0.1")), SECRET, PING, 1)
        await there.next()
        assert there.silent


async def test_cookies_and_proxies_play_no_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9/")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9/")
    poster = Poster(Webhooks(allow_private_targets=True))
    async with receiver() as there:
        there.otherwise = answer(200, "Set-Cookie: a=b; Path=/")
        for _ in range(2):
            assert (await poster.post(there.url, SECRET, PING)).accepted
            assert "cookie" not in (await there.next()).headers


async def test_a_certificate_must_be_for_the_name_and_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = certified(tmp_path, NOWHERE)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    poster = Poster(Webhooks())
    async with receiver(tls) as there:
        right = Target(httpx2.URL(f"https://{NOWHERE}:{there.port}/"), ("127.0.0.1",))
        assert await poster.send(right, SECRET, PING, 1) == 200
        await there.next()
        wrong = Target(httpx2.URL(f"https://other.invalid:{there.port}/"), ("127.0.0.1",))
        with pytest.raises(httpx2.ConnectError, match="certificate"):
            await poster.send(wrong, SECRET, PING, 1)


def test_a_signature_is_what_the_documentation_says() -> None:
    # printf '%s' '1700000000.{"a":1}' | openssl dgst -sha256 -hmac 0123456789abcdef
    assert signature(SECRET, 1_700_000_000, b'{"a":1}') == (
        "t=1700000000,v1=9eb18f493f8ec135d9eb2dad817c369bb4e9cbfa818657897a7437c1cd8c3a23"
    )


def certified(folder: Path, name: str) -> ssl.SSLContext:
    """A server's TLS for `name`, by an authority whose certificate is put into `ca.pem`."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    (folder / "ca.pem").write_bytes(pem)
    (folder / "server.pem").write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return context

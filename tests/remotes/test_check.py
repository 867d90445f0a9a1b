"""What is wrong with a service, in one sentence each: servers that are wrong in one way."""

from __future__ import annotations

import datetime
import ssl
import time
from email.utils import formatdate
from typing import TYPE_CHECKING

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from unifs.answers import s3check
from unifs.answers.s3check import check
from unifs.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unreachable,
)
from unifs.mounts.s3.options import Credentials, S3Options

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

KEYS = Credentials("AKTEST", "hunter2")
BUCKETS = (
    "<ListAllMyBucketsResult><Buckets><Bucket><Name>a&amp;b</Name></Bucket>"
    "<Bucket><Name>c</Name></Bucket></Buckets></ListAllMyBucketsResult>"
)


def answer(status: int, body: str, date: str = "", kind: str = "application/xml") -> bytes:
    lines = [
        f"HTTP/1.1 {status} X",
        f"date: {date or formatdate(usegmt=True)}",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode()


def refusal(code: str, more: str = "") -> str:
    return f"<Error><Code>{code}</Code><Message>told so</Message>{more}</Error>"


def _is_whole(request: bytes) -> bool:
    return b"\r\n\r\n" in request or request[:1] == b"\x16"


class Service:
    """A port that answers every request with the same bytes, and remembers the requests."""

    def __init__(self) -> None:
        self.reply = b""
        self.requests: list[bytes] = []
        self.port = 0

    @property
    def options(self) -> S3Options:
        return S3Options(endpoint=f"http://127.0.0.1:{self.port}")

    async def handle(self, stream: trio.abc.Stream) -> None:
        async with stream:
            request = b""
            # A TLS client's first byte is 0x16; it is answered in HTTP, as such servers do.
            while not _is_whole(request) and (piece := await stream.receive_some()):
                request += piece
            self.requests.append(request)
            if self.reply:
                await stream.send_all(self.reply)
            else:
                await trio.sleep_forever()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    made = Service()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, made.handle, listeners)
        yield made
        nursery.cancel_scope.cancel()


async def test_what_works_is_listed(service: Service) -> None:
    service.reply = answer(200, BUCKETS)
    assert await check(service.options, KEYS) == ["a&b", "c"]
    (request,) = service.requests
    assert request.startswith(b"GET / HTTP/1.1")
    assert b"Credential=AKTEST/" in request
    assert b"hunter2" not in request
    assert await check(service.options, None) == ["a&b", "c"]
    assert b"uthorization" not in service.requests[1]


async def test_one_bucket_is_asked_for_where_one_is_shown(service: Service) -> None:
    service.reply = answer(200, "<ListBucketResult><Key>x/1</Key></ListBucketResult>")
    options = S3Options(
        endpoint=f"http://127.0.0.1:{service.port}", bucket="box", prefix="x/", requester_pays=True
    )
    assert await check(options, KEYS) == ["x/1"]
    assert service.requests[0].startswith(b"GET /box?list-type=2&max-keys=1&prefix=x%2F HTTP/1.1")
    assert b"x-amz-request-payer: requester" in service.requests[0].lower()


@pytest.mark.parametrize(
    ("code", "more", "error", "sentence"),
    [
        ("InvalidAccessKeyId", "", PermissionDenied, "does not know the access key AKTEST"),
        (
            "SignatureDoesNotMatch",
            "",
            PermissionDenied,
            "the secret key does not belong to the access key AKTEST",
        ),
        ("ExpiredToken", "", PermissionDenied, "session token of the access key AKTEST"),
        ("AccessDenied", "", PermissionDenied, "AKTEST may not list buckets; name one in"),
        ("RequestTimeTooSkewed", "", PermissionDenied, "clock is 0 minutes"),
        (
            "AuthorizationHeaderMalformed",
            "<Region>eu-west-1</Region>",
            InvalidArgument,
            "the setting `region` has to be eu-west-1",
        ),
        ("SlowDown", "", RateLimited, "asks for fewer requests"),
        ("Odd", "", Unreachable, "HTTP 403 Odd): told so"),
    ],
)
async def test_a_refusal_is_one_sentence(
    service: Service, code: str, more: str, error: type[Exception], sentence: str
) -> None:
    service.reply = answer(403, refusal(code, more))
    with pytest.raises(error) as caught:
        await check(service.options, KEYS)
    assert sentence in str(caught.value)
    assert "hunter2" not in str(caught.value)


async def test_a_bucket_that_is_not_there_or_not_ours(service: Service) -> None:
    options = S3Options(endpoint=f"http://127.0.0.1:{service.port}", bucket="box")
    service.reply = answer(404, refusal("NoSuchBucket"))
    with pytest.raises(NotFound, match="there is no bucket box at 127"):
        await check(options, KEYS)
    service.reply = answer(403, refusal("AccessDenied"))
    with pytest.raises(PermissionDenied, match=r"AKTEST may not list the bucket box$"):
        await check(options, KEYS)
    with pytest.raises(PermissionDenied, match="an anonymous request may not list the bucket"):
        await check(options, None)


@pytest.mark.parametrize(("offset_s", "way"), [(3600, "60 minutes behind"), (-7200, "ahead of")])
async def test_a_wrong_clock_is_named_whatever_the_service_calls_it(
    service: Service, offset_s: int, way: str
) -> None:
    date = formatdate(time.time() + offset_s, usegmt=True)
    service.reply = answer(403, refusal("SignatureDoesNotMatch"), date)
    with pytest.raises(PermissionDenied, match=f"this machine's clock is .*{way}"):
        await check(service.options, KEYS)


async def test_what_is_not_s3(service: Service) -> None:
    service.reply = answer(200, "<html>hello</html>", kind="text/html")
    with pytest.raises(Unreachable, match=r"answers, but not like S3 \(HTTP 200, text/html\)"):
        await check(service.options, KEYS)
    service.reply = b"SSH-2.0-OpenSSH_9.2\r\n"
    with pytest.raises(Unreachable, match="does not speak HTTP"):
        await check(service.options, KEYS)
    https = S3Options(endpoint=f"https://127.0.0.1:{service.port}")
    with pytest.raises(Unreachable, match="does not speak TLS; http instead of https"):
        await check(https, KEYS)


async def test_nobody_there(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unreachable, match=r"the name no\.such\.host\.invalid cannot be found"):
        await check(S3Options(endpoint="http://no.such.host.invalid"), KEYS)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with pytest.raises(Unreachable, match=f"nothing listens at .*:{port}: .*refused"):
        await check(S3Options(endpoint=f"http://127.0.0.1:{port}"), KEYS)
    monkeypatch.setattr(s3check, "PATIENCE_S", 0.2)
    service.reply = b""
    with pytest.raises(DeadlineExceeded, match=r"does not answer within 0\.2 s"):
        await check(service.options, KEYS)


async def test_a_certificate_that_nobody_vouches_for(tmp_path: Path) -> None:
    made = Service()
    made.reply = answer(200, BUCKETS)
    context = self_signed(tmp_path)
    serve: Callable[..., object] = trio.serve_ssl_over_tcp
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(_serve_tls, serve, made, context)
        port = listeners[0].transport_listener.socket.getsockname()[1]
        with pytest.raises(Unreachable, match=r"TLS certificate of 127\.0\.0\.1:.* is not trusted"):
            await check(S3Options(endpoint=f"https://127.0.0.1:{port}"), KEYS)
        nursery.cancel_scope.cancel()


async def _serve_tls(serve, made, context, task_status=trio.TASK_STATUS_IGNORED):  # type: ignore[no-untyped-def]
    async def handle(stream):  # type: ignore[no-untyped-def]
        try:
            await made.handle(stream)
        except trio.BrokenResourceError:
            # The client has hung up, as it should.
            return

    await serve(handle, 0, context, host="127.0.0.1", task_status=task_status)


def self_signed(directory: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path = directory / "pem"
    path.write_bytes(pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context

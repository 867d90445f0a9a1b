"""What is wrong with an S3 service, in one sentence: asked by ``backends test`` and ``credentials
test``.

One signed request that changes nothing (list the buckets, or one key of a bucket), looked at step
by step: the name, the connection, TLS, HTTP, S3, the key, the secret, the clock, the permission. It
shares no state with the mount, so what it says holds whatever state that is in. No sentence has a
secret in it; the access key, which is none, is named.
"""

from __future__ import annotations

import html
import re
import ssl
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import h11
import trio

from unifs.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RateLimited,
    Unreachable,
)
from unifs.mounts.s3.sigv4 import EMPTY_SHA256, Signable, Signer, encoded_query, moment_of
from unifs.mounts.s3.trust import context_of

if TYPE_CHECKING:
    from unifs.mounts.s3.options import Credentials, S3Options
    from unifs.mounts.s3.sigv4 import Pairs

PATIENCE_S: Final = 10.0
ANSWER_BYTES_MAX: Final = 1 << 20
#: Services refuse a signature whose time is further off than this.
SKEW_S: Final = 15 * 60
NAMES_MAX: Final = 20


@dataclass(frozen=True, slots=True)
class Target:
    """Where one request goes; ``authority`` is what its Host header says."""

    is_tls: bool
    authority: str
    host: str
    port: int
    path: str
    query: Pairs
    bucket: str

    @classmethod
    def of(cls, options: S3Options) -> Target:
        """The request that lists buckets, or one key of the bucket that is shown."""
        base = options.endpoint or f"https://s3.{options.region}.amazonaws.com"
        parts = urlsplit(base)
        place, query = f"{base}/", []
        if options.bucket:
            query = [("list-type", "2"), ("max-keys", "1")]
            if options.prefix:
                query.append(("prefix", options.prefix))
            if options.addressing == "virtual":
                place = f"{parts.scheme}://{options.bucket}.{parts.netloc}/"
            else:
                place = f"{base}/{options.bucket}"
        parts = urlsplit(place)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        return cls(
            is_tls,
            parts.netloc,
            parts.hostname or "",
            port,
            parts.path,
            tuple(query),
            options.bucket,
        )


async def check(options: S3Options, credentials: Credentials | None) -> list[str]:
    """The first names that the service lists; raises what is wrong with it.

    Unreachable, DeadlineExceeded, PermissionDenied, NotFound, RateLimited.
    """
    target = Target.of(options)
    answer = None
    with trio.move_on_after(PATIENCE_S):
        await _find(target)
        # In a thread: the file may lie in the mounted tree, which this event loop serves.
        trust = await trio.to_thread.run_sync(_trust, options, abandon_on_cancel=True)
        answer = await _get(target, _signed(target, options, credentials), trust)
    if answer is None:
        raise DeadlineExceeded(f"{target.host} does not answer within {PATIENCE_S:g} s")
    return _names(target, answer, credentials)


def _trust(options: S3Options) -> ssl.SSLContext:
    return context_of(options) or ssl.create_default_context()


async def _find(target: Target) -> None:
    try:
        await trio.socket.getaddrinfo(target.host, target.port)
    except OSError as error:
        raise Unreachable(f"the name {target.host} cannot be found (DNS)") from error


def _signed(target: Target, options: S3Options, credentials: Credentials | None) -> Pairs:
    """The request's headers, signed as the mount signs."""
    headers = [("host", target.authority), ("x-amz-content-sha256", EMPTY_SHA256)]
    if options.requester_pays:
        headers.append(("x-amz-request-payer", "requester"))
    if credentials is None:
        return tuple(headers)
    moment = moment_of(time.time())
    headers.append(("x-amz-date", moment))
    if credentials.session_token:
        headers.append(("x-amz-security-token", credentials.session_token))
    signable = Signable("GET", target.path, target.query, tuple(headers), EMPTY_SHA256)
    proof = Signer().authorization(signable, credentials, options.region, moment)
    return (*headers, ("authorization", proof))


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    text: str
    date: str
    content_type: str


async def _get(target: Target, headers: Pairs, trust: ssl.SSLContext) -> _Answer:
    where = f"{target.host}:{target.port}"
    try:
        stream = await _connected(target, where, trust)
        async with stream:
            return await _exchange(stream, target, headers)
    except (h11.RemoteProtocolError, trio.BrokenResourceError) as error:
        raise Unreachable(
            f"{where} does not speak HTTP as it is asked to; https instead?"
        ) from error


async def _connected(target: Target, where: str, trust: ssl.SSLContext) -> trio.abc.Stream:
    try:
        stream = await trio.open_tcp_stream(target.host, target.port)
    except OSError as error:
        raise Unreachable(f"nothing listens at {where}: {_refused(error)}") from error
    if not target.is_tls:
        return stream
    secured = trio.SSLStream(stream, trust, server_hostname=target.host, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError as error:
        await trio.aclose_forcefully(secured)
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"the TLS certificate of {where} is not trusted: {cause.verify_message}"
        else:
            reason = f"{where} does not speak TLS; http instead of https?"
        raise Unreachable(reason) from error
    except BaseException:
        await trio.aclose_forcefully(secured)
        raise
    return secured


def _refused(error: OSError) -> str:
    """The system's words, from whichever of the host's addresses was tried last."""
    cause: BaseException | None = error
    while cause is not None:
        errors = getattr(cause, "exceptions", ())
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = errors[-1] if errors else cause.__cause__
    return str(error)


async def _exchange(stream: trio.abc.Stream, target: Target, headers: Pairs) -> _Answer:
    connection = h11.Connection(h11.CLIENT)
    place = f"{target.path}?{encoded_query(target.query)}" if target.query else target.path
    lines = [*headers, ("connection", "close")]
    for event in (h11.Request(method="GET", target=place, headers=lines), h11.EndOfMessage()):
        await stream.send_all(connection.send(event) or b"")
    status, told, body = 0, {}, bytearray()
    while len(body) < ANSWER_BYTES_MAX:
        received = connection.next_event()
        if received is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(received, h11.Response):
            status = received.status_code
            told = {name.decode(): value.decode("latin-1") for name, value in received.headers}
        elif isinstance(received, h11.Data):
            body += received.data
        elif isinstance(received, h11.EndOfMessage):
            break
    text = body.decode("utf-8", "replace")
    return _Answer(status, text, told.get("date", ""), told.get("content-type", "no type"))


def _names(target: Target, answer: _Answer, credentials: Credentials | None) -> list[str]:
    if answer.status == 200 and re.search("<List(AllMyBuckets|Bucket)Result", answer.text):
        tag = "Key" if target.bucket else "Name"
        found = re.findall(f"<{tag}>([^<]*)</{tag}>", answer.text)
        return [html.unescape(name) for name in found[:NAMES_MAX]]
    code = _tag("Code", answer.text)
    if not code:
        raise Unreachable(
            f"{target.host}:{target.port} answers, but not like S3"
            f" (HTTP {answer.status}, {answer.content_type})"
        )
    skew_s = _skew_s(answer.date)
    if answer.status == 403 and (code == "RequestTimeTooSkewed" or abs(skew_s) > SKEW_S):
        direction = "behind" if skew_s > 0 else "ahead of"
        raise PermissionDenied(
            f"this machine's clock is {abs(skew_s) / 60:.0f} minutes {direction} the service's:"
            " set it right"
        )
    raise _refusal(code, target, answer, credentials)


def _refusal(
    code: str, target: Target, answer: _Answer, credentials: Credentials | None
) -> Exception:
    who = f"the access key {credentials.access_key}" if credentials else "an anonymous request"
    match code:
        case "InvalidAccessKeyId":
            return PermissionDenied(f"the service does not know {who}")
        case "SignatureDoesNotMatch":
            return PermissionDenied(f"the secret key does not belong to {who}")
        case "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired":
            return PermissionDenied(f"the session token of {who} is not valid (any more)")
        case "AccessDenied" | "AllAccessDisabled" | "AccountProblem":
            what = f"list the bucket {target.bucket}" if target.bucket else "list buckets"
            more = "" if target.bucket else "; name one in the setting `bucket`"
            return PermissionDenied(f"{who} may not {what}{more}")
        case "NoSuchBucket":
            return NotFound(f"there is no bucket {target.bucket} at {target.host}")
        case "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IncorrectEndpoint":
            region = _tag("Region", answer.text)
            more = f": the setting `region` has to be {region}" if region else ""
            return InvalidArgument(f"{target.host} is not asked in its own region{more}")
        case "SlowDown" | "ServiceUnavailable":
            return RateLimited(f"{target.host} asks for fewer requests")
    message = _tag("Message", answer.text)[:200]
    return Unreachable(f"{target.host} refuses (HTTP {answer.status} {code}): {message}")


def _tag(name: str, text: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return html.unescape(found[1]) if found else ""


def _skew_s(date: str) -> float:
    """How far the service's clock is ahead of ours; 0 where it does not tell."""
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0

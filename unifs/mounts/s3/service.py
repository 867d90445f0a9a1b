"""One S3 service: requests signed, sent and answered, refusals named.

The other modules say what they want as a ``Request``; here it gets its host, region, identity and
signature, a place under the service's limit, a connection, and its answer read to the end. What is
no success is raised as an error of unifs (``errors``).

A request is made once. It is made again at once, and only once more for each reason (twice for
the clock), where the first did not count: the idle connection it went out on was closed already,
the clocks differ, or the bucket lives in another region. Everything else is its caller's to retry.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import urlsplit

from unifs.errors import (
    ConfigInvalid,
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    TooLarge,
    UnifsError,
    Unreachable,
)
from unifs.mounts.s3.errors import Refusal, date_s
from unifs.mounts.s3.limiter import Limiter
from unifs.mounts.s3.pool import Pool
from unifs.mounts.s3.sigv4 import (
    EMPTY_SHA256,
    UNSIGNED_PAYLOAD,
    Pairs,
    Signable,
    Signer,
    encoded,
    encoded_query,
    moment_of,
)
from unifs.mounts.s3.wire import EXPECT_BYTES, STALL_S, Address, Body, Connection, Cut

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Sequence

    from unifs.mounts.s3.options import Credentials, CredentialSource, S3Options
    from unifs.mounts.s3.wire import Head

#: XML and error answers; a page of 1,000 keys of 1,024 bytes, encoded, has 4 MiB.
ANSWER_MAX: Final = 16 << 20
#: What was learnt may have been wrong (a proxy's date), and the next answer says so.
LEARN_MAX: Final = 2
#: Services refuse signatures that are 15 minutes off.
SKEW_S: Final = 300.0
#: Buckets whose region is remembered.
REGIONS_MAX: Final = 1024

_FAILED = re.compile(rb"\s*(<\?xml[^>]*\?>)?\s*<Error[\s>]")


class Payload(Body, Protocol):
    """A request's body, and the sha256 in hexadecimal that it is signed with."""

    sha256: str


@dataclass(slots=True)
class Request:
    """What is asked of the service. Header names are in lower case.

    The body of a success goes into ``into`` (it must fit), or else into ``Answer.body``. ``check``
    sees a success before the first byte of its body is taken.
    """

    method: str
    bucket: str = ""
    key: str = ""
    query: Pairs = ()
    headers: dict[str, str] = field(default_factory=dict)
    body: Payload | None = None
    into: Sequence[memoryview] | None = None
    #: Called after each buffer of ``into``.
    filled: Callable[[], None] | None = None
    check: Callable[[int, dict[str, str]], None] | None = None
    #: What the clock was corrected by when this was signed. Of many requests under way, the first
    #: answer corrects it, and the others are worth making again, too.
    skew_s: float = 0.0

    def __str__(self) -> str:
        place = "/".join(part for part in (self.bucket, self.key) if part)
        return f"{self.method} {place!r}" if place else self.method


@dataclass(frozen=True, slots=True)
class Answer:
    """A success. ``size_bytes`` is what went into ``Request.into``."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    size_bytes: int = 0


class Service:
    """Speaks to one service for one mount. Belongs to the event loop's thread."""

    def __init__(
        self,
        options: S3Options,
        credentials: CredentialSource,
        now_s: Callable[[], float] = time.time,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self.options = options
        self.credentials = credentials
        self.limiter = Limiter(options.parallel_max)
        self.is_amazon = not options.endpoint or options.endpoint.endswith(".amazonaws.com")
        self._now_s = now_s
        self._pool = Pool(options.parallel_max, trust)
        self._signer = Signer()
        self._regions: dict[str, str] = {}
        self._skew_s = 0.0
        self._refuses_expect = False
        self.requests = 0
        if options.endpoint:
            self._address = _address_of(options.endpoint)

    # --- requests ---------------------------------------------------------------------------------

    async def call(self, request: Request) -> Answer:
        """The service's answer; an error of unifs where it is no success."""
        reasons: list[str] = []
        while True:
            answer = await self._answered(request)
            if isinstance(answer, Answer):
                return answer
            reason = self._learn(request, answer)
            if not reason or (reason != "clock" and reason in reasons):
                raise self._refused(request, answer)
            if reasons.count(reason) == LEARN_MAX:
                raise Unreachable(f"{request}: the service and we cannot agree on the time")
            reasons.append(reason)

    def _refused(self, request: Request, refusal: Refusal) -> UnifsError:
        """What a refusal means here: without the bucket of the settings nothing can be told."""
        if refusal.code == "NoSuchBucket" and request.bucket == self.options.bucket:
            return Unreachable(
                f"there is no bucket {request.bucket!r} at the service",
                s3_code=refusal.code,
            )
        return refusal.error(str(request))

    async def _answered(self, request: Request) -> Answer | Refusal:
        async with self.limiter.place():
            self.requests += 1
            host, address, path = self._place(request)
            credentials = await self.credentials.current()
            head = self._head(request, (host, path), credentials)
            try:
                answer = await self._sent(address, head, request)
            except Cut as error:
                raise Unreachable(f"{request}: {error}") from error
            if isinstance(answer, Refusal) and answer.status in (429, 503):
                asked = answer.error("").context.get("retry_after_s")
                self.limiter.refused(asked if isinstance(asked, float) else None)
            else:
                self.limiter.served()
            return answer

    async def _sent(self, address: Address, head: bytes, request: Request) -> Answer | Refusal:
        idle = self._pool.take(address)
        if idle is not None:
            try:
                return await self._exchange(address, idle, head, request)
            except Cut as error:
                # A service that closes an idle connection may have heard what was sent on it: who
                # changes something has to know that it may still arrive.
                if not error.is_unheard or request.method not in ("GET", "HEAD"):
                    raise
        fresh = await self._pool.connect(address)
        return await self._exchange(address, fresh, head, request)

    async def _exchange(
        self, address: Address, connection: Connection, head: bytes, request: Request
    ) -> Answer | Refusal:
        try:
            with connection.bound() as scope:
                answer = await connection.exchange(head, request.method, request.body)
                return await self._received(connection, answer, request)
            assert scope.cancelled_caught
            raise DeadlineExceeded(f"{request}: no byte moved for {STALL_S:g} s")
        finally:
            if connection.is_reusable():
                self._pool.give(address, connection)
            else:
                connection.close()

    async def _received(
        self, connection: Connection, head: Head, request: Request
    ) -> Answer | Refusal:
        status, headers = head.status, head.headers
        if status >= 300:
            return Refusal.of(status, headers, await connection.read_all(ANSWER_MAX))
        if request.check is not None:
            request.check(status, headers)
        if request.into is not None:
            size = await _fill(connection, request.into, request)
            return Answer(status, headers, size_bytes=size)
        body = await connection.read_all(ANSWER_MAX)
        if request.method in ("PUT", "POST") and _FAILED.match(body):
            # Long operations answer 200 first and fail afterwards.
            return Refusal.of(500, headers, body)
        return Answer(status, headers, body)

    # --- what a request looks like ----------------------------------------------------------------

    def _place(self, request: Request) -> tuple[str, Address, str]:
        """Host header, address and encoded path."""
        bucket = request.bucket
        address = self._address if self.options.endpoint else self._amazon(bucket)
        path = "/" + encoded(request.key, "/")
        if bucket:
            if self._is_virtual(bucket, address):
                address = Address(f"{bucket}.{address.host}", address.port, address.is_tls)
            else:
                path = f"/{bucket}{path}" if request.key else f"/{bucket}"
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.port != (443 if address.is_tls else 80):
            host += f":{address.port}"
        return host, address, path

    def _amazon(self, bucket: str) -> Address:
        return Address(f"s3.{self.region_of(bucket)}.amazonaws.com", 443, True)

    def _is_virtual(self, bucket: str, address: Address) -> bool:
        addressing = self.options.addressing
        if addressing == "auto":
            # A certificate for *.host does not cover a bucket with dots.
            return self.is_amazon and not (address.is_tls and "." in bucket)
        return addressing == "virtual"

    def region_of(self, bucket: str) -> str:
        """The region that requests for a bucket are signed for."""
        return self._regions.get(bucket, self.options.region)

    def _head(
        self, request: Request, where: tuple[str, str], credentials: Credentials | None
    ) -> bytes:
        host, path = where
        body = request.body
        headers = {"host": host, **request.headers}
        if self.options.requester_pays and request.bucket:
            headers["x-amz-request-payer"] = "requester"
        if credentials is not None:
            self._sign(headers, request, path, credentials)
        if body is not None or request.method in ("PUT", "POST"):
            size = body.size_bytes if body is not None else 0
            headers["content-length"] = str(size)
            if size >= EXPECT_BYTES and not self._refuses_expect:
                headers["expect"] = "100-continue"
        if any("\n" in value or "\r" in value for value in headers.values()):
            raise InvalidArgument(f"{request}: a header cannot hold a line break")
        query = encoded_query(request.query)
        lines = [f"{request.method} {path}{'?' if query else ''}{query} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")

    def _sign(
        self, headers: dict[str, str], request: Request, path: str, credentials: Credentials
    ) -> None:
        request.skew_s = self._skew_s
        moment = moment_of(self._now_s() + self._skew_s)
        payload = request.body.sha256 if request.body is not None else EMPTY_SHA256
        headers["x-amz-date"] = moment
        headers["x-amz-content-sha256"] = payload
        if credentials.session_token:
            headers["x-amz-security-token"] = credentials.session_token
        signed = tuple(
            (name, value)
            for name, value in headers.items()
            if name.startswith("x-amz-") or name in ("host", "content-type", "content-md5")
        )
        signable = Signable(request.method, path, request.query, signed, payload)
        region = self.region_of(request.bucket)
        headers["authorization"] = self._signer.authorization(signable, credentials, region, moment)

    async def presign(self, method: str, bucket: str, key: str, expiry_s: int) -> str:
        """A URL with which anybody may GET or PUT one object for so long."""
        credentials = await self.credentials.current()
        host, address, path = self._place(Request(method, bucket, key))
        scheme = "https" if address.is_tls else "http"
        if credentials is None:
            return f"{scheme}://{host}{path}"
        payer = (("x-amz-request-payer", "requester"),) if self.options.requester_pays else ()
        signable = Signable(method, path, payer, (("host", host),), UNSIGNED_PAYLOAD)
        moment = moment_of(self._now_s() + self._skew_s)
        region = self.region_of(bucket)
        query = self._signer.presigned(signable, credentials, region, (moment, expiry_s))
        return f"{scheme}://{host}{path}?{query}"

    # --- what a refusal teaches -------------------------------------------------------------------

    def _learn(self, request: Request, refusal: Refusal) -> str:
        """What makes the same request worth making again; "" where nothing does."""
        if refusal.status == 417:
            # Somebody on the way knows nothing of 100-continue (RFC 9110, 10.1.1): without, then.
            self._refuses_expect = True
            return "expect"
        if refusal.status not in (301, 307, 400, 403):
            return ""
        region = refusal.headers.get("x-amz-bucket-region", "")
        if region and request.bucket and region != self.region_of(request.bucket):
            if len(self._regions) >= REGIONS_MAX:
                self._regions.clear()
            self._regions[request.bucket] = region
            return "region"
        if refusal.code == "RequestTimeTooSkewed" or (request.method == "HEAD" and not region):
            theirs = date_s(refusal.headers.get("date", ""))
            skew = 0.0 if theirs is None else theirs - self._now_s()
            if abs(skew - request.skew_s) > SKEW_S:
                self._skew_s = skew
                return "clock"
        return ""

    # --- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close idle connections."""
        self._pool.close()

    def statistics(self) -> dict[str, int]:
        """Requests made, under way, allowed and refused; connections."""
        return {
            "made": self.requests,
            **self.limiter.statistics(),
            **{f"connections_{name}": count for name, count in self._pool.statistics().items()},
        }


async def _fill(connection: Connection, buffers: Sequence[memoryview], request: Request) -> int:
    """Read a body into ``buffers``; how many bytes it had."""
    length, room = connection.length, sum(map(len, buffers))
    body: memoryview | None = None
    if length is None:
        # Nobody knows how long it is: it is read to its end before any of it is believed.
        try:
            body = memoryview(await connection.read_all(room))
        except TooLarge as error:
            raise Corrupt(f"{request}: the answer has more than the {room} bytes asked") from error
        length = len(body)
    elif length > room:
        raise Corrupt(f"{request}: the answer has {length} bytes of {room} asked for")
    done = 0
    for buffer in buffers:
        size = min(len(buffer), length - done)
        with memoryview(buffer)[:size] as view:
            if body is None:
                await connection.read_into(view)
            else:
                view[:] = body[done : done + size]
        done += size
        if size == len(buffer) and request.filled is not None:
            request.filled()
    return done


def _address_of(endpoint: str) -> Address:
    """Host and port of an endpoint. ConfigInvalid where it is no ``http(s)://host[:port]``."""
    try:
        parts = urlsplit(endpoint)
        port = parts.port
    except ValueError as error:
        raise ConfigInvalid(f"the endpoint {endpoint!r} is no URL: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
        raise ConfigInvalid(f"the endpoint {endpoint!r} is not http(s)://host[:port]")
    is_tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if is_tls else 80), is_tls)

"""A proxy that breaks HTTP on purpose, in front of a real server.

    async with FaultProxy(server.endpoint) as proxy:
        proxy.plan(Fault("lose_answer"), method="PUT")      # the next PUT
        proxy.script = Seeded(7, rate=0.1)                   # or one request in ten, by a seed
        … a client of proxy.endpoint …
        assert proxy.dealt["lose_answer"] == 1

It forwards byte for byte, so signatures stay valid (they cover the Host that the client used).
Bodies pass through memory whole. It repairs nothing and retries nothing: where the server fails,
the client sees it.
"""

from __future__ import annotations

import random
import socket
import struct
from collections import Counter, deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import trio

from tests.servers.http1 import EndedError, Head, Reader, has_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Kind = Literal[
    "delay",  # the answer comes ``seconds`` later
    "answer",  # ``status`` and ``code`` from the proxy; the server hears nothing
    "answer_early",  # the same, before the request's body was read; then the connection closes
    "fail_after",  # the server acts, the client is told ``status`` and ``code``
    "reset_before",  # the connection is reset; the server hears nothing
    "lose_answer",  # the server acts, then the connection is reset
    "cut_upload",  # the server gets the head and ``fraction`` of the body, then both sides are cut
    "late",  # the connection is reset; the server hears the request ``seconds`` later
    "truncate",  # the answer ends (orderly) after ``fraction`` of its body
    "reset_body",  # the answer is reset after ``fraction`` of its body
    "stall",  # the answer stops after ``fraction`` of its body for ``seconds``, then resets
    "drip",  # the answer comes in 16 pieces over ``seconds``
    "wrong_etag",  # the answer carries another ETag
    "duplicate",  # the server gets the request twice; the client hears the second answer
    "no_continue",  # a request with "Expect: 100-continue" never gets its 100
    "refuse_expect",  # such a request is answered 417
    "skew",  # the request is refused as too skewed, with a Date ``seconds`` off
    "close_idle",  # answered well, then the connection closes unannounced
]
#: What ``Seeded`` draws from. What comes late makes whoever waits for the end of faults wait, too.
KINDS: tuple[Kind, ...] = tuple(kind for kind in get_args(Kind) if kind != "late")
ERROR = "<Error><Code>{}</Code><Message>a fault</Message></Error>"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
#: Faults that happen in place of the server's answer, after the request was read.
INSTEAD = ("answer", "skew", "reset_before", "cut_upload", "late")
DRIPS = 16
DRAIN_S = 1.0
SEEN_MAX = 50_000
#: Amazon's and SeaweedFS's limit.
SKEW_MAX_S = 15 * 60


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one request; the fields that its kind does not name are ignored."""

    kind: Kind
    seconds: float = 0.05
    status: int = 503
    code: str = "SlowDown"
    retry_after_s: int | None = None
    fraction: float = 0.5


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that came, what was done to it, and what the server said (0: never asked).

    ``at_s`` is trio's time when the server had answered.
    """

    method: str
    target: str
    fault: Kind | None
    status: int
    at_s: float = 0.0


@dataclass(slots=True)
class _Planned:
    fault: Fault
    method: str
    where: str
    times: int


class Seeded:
    """One request in ``1 / rate`` meets a fault, which one and which way by a seed."""

    def __init__(
        self, seed: int, rate: float, kinds: tuple[Kind, ...] = KINDS, late_s: float = 0.0
    ) -> None:
        """``late_s``: the most that a ``late`` request comes late."""
        self._random = random.Random(seed)
        self._rate = rate
        self._kinds = kinds
        self._late_s = late_s

    def __call__(self, request: Head) -> Fault | None:
        # Always the same number of draws, so that a request's fate depends on its number only.
        luck, kind = self._random.random(), self._random.choice(self._kinds)
        status, code = self._random.choice(ANSWERS)
        if request.method == "HEAD" and status == 400:
            # Without a body to say so, it would not be a timeout.
            status = 408
        seconds, fraction = self._random.choice((0.0, 0.02, 0.2)), self._random.random()
        retry_after_s = self._random.choice((None, None, 0, 1)) if status == 503 else None
        if luck >= self._rate:
            return None
        if kind == "skew":
            # No two alike: a client that has believed one must not be right by chance.
            seconds = self._random.uniform(-1e6, 1e6)
        if kind == "late":
            seconds = self._random.uniform(0.0, self._late_s)
        return Fault(kind, seconds, status, code, retry_after_s, fraction)


ANSWERS = (
    (503, "SlowDown"),
    (503, "ServiceUnavailable"),
    (500, "InternalError"),
    (502, "BadGateway"),
    (504, "GatewayTimeout"),
    (429, "TooManyRequests"),
    (408, "RequestTimeout"),
    (400, "RequestTimeout"),
)


class FaultProxy:
    """A listener on 127.0.0.1 in front of ``upstream``; see the module's text."""

    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.removeprefix("http://").rpartition(":")
        self._upstream = (host, int(port))
        self.endpoint = ""
        #: Asked for each request that no plan covers.
        self.script: Callable[[Head], Fault | None] = lambda request: None
        #: The server's clock, as its clients see it: requests dated otherwise are refused, answers
        #: are dated by it. For servers that do not look at the date themselves.
        self.skew_s: float | None = None
        self.dealt: Counter[str] = Counter()
        self.seen: deque[Seen] = deque(maxlen=SEEN_MAX)
        self.requests = 0
        self._plans: list[_Planned] = []

    def plan(self, fault: Fault, *, method: str = "", where: str = "", times: int = 1) -> None:
        """The next ``times`` requests of that method whose target contains ``where``."""
        self._plans.append(_Planned(fault, method, where, times))

    @property
    def is_done(self) -> bool:
        """Whether every planned fault has happened."""
        return not self._plans

    def calm(self) -> None:
        """No faults from here on."""
        self._plans.clear()
        self.skew_s = None
        self.script = lambda request: None

    async def __aenter__(self) -> Self:
        self._life = self._serve()
        await self._life.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._life.__aexit__(*error)

    @asynccontextmanager
    async def _serve(self) -> AsyncIterator[None]:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1024)
        self.endpoint = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(trio.serve_listeners, self._converse, [listener])
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _converse(self, stream: trio.SocketStream) -> None:
        """One connection of a client, request by request."""
        exchange = _Exchange(self, stream)
        # A client that is gone, in the middle or between, ends the conversation and nothing else.
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, EndedError):
            while await exchange.serve_one():
                pass

    def ask_later(self, request: Head, body: bytes, seconds: float) -> None:
        """The server hears a request whose client is gone."""

        async def ask() -> None:
            await trio.sleep(seconds)
            answer, _ = await self.ask(request, body)
            self.seen.append(Seen(request.method, request.target, "late", answer.status))

        self._nursery.start_soon(ask)

    async def connect(self) -> trio.SocketStream:
        """A connection to the server; OSError if it is down."""
        return await trio.open_tcp_stream(*self._upstream)

    async def ask(self, request: Head, body: bytes) -> tuple[Head, bytes]:
        """The server's final answer, over a connection of its own: none is stale."""
        async with await self.connect() as server:
            await server.send_all(request.encode() + body)
            answers = Reader(server)
            while True:
                answer = await answers.head()
                if answer is None:
                    raise EndedError("no answer")
                if answer.status >= 200:
                    break
            content = await answers.body(answer) if has_body(request, answer) else b""
            return answer, content

    def judge(self, request: Head) -> Fault | None:
        """What is done to this request: by plan, by clock, or by script."""
        self.requests += 1
        for planned in self._plans:
            if planned.method in ("", request.method) and planned.where in request.target:
                planned.times -= 1
                if planned.times == 0:
                    self._plans.remove(planned)
                return planned.fault
        if self.skew_s is not None and abs(self._lateness_s(request)) > SKEW_MAX_S:
            return Fault("skew", self.skew_s)
        return self.script(request)

    def _lateness_s(self, request: Head) -> float:
        told = request.get(b"x-amz-date")
        if told is None or self.skew_s is None:
            return 0.0
        dated = datetime.strptime(told.decode(), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        return (dated - datetime.now(UTC)).total_seconds() - self.skew_s


class _Exchange:
    """One client connection and what becomes of its requests."""

    def __init__(self, proxy: FaultProxy, client: trio.SocketStream) -> None:
        self.proxy = proxy
        self.client = client
        self.requests = Reader(client)

    async def serve_one(self) -> bool:
        """The next request; False if the connection has ended."""
        request = await self.requests.head()
        if request is None:
            return False
        fault = self.proxy.judge(request)
        kind = None if fault is None else fault.kind
        is_expecting = (request.get(b"expect") or b"").lower() == b"100-continue"
        if fault is not None and kind == "answer_early":
            return await self._tell(request, fault, is_last=True)
        if kind == "refuse_expect" and is_expecting:
            refusal = Fault("refuse_expect", status=417, code="ExpectationFailed")
            return await self._tell(request, refusal, is_last=True)
        if is_expecting and kind != "no_continue":
            await self.client.send_all(CONTINUE)
        body = await self.requests.body(request)
        if fault is not None and kind in INSTEAD:
            return await self._instead(request, body, fault)
        try:
            answer, content = await self.proxy.ask(request, body)
            if kind == "duplicate":
                answer, content = await self.proxy.ask(request, body)
        except (OSError, trio.BrokenResourceError, EndedError):
            # The server is down: so is the proxy, for its client.
            self._note(request, fault, 0)
            return await self._reset()
        self._note(request, fault, answer.status)
        return await self._after(request, answer, content, fault)

    async def _instead(self, request: Head, body: bytes, fault: Fault) -> bool:
        """A request that the server never hears whole."""
        if fault.kind in ("answer", "skew"):
            return await self._tell(request, fault)
        if fault.kind == "late":
            self.proxy.ask_later(request, body, fault.seconds)
        if fault.kind == "cut_upload":
            # At least one byte is missing; a request without a body is cut off as a whole.
            kept = min(int(len(body) * fault.fraction), len(body) - 1)
            if kept >= 0:
                with suppress(OSError, trio.BrokenResourceError):
                    server = await self.proxy.connect()
                    async with server:
                        await server.send_all(request.encode() + body[:kept])
        self._note(request, fault, 0)
        return await self._reset()

    async def _after(
        self, request: Head, answer: Head, content: bytes, fault: Fault | None
    ) -> bool:
        """The server has answered; what the client hears of it."""
        if self.proxy.skew_s is not None:
            answer = answer.put(b"Date", _date(self.proxy.skew_s))
        if fault is None:
            return await self._send(answer, content)
        match fault.kind:
            case "lose_answer":
                return await self._reset()
            case "fail_after":
                return await self._tell(request, fault)
            case "delay":
                await trio.sleep(fault.seconds)
            case "wrong_etag" if answer.get(b"etag") is not None:
                answer = answer.put(b"ETag", b'"badbadbadbadbadbadbadbadbadbadba"')
            case "drip":
                return await self._drip(answer, content, fault.seconds)
            case "truncate" | "reset_body" | "stall":
                return await self._cut(answer, content, fault)
            case "close_idle":
                await self._send(answer, content)
                await self.client.aclose()
                return False
        return await self._send(answer, content)

    async def _send(self, answer: Head, content: bytes) -> bool:
        await self.client.send_all(answer.encode() + content)
        return (answer.get(b"connection") or b"").lower() != b"close"

    async def _tell(self, request: Head, fault: Fault, *, is_last: bool = False) -> bool:
        """An answer of our own."""
        if fault.kind != "fail_after":
            self._note(request, fault, 0)
        status, code, skew_s = fault.status, fault.code, self.proxy.skew_s or 0.0
        if fault.kind == "skew":
            status, code, skew_s = 403, "RequestTimeTooSkewed", fault.seconds
        content = ERROR.format(code).encode() if request.method != "HEAD" else b""
        answer = Head(b"HTTP/1.1 %d Fault" % status, ())
        answer = answer.put(b"Date", _date(skew_s)).put(b"Content-Type", b"application/xml")
        answer = answer.put(b"Content-Length", b"%d" % len(content))
        if fault.retry_after_s is not None:
            answer = answer.put(b"Retry-After", b"%d" % fault.retry_after_s)
        if is_last:
            answer = answer.put(b"Connection", b"close")
        await self._send(answer, content)
        if is_last:
            await self._drain()
        return not is_last

    async def _drain(self) -> None:
        """Close our direction and let the client read its answer before it meets a reset."""
        await self.client.send_eof()
        with trio.move_on_after(DRAIN_S):
            async for _ in self.client:
                pass

    async def _cut(self, answer: Head, content: bytes, fault: Fault) -> bool:
        """The head and a part of the body; then nothing, a reset or the end."""
        kept = min(int(len(content) * fault.fraction), max(0, len(content) - 1))
        await self.client.send_all(answer.encode() + content[:kept])
        if fault.kind == "truncate":
            await self.client.aclose()
            return False
        if fault.kind == "stall":
            await trio.sleep(fault.seconds)
        return await self._reset()

    async def _drip(self, answer: Head, content: bytes, seconds: float) -> bool:
        whole = answer.encode() + content
        piece = len(whole) // DRIPS + 1
        for start in range(0, len(whole), piece):
            await self.client.send_all(whole[start : start + piece])
            await trio.sleep(seconds / DRIPS)
        return (answer.get(b"connection") or b"").lower() != b"close"

    async def _reset(self) -> bool:
        """RST: what was sent and not yet read is lost, too."""
        self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.client)
        return False

    def _note(self, request: Head, fault: Fault | None, status: int) -> None:
        kind = None if fault is None else fault.kind
        if kind is not None:
            self.proxy.dealt[kind] += 1
        at_s = trio.current_time()
        self.proxy.seen.append(Seen(request.method, request.target, kind, status, at_s))


def _date(skew_s: float) -> bytes:
    told = datetime.now(UTC) + timedelta(seconds=skew_s)
    return format_datetime(told, usegmt=True).encode()

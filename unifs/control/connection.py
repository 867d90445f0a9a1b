"""One HTTP/1.1 connection of the control socket: h11 on a trio stream.

The server makes one per accepted stream and answers one exchange after the other. h11 is the
protocol; this adds what a local control plane needs of it: back-pressure both ways, a handler that
is cancelled when its caller goes away, and a connection that can be given up at any moment (a
reader who has stopped reading must not hold up the daemon's end).

It knows no operation and no JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11
import trio

from unifs.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

#: One read from the socket. 256 KiB: uploads are copied four times less often than with 64 KiB.
READ_BYTES: Final = 1 << 18
#: Request line and headers together.
HEAD_BYTES_MAX: Final = 1 << 16
#: How long an unwanted rest of a body is read away, so that its sender sees the answer.
DRAIN_S: Final = 1.0


class Gone(Exception):
    """The caller went away."""


class Exchange:
    """One request and its answer."""

    def __init__(self, connection: Connection, request: h11.Request) -> None:
        self._connection = connection
        self.method = request.method.decode("ascii", "replace")
        target = request.target.decode("ascii", "replace")
        self.path, _, self.query = target.partition("?")
        self.headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in request.headers
        }
        #: Without it the request is whole: nothing has to be read before its caller may be gone.
        self.has_body = "transfer-encoding" in self.headers or bool(self.body_bytes)
        #: The answer's media type once its head is sent.
        self.answering = ""
        self.is_finished = False

    @property
    def body_bytes(self) -> int | None:
        """What the caller says the body has; None where it does not say."""
        length = self.headers.get("content-length", "")
        return int(length) if length.isdigit() else None

    async def body(self) -> AsyncGenerator[bytes, None]:
        """The request's bytes as they come. Raises Gone if they end too early."""
        while self.has_body:
            try:
                event = await self._connection.next_event()
            except h11.RemoteProtocolError as error:
                raise InvalidArgument(f"the request's body breaks off: {error}") from error
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise Gone

    async def gone(self) -> None:
        """Return when the caller has gone away."""
        await self._connection.gone()

    async def answer(self, status: int, content_type: str, body: bytes) -> None:
        """Send a whole answer at once."""
        self.answering, self.is_finished = content_type, True
        headers = [("content-type", content_type), ("content-length", str(len(body)))]
        await self._connection.send(
            h11.Response(status_code=status, headers=_encoded(headers)),
            h11.Data(data=b"" if self.method == "HEAD" else body),
            h11.EndOfMessage(),
        )

    async def start(
        self, status: int, content_type: str, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send the status and headers of a stream; its body goes in chunks."""
        self.answering = content_type
        self._connection.is_streaming = True
        sent = [("content-type", content_type), *headers]
        await self._connection.send(h11.Response(status_code=status, headers=_encoded(sent)))

    async def write(self, data: bytes) -> None:
        """Send a part of the body. Returns when the caller has room for more."""
        await self._connection.send(h11.Data(data=data))

    async def finish(self, trailers: Sequence[tuple[str, str]] = ()) -> None:
        """End the body."""
        self.is_finished = True
        await self._connection.send(h11.EndOfMessage(headers=_encoded(trailers)))


def _encoded(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("ascii")) for name, value in headers]


class Connection:
    """One accepted stream. ``malformed`` makes the body that answers what is not HTTP."""

    def __init__(
        self, stream: trio.SocketStream, malformed: Callable[[str], bytes], idle_s: float = 60.0
    ) -> None:
        self._stream = stream
        self._malformed = malformed
        self._idle_s = idle_s
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_BYTES_MAX)
        self._body_read = trio.Event()
        self.is_idle = True
        self.is_streaming = False

    async def serve(self, handle: Callable[[Exchange], Awaitable[None]]) -> None:
        """Answer exchanges with ``handle`` until either side is done. Raises nothing of its own."""
        try:
            while await self._serve_one(handle):
                self._http.start_next_cycle()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError, Gone):
            # The caller went away, or speaks a protocol that cannot carry the rest (HTTP/1.0 has no
            # trailers): nobody is left to tell.
            return
        finally:
            self.abort()

    async def _serve_one(self, handle: Callable[[Exchange], Awaitable[None]]) -> bool:
        """Answer one exchange; whether another may follow."""
        self.is_idle, self.is_streaming = True, False
        self._body_read = trio.Event()
        try:
            with trio.fail_after(self._idle_s):
                event = await self.next_event()
        except trio.TooSlowError:
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(error)
            return False
        if not isinstance(event, h11.Request):
            return False
        self.is_idle = False
        exchange = Exchange(self, event)
        if not exchange.has_body:
            await self.next_event()
        await handle(exchange)
        if not exchange.is_finished:
            return False
        if self._http.their_state is h11.SEND_BODY:
            await self._drain()
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    async def _refuse(self, error: h11.RemoteProtocolError) -> None:
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        body = self._malformed(str(error))
        headers = [("content-type", "application/json"), ("connection", "close")]
        headers.append(("content-length", str(len(body))))
        await self.send(
            h11.Response(status_code=error.error_status_hint, headers=_encoded(headers)),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )

    async def next_event(self) -> object:
        """The next h11 event, reading as much as it takes."""
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                if isinstance(event, h11.EndOfMessage):
                    self._body_read.set()
                return event
            if self._http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self._http.receive_data(await self._stream.receive_some(READ_BYTES))

    async def send(self, *events: h11.Event) -> None:
        """Send h11 events in one write. Returns when the socket has taken them."""
        data = b"".join(self._http.send(event) or b"" for event in events)
        if data:
            await self._stream.send_all(data)

    async def gone(self) -> None:
        """Return when the caller goes away: it closes, or it sends more than the next head."""
        await self._body_read.wait()
        ahead_bytes = 0
        while ahead_bytes <= HEAD_BYTES_MAX:
            data = await self._stream.receive_some(READ_BYTES)
            self._http.receive_data(data)
            if not data:
                return
            ahead_bytes += len(data)

    async def _drain(self) -> None:
        with trio.move_on_after(DRAIN_S):
            while isinstance(await self.next_event(), h11.Data):
                pass

    def abort(self) -> None:
        """Give the connection up at once, whoever still reads or writes."""
        self._stream.socket.close()

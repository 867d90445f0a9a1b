"""HTTP/1.1 on trio sockets, for the requests of one S3 service.

Owns one connection each: sending a request on it, reading the answer as it is. ``pool`` opens and
keeps them, ``service`` calls; nothing here knows S3. Written for bytes: a body is received into
the buffer of whoever wants it (0.41–0.46 CPU s per GiB, where h11 costs two or three times that).

Strict: a body that ends before its length is an error, so is a head that is not HTTP. Every wait
has a bound, ``STALL_S`` without a byte moving, beside the caller's own cancel scope. A connection
on which anything was cut short is closed, at once and without waiting.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from unifs.errors import TooLarge

#: Nothing has moved for so long: the connection is given up.
STALL_S: Final = 30.0
#: How far that bound may lie behind: moving it takes 2 µs, which is much for each piece of a body.
STALL_STEP_S: Final = 0.5
HEAD_MAX: Final = 64 << 10
PIECE_BYTES: Final = 256 << 10
#: What a fast body is waited for at once: each wake-up of the event loop costs it 40 µs and more.
WAKE_BYTES: Final = 512 << 10
#: Bytes per second from which a body is fast: to wait for so much takes a quarter of a second.
FAST_RATE: Final = 2 << 20
#: From here on a body is sent only when the service has seen the head and wants it.
EXPECT_BYTES: Final = 1 << 20
EXPECT: Final = b"\r\nexpect: 100-continue\r\n"
#: A service that knows nothing of 100-continue gets the body after this.
CONTINUE_S: Final = 1.0


class Cut(Exception):
    """The connection ended. ``is_unheard``: before the first byte of an answer."""

    def __init__(self, reason: str, is_unheard: bool) -> None:
        super().__init__(reason)
        self.is_unheard = is_unheard


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect to."""

    host: str
    port: int
    is_tls: bool


class Body(Protocol):
    """What a request carries; may be sent more than once."""

    size_bytes: int

    async def piece(self, offset: int) -> bytes:
        """Some bytes from there; never none before the end."""
        ...


@dataclass(slots=True)
class Head:
    """The first part of an answer. Header names are in lower case; the last of a name wins."""

    status: int
    #: HTTP/1.0 closes after each answer.
    is_lasting: bool = True
    headers: dict[str, str] = field(default_factory=dict)


class Connection:
    """One connection, and the answer that is being read from it."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._secure = stream if isinstance(stream, trio.SSLStream) else None
        plain = stream if isinstance(stream, trio.SocketStream) else stream.transport_stream
        self._socket = plain.socket
        self._unread = bytearray()
        #: Bytes of the body that are still to come; -1: chunked, None: until the end.
        self._left: int | None = 0
        self._in_chunk = 0
        self._keeps_alive = True
        self.idle_since = 0.0
        self.is_used = False
        self._scope: trio.CancelScope | None = None
        self._moved_at = self._stalls_at = 0.0
        self._is_fast = False
        #: How many bytes have to be there for the socket to be called readable.
        self._wakes_at = 1

    # --- bytes ------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Something happened: the bound on standing still begins anew."""
        now = self._moved_at = trio.current_time()
        if self._scope is not None and not STALL_S - STALL_STEP_S < self._stalls_at - now < STALL_S:
            self._stalls_at = self._scope.deadline = now + STALL_S

    def pause(self) -> None:
        """Somebody else is waited for (a disk): standing still is not this connection's fault."""
        if self._scope is not None:
            self._stalls_at = self._scope.deadline = math.inf

    async def _send(self, data: bytes | bytearray | memoryview) -> None:
        if self._secure is not None:
            await self._secure.send_all(data)
            self.moved()
            return
        with memoryview(data) as view:
            sent = 0
            while sent < len(view):
                sent += await self._socket.send(view[sent:])
                self.moved()

    async def _receive(self, size: int) -> bytes:
        if self._secure is not None:
            data = bytes(await self._secure.receive_some(size))
        else:
            self._wake_at(1)
            data = await self._socket.recv(size)
        self.moved()
        return data

    def _wake_at(self, size: int) -> None:
        if size != self._wakes_at:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)
            self._wakes_at = size

    async def _fill(self) -> None:
        """More unread bytes; Cut if there are none."""
        data = await self._receive(HEAD_MAX)
        if not data:
            raise Cut("the connection was closed in the middle of an answer", False)
        self._unread += data

    # --- a request --------------------------------------------------------------------------------

    async def exchange(self, head: bytes, method: str, body: Body | None) -> Head:
        """Send a request and read the head of its answer; Cut if the connection ends before.

        With a large body ``head`` may ask for 100-continue; then the body waits until it is
        wanted. A service that refuses early is heard.
        """
        self._keeps_alive = False
        self._left = 0
        self._is_fast = False
        is_heard = False
        try:
            if body is None or body.size_bytes < EXPECT_BYTES:
                await self._send_whole(head, body)
            else:
                await self._send(head)
                early = await self._continued() if EXPECT in head else None
                if early is not None:
                    self._begin(early, method)
                    self._keeps_alive = False
                    return early
                await self._send_pieces(body)
            self.is_used = True
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            # A service that refuses while it is being sent to closes; what it said may be there.
            is_heard = await self._has_answer()
            if not is_heard:
                raise Cut(reason_of(error), True) from error
        answer = await self._head()
        self._begin(answer, method)
        self._keeps_alive = self._keeps_alive and not is_heard
        return answer

    async def _send_whole(self, head: bytes, body: Body | None) -> None:
        if body is None:
            await self._send(head)
            return
        parts, offset = [head], 0
        while offset < body.size_bytes:
            parts.append(await body.piece(offset))
            offset += len(parts[-1])
        await self._send(b"".join(parts))

    async def _send_pieces(self, body: Body) -> None:
        sent = 0
        while sent < body.size_bytes:
            self.pause()
            piece = await body.piece(sent)
            self.moved()
            await self._send(piece)
            sent += len(piece)

    async def _continued(self) -> Head | None:
        """None: send the body. An answer: it is not wanted."""
        head = None
        with trio.move_on_after(CONTINUE_S):
            while head is None or (head.status < 200 and head.status != 100):
                head = await self._head(is_interim=True)
        return head if head is not None and head.status >= 200 else None

    async def _has_answer(self) -> bool:
        try:
            with trio.move_on_after(CONTINUE_S):
                await self._fill()
        except (OSError, trio.BrokenResourceError, ssl.SSLError, Cut):
            return False
        return bool(self._unread)

    async def _head(self, is_interim: bool = False) -> Head:
        while True:
            end = self._unread.find(b"\r\n\r\n")
            if end >= 0:
                head = _parsed(bytes(self._unread[:end]))
                del self._unread[: end + 4]
                if head.status >= 200 or is_interim:
                    return head
                continue
            if len(self._unread) > HEAD_MAX:
                raise Cut("the head of the answer has no end", False)
            try:
                data = await self._receive(HEAD_MAX)
            except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
                raise Cut(reason_of(error), not self._unread) from error
            if not data:
                raise Cut("the connection was closed before an answer", not self._unread)
            self._unread += data

    def _begin(self, head: Head, method: str) -> None:
        headers = head.headers
        self._keeps_alive = head.is_lasting and headers.get("connection", "").lower() != "close"
        if method == "HEAD" or head.status in (204, 304):
            self._left = 0
        elif "chunked" in headers.get("transfer-encoding", "").lower():
            self._left, self._in_chunk = -1, 0
        elif "content-length" in headers:
            self._left = _number(headers["content-length"], 10)
        else:
            self._left, self._keeps_alive = None, False

    # --- the body of its answer -------------------------------------------------------------------

    @property
    def length(self) -> int | None:
        """What is left of a body of known length."""
        return None if self._left == -1 else self._left

    async def read_into(self, view: memoryview) -> None:
        """Exactly as many bytes of a body with a length as ``view`` takes."""
        assert self._left is not None
        assert self._left >= len(view)
        done = min(len(self._unread), len(view))
        view[:done] = self._unread[:done]
        del self._unread[:done]
        try:
            while done < len(view):
                if self._secure is None:
                    self._wake_at(min(len(view) - done, WAKE_BYTES) if self._is_fast else 1)
                    began = self._moved_at
                    count = await self._socket.recv_into(view[done:])
                    self.moved()
                    self._is_fast = count > (self._moved_at - began) * FAST_RATE
                else:
                    data = await self._receive(len(view) - done)
                    count = len(data)
                    view[done : done + count] = data
                if not count:
                    raise Cut(f"the answer ended after {done} of {len(view)} bytes", False)
                done += count
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            raise Cut(reason_of(error), False) from error
        self._left -= done
        if not self._left:
            # Whether it is still of use is seen by a single byte.
            self._wake_at(1)

    async def read_some(self) -> bytes:
        """The next bytes of the body, b"" at its end."""
        try:
            if self._left == -1:
                return await self._read_chunk()
            if self._left == 0:
                return b""
            if not self._unread:
                data = await self._receive(PIECE_BYTES)
                if not data and self._left is not None:
                    raise Cut(f"the answer ended {self._left} bytes early", False)
                self._unread += data
            size = len(self._unread) if self._left is None else min(self._left, len(self._unread))
            data = bytes(self._unread[:size])
            del self._unread[:size]
            if self._left is not None:
                self._left -= size
            return data
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            raise Cut(reason_of(error), False) from error

    async def _read_chunk(self) -> bytes:
        if not self._in_chunk:
            size = _number((await self._line()).partition(b";")[0].decode("latin-1"), 16)
            if not size:
                while await self._line():
                    continue
                self._left = 0
                return b""
            self._in_chunk = size
        if not self._unread:
            await self._fill()
        data = bytes(self._unread[: self._in_chunk])
        del self._unread[: len(data)]
        self._in_chunk -= len(data)
        if not self._in_chunk and await self._line():
            raise Cut("a chunk of the answer is longer than it says", False)
        return data

    async def _line(self) -> bytes:
        while (end := self._unread.find(b"\r\n")) < 0:
            if len(self._unread) > HEAD_MAX:
                raise Cut("a line of the answer has no end", False)
            await self._fill()
        line = bytes(self._unread[:end])
        del self._unread[: end + 2]
        return line

    async def read_all(self, limit_bytes: int) -> bytes:
        """The whole body; TooLarge beyond the limit."""
        parts: list[bytes] = []
        size = 0
        while data := await self.read_some():
            size += len(data)
            if size > limit_bytes:
                raise TooLarge(f"the answer has more than {limit_bytes} bytes")
            parts.append(data)
        return b"".join(parts)

    # --- life -------------------------------------------------------------------------------------

    def is_reusable(self) -> bool:
        """Whether the answer is read to its end and another request may follow."""
        return self._keeps_alive and self._left == 0 and not self._unread

    def is_stale(self) -> bool:
        """Whether the other end closed an idle connection, as far as can be seen from here."""
        poll = select.poll()
        poll.register(self._socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def bound(self) -> trio.CancelScope:
        """The scope in which one request is made: it ends when nothing moves."""
        self._stalls_at = trio.current_time() + STALL_S
        self._scope = trio.CancelScope(deadline=self._stalls_at)
        return self._scope

    def close(self) -> None:
        """Give the connection up, without a word to the other end."""
        self._keeps_alive = False
        self._socket.close()


def _parsed(raw: bytes) -> Head:
    lines = raw.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1."):
        raise Cut("what answers there does not speak HTTP/1.1", False)
    head = Head(_number(lines[0][9:12], 10), lines[0][:8] == "HTTP/1.1")
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise Cut("the answer has a header that is none", False)
        head.headers[name.lower()] = value.strip()
    return head


def _number(text: str, base: int) -> int:
    text = text.strip()
    if not text.isalnum() or not text.isascii():
        raise Cut("the answer has a length or a status that is no number", False)
    try:
        return int(text, base)
    except ValueError as error:
        raise Cut("the answer has a length or a status that is no number", False) from error


def reason_of(error: BaseException) -> str:
    """Why a connection failed, in words."""
    cause: BaseException = error
    while cause.__cause__ is not None and not getattr(cause, "strerror", None):
        cause = cause.__cause__
        if isinstance(cause, BaseExceptionGroup):
            # One attempt for each address of the host; the first says enough.
            cause = cause.exceptions[0]
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message})"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause)

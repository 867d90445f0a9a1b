"""HTTP/1.1 as bytes: heads and bodies off a stream, unchanged, so that signatures stay right.

The fault proxy reads both of its sides with it. It never judges a message: what it forwards is
what came.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio
HEAD_MAX_BYTES = 64 << 10
BODY_MAX_BYTES = 256 << 20
RECEIVE_BYTES = 1 << 18


class EndedError(Exception):
    """The other side closed where a message had to go on."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers of a message, as they came."""

    line: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def get(self, name: bytes) -> bytes | None:
        """The value of a header, by its lower-case name."""
        for held, value in self.headers:
            if held.lower() == name:
                return value
        return None

    def put(self, name: bytes, value: bytes | None) -> Head:
        """With that header's value, or without the header."""
        kept = tuple(pair for pair in self.headers if pair[0].lower() != name.lower())
        return Head(self.line, kept if value is None else (*kept, (name, value)))

    def encode(self) -> bytes:
        lines = [self.line, *(name + b": " + value for name, value in self.headers)]
        return b"\r\n".join(lines) + b"\r\n\r\n"

    # --- a request's ----------------------------------------------------------------------------

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode()

    # --- an answer's ----------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return int(self.line.split(b" ")[1])


class Reader:
    """Messages from one stream, one after the other."""

    def __init__(self, stream: trio.abc.ReceiveStream) -> None:
        self.stream = stream
        self._held = bytearray()

    async def head(self) -> Head | None:
        """The next message's; None where the other side closed between two messages."""
        while (end := self._held.find(b"\r\n\r\n")) < 0:
            assert len(self._held) <= HEAD_MAX_BYTES, "a head without end"
            if not await self._more():
                if self._held:
                    raise EndedError("in a head")
                return None
        line, *lines = bytes(self._take(end + 4)[:-4]).split(b"\r\n")
        pairs = (held.partition(b":") for held in lines)
        return Head(line, tuple((name, value.strip()) for name, _, value in pairs))

    async def body(self, head: Head) -> bytes:
        """The body behind ``head``, framing of chunks included."""
        if (head.get(b"transfer-encoding") or b"").lower() == b"chunked":
            return await self._chunks()
        size = int(head.get(b"content-length") or 0)
        assert size <= BODY_MAX_BYTES
        while len(self._held) < size:
            if not await self._more():
                raise EndedError(f"after {len(self._held)} of {size} bytes")
        return self._take(size)

    async def _chunks(self) -> bytes:
        whole = bytearray()
        while True:
            line = await self._until(b"\r\n")
            size = int(line.split(b";")[0], 16)
            whole += line
            while len(self._held) < size:
                if not await self._more():
                    raise EndedError("in a chunk")
            whole += self._take(size) + await self._until(b"\r\n")
            assert len(whole) <= BODY_MAX_BYTES
            if size == 0:
                return bytes(whole)

    async def _until(self, mark: bytes) -> bytes:
        while (end := self._held.find(mark)) < 0:
            if not await self._more():
                raise EndedError("in a chunk")
        return self._take(end + len(mark))

    async def _more(self) -> bool:
        data = await self.stream.receive_some(RECEIVE_BYTES)
        self._held += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._held[:size])
        del self._held[:size]
        return taken


def has_body(request: Head, answer: Head) -> bool:
    """Whether bytes follow an answer's head."""
    return request.method != "HEAD" and answer.status >= 200 and answer.status not in (204, 304)

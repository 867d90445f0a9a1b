"""How an exchange is answered: with lines, with bytes, with an error, or not at all any more.

The server calls it once it knows the operation. A status is fixed by the first byte; what fails
later is told inside the answer: as the last line, or as a trailer.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import msgspec
import trio

from unifs.control import wire
from unifs.control.connection import Exchange, Gone

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

    from msgspec import Struct

    from unifs.control.registry import Download
    from unifs.errors import UnifsError

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

#: Lines are sent together when they fill this much or are this old.
BUFFER_BYTES: Final = 1 << 15
BUFFER_S: Final = 0.01


async def send_events(exchange: Exchange, call: Callable[..., Awaitable[Any]]) -> None:
    """One line per event. What fails before the first event still has a status of its own."""
    lines = _Lines(exchange)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lines.flush_old)
            try:
                await call(emit=lines.emit)
            finally:
                # Not while it sends: what is cancelled then is lost, or half of a chunk.
                async with lines.sending:
                    nursery.cancel_scope.cancel()
    except Exception:
        await lines.flush()
        raise
    await lines.finish()


class _Lines:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._buffer = bytearray()
        self.sending = trio.Lock()
        self._filled = trio.Event()

    async def emit(self, event: Struct, /) -> None:
        self._buffer += wire.event_line(event)
        self._filled.set()
        if len(self._buffer) >= BUFFER_BYTES:
            await self.flush()
        else:
            await trio.lowlevel.checkpoint()

    async def flush_old(self) -> None:
        """Send what has waited; the end of a caller that is gone is somebody else's to notice."""
        while True:
            await self._filled.wait()
            await trio.sleep(BUFFER_S)
            try:
                await self.flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def flush(self) -> None:
        async with self.sending:
            if not self._buffer:
                return
            data, self._buffer = bytes(self._buffer), bytearray()
            self._filled = trio.Event()
            if not self._exchange.answering:
                await self._exchange.start(200, NDJSON)
            await self._exchange.write(data)

    async def finish(self) -> None:
        self._buffer += wire.line({"status": "success"})
        await self.flush()
        await self._exchange.finish()


async def send_download(exchange: Exchange, download: Download) -> None:
    """Bytes in chunks even where the size is known: only a chunked body can end with an error."""
    chunks = cast("AsyncGenerator[bytes, None]", download.chunks)
    async with aclosing(chunks):
        first = await anext(chunks, b"")
        size = [] if download.size_bytes is None else [(wire.SIZE, str(download.size_bytes))]
        await exchange.start(200, download.content_type, [*size, ("trailer", wire.ERROR_TRAILER)])
        if first:
            await exchange.write(first)
        async for chunk in chunks:
            await exchange.write(chunk)
    await exchange.finish()


async def refuse(exchange: Exchange, error: UnifsError) -> None:
    """Say the error in whatever form the answer has by now."""
    table = wire.failure(error)
    if exchange.is_finished:
        return
    if not exchange.answering:
        await exchange.answer(error.http_status, JSON, msgspec.json.encode(table))
    elif exchange.answering == NDJSON:
        await exchange.write(wire.line(table))
        await exchange.finish()
    elif exchange.answering != JSON:
        await exchange.finish([(wire.ERROR_TRAILER, quote(msgspec.json.encode(table)))])


async def while_present(exchange: Exchange, work: Awaitable[None]) -> None:
    """Do the work; stop and raise Gone when the caller goes away first."""
    failure: Exception | None = None
    is_gone = False

    async def watch(scope: trio.CancelScope) -> None:
        nonlocal is_gone
        try:
            await exchange.gone()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # that is what being gone looks like
        is_gone = True
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, nursery.cancel_scope)
        try:
            await work
        except Exception as error:
            # Raised below, outside of the nursery, which would put a group around it.
            failure = _single(error)
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if is_gone and not exchange.is_finished:
        raise Gone


def _single(error: Exception) -> Exception:
    """The one failure in a group that nurseries have put around it."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error

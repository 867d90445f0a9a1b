"""The control socket's server: requests in, operations called, answers out.

The composition root opens ``serve`` around the daemon's life. It turns failures into HTTP statuses
(nobody else does) and bugs into INTERNAL with the traceback in the log; it adds no parameter and no
check to an operation.

Handlers run on the daemon's event loop, at most ``requests_max`` at a time. A handler is cancelled
when its caller goes away; at the end streams are cancelled at once and answers have ``GRACE_S``.
"""

from __future__ import annotations

import logging
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import parse_qsl, quote

import msgspec
import trio

from unifs import telemetry
from unifs.control import address, wire
from unifs.control.connection import Connection, Exchange, Gone
from unifs.control.openapi import document
from unifs.control.registry import Download, Upload
from unifs.control.tools import descriptions
from unifs.errors import (
    InvalidArgument,
    MethodNotAllowed,
    TooLarge,
    TryAgain,
    UnifsError,
    UnknownOperation,
    from_os_error,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from msgspec import Struct

    from unifs.config import Settings
    from unifs.control.registry import Operation, Registry
    from unifs.telemetry import Metrics

log = logging.getLogger(__name__)

PREFIX: Final = "/api/v1/"
#: Answers in flight may finish within this time when the daemon ends.
GRACE_S: Final = 0.3
#: What is cancelled at the end may still say so within this time.
FAREWELL_S: Final = 0.2

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"


class Served(Protocol):
    """What the server itself asks of the daemon; operations ask more (``daemon_protocol``)."""

    settings: Settings
    metrics: Metrics


@asynccontextmanager
async def serve(
    registry: Registry, daemon: Served, socket_path: Path, link_path: Path | None = None
) -> AsyncIterator[None]:
    """Answer control requests at ``socket_path`` inside this context.

    ``link_path`` becomes a symbolic link to the socket. Raises StateInUse or StateUnusable before
    it yields. Leaving takes less than a second whatever callers do.
    """
    listener = address.listen(socket_path)
    try:
        if link_path is not None:
            address.link(link_path, socket_path)
        server = _Server(registry, daemon)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.accept, trio.socket.from_stdlib_socket(listener), nursery)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await server.end()
                nursery.cancel_scope.cancel()
    finally:
        listener.close()
        address.remove(socket_path)
        if link_path is not None:
            address.remove(link_path)


class _Server:
    def __init__(self, registry: Registry, daemon: Served) -> None:
        self._registry = registry
        self._daemon = daemon
        self._limits = daemon.settings.control
        self._connections: dict[Connection, trio.CancelScope] = {}
        self._changed = trio.Event()

    # --- connections ------------------------------------------------------------------------------

    async def accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Accept connections, one task each. What is too much is told so, not left waiting."""
        while True:
            accepted, _ = await listener.accept()
            connection = Connection(trio.SocketStream(accepted), _malformed)
            handle, scope = _refuse_busy, trio.CancelScope()
            if len(self._connections) < self._limits.requests_max or self._drop_idle():
                handle = self._answer
                self._connections[connection] = scope
            nursery.start_soon(self._serve_connection, connection, scope, handle)

    def _drop_idle(self) -> bool:
        idle = next((each for each in self._connections if each.is_idle), None)
        if idle is not None:
            self._connections.pop(idle).cancel()
        return idle is not None

    async def _serve_connection(
        self,
        connection: Connection,
        scope: trio.CancelScope,
        handle: Callable[[Exchange], Awaitable[None]],
    ) -> None:
        try:
            with scope:
                await connection.serve(handle)
        except Exception:
            log.exception("control_connection_failed")
        finally:
            connection.abort()
            self._connections.pop(connection, None)
            self._changed.set()

    async def end(self) -> None:
        """Cancel streams, let answers finish, then cancel them, then give up what is left."""
        for connection, scope in self._connections.items():
            if connection.is_idle or connection.is_streaming:
                scope.cancel()
        await self._until_empty(GRACE_S)
        for scope in self._connections.values():
            scope.cancel()
        await self._until_empty(FAREWELL_S)
        for connection in list(self._connections):
            connection.abort()

    async def _until_empty(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._connections:
                self._changed = trio.Event()
                await self._changed.wait()

    # --- one exchange
    # ------------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange) -> None:
        started_ns = time.perf_counter_ns()
        name = ""
        try:
            name = self._name_of(exchange)
            await self._dispatch(exchange, name)
        except (Gone, trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            named = _named(error, name)
            self._daemon.metrics.counter(
                telemetry.CONTROL_ERRORS, name or "other", named.code
            ).value += 1
            await _refuse(exchange, named)
        except BaseException:
            # Cancelled: alone, or in a group. What the caller was doing is over, not done.
            with trio.move_on_after(FAREWELL_S, shield=True):
                await _refuse(exchange, TryAgain("unifs is stopping"))
            raise
        finally:
            elapsed_ns = time.perf_counter_ns() - started_ns
            label = name or "other"
            self._daemon.metrics.histogram(telemetry.CONTROL_DURATION, label).record(elapsed_ns)

    def _name_of(self, exchange: Exchange) -> str:
        """The operation that is asked for; "" for the documents."""
        if not exchange.path.startswith(PREFIX):
            return ""
        name = exchange.path[len(PREFIX) :].strip("/").replace("/", ".")
        return self._registry.get(name).name

    async def _dispatch(self, exchange: Exchange, name: str) -> None:
        if not name:
            await self._send_document(exchange)
            return
        if exchange.method != "POST":
            raise MethodNotAllowed(f"{name} is called with POST, not {exchange.method}")
        operation = self._registry.get(name)
        upload = None
        if operation.takes_upload:
            upload = Upload(exchange.body(), exchange.body_bytes)
            arguments = operation.check(_query(exchange.query, operation), is_text=True)
        else:
            arguments = operation.check(await self._json_body(exchange))
        await _while_present(exchange, self._run(exchange, operation, arguments, upload))

    async def _send_document(self, exchange: Exchange) -> None:
        content_type = JSON
        match exchange.path:
            case "/health":
                body = msgspec.json.encode({"status": "success"})
            case "/openapi.json":
                body = msgspec.json.encode(document(self._registry))
            case "/tools.json":
                body = msgspec.json.encode(descriptions(self._registry))
            case "/metrics":
                accept = exchange.headers.get("accept", "")
                body, content_type = self._daemon.metrics.export(accept)
            case _:
                raise UnknownOperation(f"there is nothing at {exchange.path}", path=exchange.path)
        if exchange.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{exchange.path} is read with GET, not {exchange.method}")
        await exchange.answer(200, content_type, body)

    async def _json_body(self, exchange: Exchange) -> dict[str, Any]:
        if exchange.query:
            raise InvalidArgument("parameters go into the JSON body, not into the query")
        limit = self._limits.body_bytes_max
        too_large = TooLarge(f"the request's body is larger than {limit} bytes", limit_bytes=limit)
        if (exchange.body_bytes or 0) > limit:
            raise too_large
        body = bytearray()
        async with aclosing(exchange.body()) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise too_large
        try:
            table = msgspec.json.decode(bytes(body) or b"{}")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgument(f"the request's body is not JSON: {error}") from error
        if not isinstance(table, dict):
            raise InvalidArgument("the request's body has to be a JSON object")
        decoded: dict[str, Any] = wire.decode_names(table)
        return decoded

    async def _run(
        self,
        exchange: Exchange,
        operation: Operation,
        arguments: dict[str, Any],
        upload: Upload | None,
    ) -> None:
        lines = _Lines(exchange)
        result = await operation.call(self._daemon, arguments, upload, lines.emit)
        if operation.kind == "events":
            await lines.finish()
        elif isinstance(result, Download):
            await _send_download(exchange, result)
        else:
            await exchange.answer(200, JSON, msgspec.json.encode(wire.success(result)))


# --- answers --------------------------------------------------------------------------------------


class _Lines:
    """Events as lines. What fails before the first event still has a status of its own."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def emit(self, event: Struct, /) -> None:
        await self._write(wire.plain(event))

    async def finish(self) -> None:
        await self._write({"status": "success"})
        await self._exchange.finish()

    async def _write(self, table: dict[str, Any]) -> None:
        if not self._exchange.answering:
            await self._exchange.start(200, NDJSON)
        await self._exchange.write(wire.line(table))


async def _send_download(exchange: Exchange, download: Download) -> None:
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


async def _refuse(exchange: Exchange, error: UnifsError) -> None:
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


async def _refuse_busy(exchange: Exchange) -> None:
    await _refuse(exchange, TryAgain("too many control requests at the same time"))


def _malformed(reason: str) -> bytes:
    return msgspec.json.encode(wire.failure(InvalidArgument(f"that is not HTTP/1.1: {reason}")))


async def _while_present(exchange: Exchange, work: Awaitable[None]) -> None:
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
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if is_gone and not exchange.is_finished:
        raise Gone


def _query(query: str, operation: Operation) -> dict[str, object]:
    """A query's values; those of a list parameter together."""
    lists = {each.name for each in operation.parameters if each.is_list}
    table: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, errors="surrogateescape"):
        if key in lists:
            table.setdefault(key, []).append(value)
        elif key in table:
            raise InvalidArgument(f"{key} is given twice", field=key)
        else:
            table[key] = value
    return table


def _named(error: Exception, name: str) -> UnifsError:
    """The failure as one of ours. What has no name is a bug: logged, and said to be one."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, OSError):
        named = from_os_error(error)
        error = named if isinstance(named, UnifsError) else error
    if isinstance(error, UnifsError):
        if error.code == UnifsError.code:
            log.error("control_failed operation=%s", name, exc_info=error)
        return error
    log.error("control_bug operation=%s", name, exc_info=error)
    return UnifsError(f"{name or 'the request'} failed: {type(error).__name__}", operation=name)

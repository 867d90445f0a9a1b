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
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qsl

import msgspec
import trio

from unifs import telemetry
from unifs.control import address, wire
from unifs.control.connection import Connection, Exchange, Gone
from unifs.control.openapi import document
from unifs.control.registry import Download, Upload
from unifs.control.replies import JSON, refuse, send_download, send_events, while_present
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
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from unifs.config import Settings
    from unifs.control.registry import Operation, Registry
    from unifs.telemetry import Metrics

log = logging.getLogger(__name__)

PREFIX: Final = "/api/v1/"
#: Answers in flight may finish within this time when the daemon ends.
GRACE_S: Final = 0.3
#: What is cancelled at the end may still say so within this time.
FAREWELL_S: Final = 0.2


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
            # A bug in one connection ends that connection and no other.
            log.exception("control_connection_failed")
        finally:
            connection.abort()
            self._connections.pop(connection, None)
            self._changed.set()

    async def end(self) -> None:
        """Cancel streams, let answers finish, then cancel them too."""
        for connection, scope in self._connections.items():
            if connection.is_idle or connection.is_streaming:
                scope.cancel()
        await self._until_empty(GRACE_S)
        for scope in self._connections.values():
            scope.cancel()
        await self._until_empty(FAREWELL_S)

    async def _until_empty(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._connections:
                self._changed = trio.Event()
                await self._changed.wait()

    # --- one exchange -----------------------------------------------------------------------------

    async def _answer(self, exchange: Exchange) -> None:
        started_ns = time.perf_counter_ns()
        name = ""
        try:
            name = self._name_of(exchange)
            await self._dispatch(exchange, name)
        except (Gone, trio.BrokenResourceError, trio.ClosedResourceError):
            raise
        except Exception as error:
            # What has no name is a bug: ``_named`` logs it, and the caller is told that it is one.
            named = _named(error, name)
            self._daemon.metrics.counter(
                telemetry.CONTROL_ERRORS, name or "other", named.code
            ).value += 1
            await refuse(exchange, named)
        except BaseException:
            # Cancelled: alone, or in a group. What the caller was doing is over, not done.
            with trio.move_on_after(FAREWELL_S, shield=True):
                await refuse(exchange, TryAgain("unifs is stopping"))
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
        await while_present(exchange, self._run(exchange, operation, arguments, upload))

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
        call = partial(operation.call, self._daemon, arguments, upload)
        if operation.kind == "events":
            await send_events(exchange, call)
            return
        result = await call()
        if isinstance(result, Download):
            await send_download(exchange, result)
        else:
            await exchange.answer(200, JSON, msgspec.json.encode(wire.success(result)))


# --- requests and failures ---------------------------------------------------------------------


async def _refuse_busy(exchange: Exchange) -> None:
    await refuse(exchange, TryAgain("too many control requests at the same time"))


def _malformed(reason: str) -> bytes:
    return msgspec.json.encode(wire.failure(InvalidArgument(f"that is not HTTP/1.1: {reason}")))


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
    if isinstance(error, OSError):
        named = from_os_error(error)
        error = named if isinstance(named, UnifsError) else error
    if isinstance(error, UnifsError):
        if error.code == UnifsError.code:
            log.error("control_failed operation=%s", name, exc_info=error)
        return error
    log.error("control_bug operation=%s", name, exc_info=error)
    return UnifsError(f"{name or 'the request'} failed: {type(error).__name__}", operation=name)

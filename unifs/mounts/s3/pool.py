"""Idle connections to one service, and opening new ones.

``service`` takes a connection for each request and gives it back when its answer is read to the
end. TLS is verified by the system's trust. Belongs to the event loop's thread; nothing here waits
but ``connect``.
"""

from __future__ import annotations

import ssl
from typing import Final

import trio

from unifs.errors import Unreachable
from unifs.mounts.s3.wire import Address, Connection, reason_of

CONNECT_S: Final = 10.0
#: Idle connections are used again for so long; services close theirs after 5 to 60 s.
IDLE_S: Final = 20.0


class Pool:
    """Idle connections by address, the last used first. Belongs to the event loop's thread."""

    def __init__(self, idle_max: int, trust: ssl.SSLContext | None = None) -> None:
        self._idle: dict[Address, list[Connection]] = {}
        self._idle_max = idle_max
        self._trust = trust
        self.opened = 0

    def take(self, address: Address) -> Connection | None:
        """An idle connection that is still open."""
        idle = self._idle.get(address)
        oldest = trio.current_time() - IDLE_S
        while idle:
            connection = idle.pop()
            if connection.idle_since > oldest and not connection.is_stale():
                return connection
            connection.close()
        return None

    def give(self, address: Address, connection: Connection) -> None:
        """Keep a connection for the next request."""
        idle = self._idle.setdefault(address, [])
        connection.idle_since = trio.current_time()
        idle.append(connection)
        oldest = trio.current_time() - IDLE_S
        while len(idle) > self._idle_max or idle[0].idle_since < oldest:
            idle.pop(0).close()

    async def connect(self, address: Address) -> Connection:
        """A new connection. Unreachable, with the reason, where there is none to be had."""
        where = f"{address.host}:{address.port}"
        try:
            with trio.fail_after(CONNECT_S):
                stream = await trio.open_tcp_stream(address.host, address.port)
                self.opened += 1
                if not address.is_tls:
                    return Connection(stream)
                try:
                    return Connection(await self._secured(stream, address.host))
                except BaseException:
                    stream.socket.close()
                    raise
        except trio.TooSlowError as error:
            raise Unreachable(f"{where} took no connection within {CONNECT_S:g} s") from error
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            raise Unreachable(f"no connection to {where}: {reason_of(error)}") from error

    async def _secured(
        self, stream: trio.SocketStream, host: str
    ) -> trio.SSLStream[trio.SocketStream]:
        if self._trust is None:
            self._trust = await trio.to_thread.run_sync(ssl.create_default_context)
        secure = trio.SSLStream(stream, self._trust, server_hostname=host, https_compatible=True)
        await secure.do_handshake()
        return secure

    def close(self) -> None:
        """Close what is idle."""
        for idle in self._idle.values():
            for connection in idle:
                connection.close()
        self._idle.clear()

    def statistics(self) -> dict[str, int]:
        """Idle connections, their bound per address, and how many were opened so far."""
        idle = sum(len(idle) for idle in self._idle.values())
        return {"idle": idle, "idle_max": self._idle_max, "opened": self.opened}

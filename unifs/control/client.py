"""The caller's side of the control socket: synchronous, quick to import.

The command line and the tests call it. h11 over a blocking socket: it imports in 10 ms where
http.client needs 30 (its header parser is that of e-mail), and it hands over trailers, which say
why a stream of bytes ends early.

Every failure is one of ``unifs.errors``: what the daemon answered, NoDaemon where none does,
TryAgain where the answer breaks off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlencode

import h11
import msgspec

from unifs.control import address, wire
from unifs.errors import NoDaemon, TryAgain

if TYPE_CHECKING:
    import socket
    from collections.abc import Generator, Iterable, Iterator, Mapping
    from pathlib import Path

READ_BYTES: Final = 1 << 20
#: Longest line of a stream of events.
LINE_BYTES_MAX: Final = 64 << 20


class Client:
    """A daemon behind the first of ``paths`` that answers. One connection per call."""

    def __init__(self, *paths: Path, timeout_s: float | None = None) -> None:
        self._paths = paths
        self._timeout_s = timeout_s

    def call(self, name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, names decoded, without its status."""
        with self._post(name, parameters) as reply:
            return reply.table()

    def events(
        self, name: str, parameters: Mapping[str, Any]
    ) -> Generator[dict[str, Any], None, None]:
        """The events of a stream as they come. Closing the iterator ends the operation."""
        with self._post(name, parameters) as reply:
            yield from reply.events()

    def download(self, name: str, parameters: Mapping[str, Any]) -> Reply:
        """Bytes: a context manager with ``size_bytes``, ``content_type`` and ``chunks()``."""
        return self._post(name, parameters)

    def upload(
        self,
        name: str,
        parameters: Mapping[str, Any],
        chunks: Iterable[bytes],
        size_bytes: int | None = None,
    ) -> Reply:
        """Send bytes, get the reply to them (``table()`` or ``events()``)."""
        given = {key: _text(value) for key, value in parameters.items() if value is not None}
        query = urlencode(given, doseq=True, errors="surrogateescape")
        headers = [("content-type", "application/octet-stream")]
        if size_bytes is not None:
            headers.append(("content-length", str(size_bytes)))
        else:
            headers.append(("transfer-encoding", "chunked"))
        target = f"{_target(name)}?{query}" if query else _target(name)
        return self._request("POST", target, headers, chunks)

    def get(self, path: str) -> Reply:
        """One of the documents: /health, /metrics, /openapi.json, /tools.json."""
        return self._request("GET", path, [], ())

    def _post(self, name: str, parameters: Mapping[str, Any]) -> Reply:
        given = {key: value for key, value in parameters.items() if value is not None}
        body = msgspec.json.encode(wire.encode_request(given))
        headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
        return self._request("POST", _target(name), headers, (body,))

    def _request(
        self, method: str, target: str, headers: list[tuple[str, str]], chunks: Iterable[bytes]
    ) -> Reply:
        connection = self._connect()
        try:
            reply = Reply(connection)
            reply.ask(method, target, [("host", "unifs"), *headers], chunks)
            return reply
        except BaseException:
            connection.close()
            raise

    def _connect(self) -> socket.socket:
        for path in self._paths[:-1]:
            try:
                return address.connect(path, self._timeout_s)
            except NoDaemon:
                continue
        return address.connect(self._paths[-1], self._timeout_s)


class Reply:
    """The answer to one request. Leaving its context closes the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._http = h11.Connection(h11.CLIENT)
        self.content_type = ""
        self.size_bytes: int | None = None
        self.status = 0

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(
        self, method: str, target: str, headers: list[tuple[str, str]], chunks: Iterable[bytes]
    ) -> None:
        """Send the request and read the head of the answer; raises what the answer says."""
        request = h11.Request(method=method, target=target, headers=headers)
        try:
            self._send(request)
            for chunk in chunks:
                if chunk:
                    self._send(h11.Data(data=chunk))
            self._send(h11.EndOfMessage())
        except (BrokenPipeError, ConnectionResetError):
            # The daemon has answered before it read everything: the answer says why.
            self._http.send_failed()
        self._read_head()

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            self._socket.sendall(data)

    def _read_head(self) -> None:
        event = self._next()
        while isinstance(event, h11.InformationalResponse):
            event = self._next()
        if not isinstance(event, h11.Response):
            raise TryAgain("the daemon went away before it answered")
        headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        self.content_type = headers.get("content-type", "")
        length = headers.get(wire.SIZE, headers.get("content-length", ""))
        self.size_bytes = int(length) if length.isdigit() else None
        self.status = event.status_code
        if self.status >= 400:
            wire.raise_failure(_json(b"".join(self.chunks())))
            raise TryAgain(f"the daemon answered with status {self.status}")

    def _next(self) -> object:
        while True:
            try:
                event = self._http.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self._http.receive_data(self._socket.recv(READ_BYTES))
            except (ConnectionResetError, h11.RemoteProtocolError) as error:
                raise TryAgain("the daemon's answer breaks off; its log says why") from error

    def chunks(self) -> Iterator[bytes]:
        """The body's bytes. Raises the daemon's error where they end early."""
        while True:
            event = self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                for name, value in event.headers:
                    if name == wire.ERROR_TRAILER.encode():
                        wire.raise_failure(_json(unquote(value.decode()).encode()))
                return
            else:
                raise TryAgain("the daemon's answer breaks off; its log says why")

    def table(self) -> dict[str, Any]:
        """The one JSON object of the answer, without its status."""
        table = _json(b"".join(self.chunks()))
        wire.raise_failure(table)
        table.pop("status", None)
        return table

    def events(self) -> Iterator[dict[str, Any]]:
        """The objects of a stream; the last line, with the status, is not one of them."""
        rest = bytearray()
        for chunk in self.chunks():
            rest += chunk
            *lines, last = bytes(rest).split(b"\n")
            rest = bytearray(last)
            assert len(rest) <= LINE_BYTES_MAX
            for line in lines:
                table = _json(line)
                if "status" in table:
                    wire.raise_failure(table)
                    return
                yield table
        raise TryAgain("the daemon's answer breaks off; its log says why")


def _target(name: str) -> str:
    return "/api/v1/" + name.replace(".", "/")


def _text(value: Any) -> Any:
    """A parameter as query text, the way the server reads it back."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value


def _json(data: bytes) -> dict[str, Any]:
    table: dict[str, Any] = wire.decode_names(msgspec.json.decode(data))
    return table

"""HTTP as it is sent and as it is broken, against a server that says what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from unifs.errors import TooLarge, Unreachable
from unifs.mounts.s3.payload import BytesPayload
from unifs.mounts.s3.pool import Pool
from unifs.mounts.s3.wire import HEAD_MAX, STALL_S, Address, Connection, Cut, Head

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

HEAD = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
PUT = b"PUT / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n"


class Peer:
    """The other end: answers each request with the next of ``answers`` (None: closes)."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.received: list[bytes] = []
        self.connections = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while self.answers:
                data = await stream.receive_some(1 << 20)
                if not data:
                    return
                self.received.append(bytes(data))
                answer = self.answers.pop(0)
                if answer is None:
                    return
                await stream.send_all(answer)


@pytest.fixture
async def connect(nursery: trio.Nursery) -> AsyncIterator[Callable[[Peer], object]]:
    pools: list[Pool] = []

    async def open_to(peer: Peer) -> Connection:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
        port = listeners[0].socket.getsockname()[1]
        pool = Pool(4)
        pools.append(pool)
        return await pool.connect(Address("127.0.0.1", port, False))

    yield open_to
    for pool in pools:
        pool.close()


async def answered(connection: Connection, body: BytesPayload | None = None) -> Head:
    head = PUT if body is not None else HEAD
    return await connection.exchange(head, "PUT" if body else "GET", body)


async def test_a_body_with_a_length(connect) -> None:
    peer = Peer(b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "e"\r\n\r\nhello')
    connection = await connect(peer)
    head = await answered(connection)
    assert (head.status, head.headers["etag"]) == (200, '"e"')
    assert not connection.is_reusable()
    buffer = bytearray(5)
    await connection.read_into(memoryview(buffer))
    assert bytes(buffer) == b"hello"
    assert connection.is_reusable()
    connection.close()


async def test_a_body_in_chunks_with_a_trailer(connect) -> None:
    peer = Peer(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nx-trailer: 1\r\n\r\n"
    )
    connection = await connect(peer)
    await answered(connection)
    assert await connection.read_all(100) == b"hello"
    assert connection.is_reusable()
    connection.close()


async def test_a_body_until_the_connection_closes(connect) -> None:
    peer = Peer(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    connection = await connect(peer)
    await answered(connection)
    assert await connection.read_all(100) == b"until the end"
    assert not connection.is_reusable()
    connection.close()


async def whole(connection: Connection) -> bytes:
    await answered(connection)
    return await connection.read_all(1 << 20)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloMORE\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (HEAD_MAX + 10),
    ],
)
async def test_an_answer_that_is_cut_or_no_http_is_an_error(connect, answer: bytes) -> None:
    connection = await connect(Peer(answer))
    with pytest.raises(Cut) as caught:
        await whole(connection)
    assert not caught.value.is_unheard
    assert not connection.is_reusable()
    connection.close()


async def test_a_connection_that_closes_without_an_answer_was_not_heard(connect) -> None:
    connection = await connect(Peer(None))
    with pytest.raises(Cut) as caught:
        await answered(connection)
    assert caught.value.is_unheard
    connection.close()


async def test_a_truncated_range_is_an_error(connect) -> None:
    connection = await connect(Peer(b"HTTP/1.1 206 OK\r\nContent-Length: 9\r\n\r\nhello"))
    await answered(connection)
    with pytest.raises(Cut):
        await connection.read_into(memoryview(bytearray(9)))
    connection.close()


class Dripping(Peer):
    """Sends the pieces of its answer with a pause before each but the first."""

    def __init__(self, pieces: list[bytes], pause_s: float) -> None:
        super().__init__(b"")
        self.pieces, self.pause_s = pieces, pause_s

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(1 << 20)
            for number, piece in enumerate(self.pieces):
                if number:
                    await trio.sleep(self.pause_s)
                await stream.send_all(piece)
            await trio.sleep_forever()


async def test_a_fast_body_that_turns_slow_arrives_whole(connect) -> None:
    fast = bytes(range(256)) * 4096
    slow = [b"%03d" % number for number in range(40)]
    data = fast + b"".join(slow)
    head = b"HTTP/1.1 206 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
    connection = await connect(Dripping([head + fast, *slow], 0.005))
    await answered(connection)
    room = bytearray(len(data))
    with trio.fail_after(STALL_S), memoryview(room) as view:
        for start, end in ((0, 700_000), (700_000, len(fast) + 7), (len(fast) + 7, len(data))):
            await connection.read_into(view[start:end])
    assert room == data
    assert connection.is_reusable()
    assert not connection.is_stale()
    connection.close()


async def test_a_fast_body_that_ends_early_is_an_error_at_once(connect) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Length: 9000000\r\n\r\n"
    connection = await connect(Peer(head + bytes(1 << 20)))
    await answered(connection)
    with pytest.raises(Cut), trio.fail_after(STALL_S / 2), memoryview(bytearray(9_000_000)) as view:
        await connection.read_into(view)
    connection.close()


async def test_a_single_byte_nobody_asked_for_makes_a_connection_stale(connect) -> None:
    data = bytes(1 << 20)
    head = b"HTTP/1.1 206 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
    connection = await connect(Dripping([head, data, b"H"], 0.01))
    await answered(connection)
    with memoryview(bytearray(len(data))) as view:
        await connection.read_into(view)
    with trio.fail_after(5):
        while not connection.is_stale():  # noqa: ASYNC110 (the kernel tells nobody)
            await trio.sleep(0.001)
    assert connection.is_reusable()
    connection.close()


async def test_a_body_over_the_limit(connect) -> None:
    connection = await connect(Peer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789"))
    await answered(connection)
    with pytest.raises(TooLarge):
        await connection.read_all(5)
    connection.close()


async def test_a_large_body_waits_to_be_wanted(connect) -> None:
    peer = Peer(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    connection = await connect(peer)
    data = bytes(1 << 20)
    head = await answered(connection, BytesPayload(data))
    assert head.status == 200
    assert peer.received[0] == PUT
    connection.close()


async def test_a_large_body_that_was_not_announced_is_sent_at_once(connect, autojump_clock) -> None:
    peer = Peer(b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    connection = await connect(peer)
    before = trio.current_time()
    head = await connection.exchange(
        b"PUT / HTTP/1.1\r\nhost: x\r\n\r\n", "PUT", BytesPayload(bytes(1 << 20))
    )
    assert (head.status, trio.current_time()) == (200, before)
    connection.close()


async def test_a_refused_body_is_never_sent(connect) -> None:
    peer = Peer(b"HTTP/1.1 412 No\r\nContent-Length: 2\r\n\r\nno", None)
    connection = await connect(peer)
    head = await answered(connection, BytesPayload(bytes(1 << 20)))
    assert head.status == 412
    assert await connection.read_all(10) == b"no"
    assert not connection.is_reusable()
    assert peer.received == [PUT]
    connection.close()


async def test_other_interim_answers_are_passed_over(connect) -> None:
    peer = Peer(b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 204 None\r\n\r\n")
    connection = await connect(peer)
    assert (await answered(connection)).status == 204
    assert connection.is_reusable()
    connection.close()


async def test_nothing_moving_ends_the_request(connect, autojump_clock) -> None:
    class Silent(Peer):
        async def serve(self, stream: trio.SocketStream) -> None:
            async with stream:
                await trio.sleep_forever()

    connection = await connect(Silent())
    with connection.bound() as scope:
        await answered(connection)
    assert scope.cancelled_caught
    assert trio.current_time() - STALL_S < 1.5 * STALL_S
    connection.close()


async def test_idle_connections_are_used_again_and_dead_ones_are_not(nursery) -> None:
    answer = b"HTTP/1.1 204 None\r\n\r\n"
    peer = Peer(answer, answer)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, peer.serve, listeners)
    address = Address("127.0.0.1", listeners[0].socket.getsockname()[1], False)
    pool = Pool(4)
    connection = await pool.connect(address)
    await answered(connection)
    pool.give(address, connection)
    assert pool.take(address) is connection
    await answered(connection)
    pool.give(address, connection)
    # The peer has said all that it had to say, and closes.
    await trio.lowlevel.wait_readable(connection._socket.fileno())
    assert pool.take(address) is None
    assert pool.statistics() == {"idle": 0, "idle_max": 4, "opened": 1}


async def test_where_nothing_listens_is_unreachable_with_the_reason() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    with pytest.raises(Unreachable, match="refused"):
        await Pool(1).connect(Address("127.0.0.1", port, False))


async def test_a_certificate_that_nobody_signed_is_unreachable_with_the_reason(nursery) -> None:
    answers = Peer(b"HTTP/1.1 200 OK\r\n\r\n")
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, answers.serve, listeners)
    port = listeners[0].socket.getsockname()[1]
    with pytest.raises(Unreachable, match="no connection to"):
        await Pool(1).connect(Address("127.0.0.1", port, True))

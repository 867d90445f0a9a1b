"""The fault proxy does to a request what its name says, and nothing to the others."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest
import trio
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.servers.faultproxy import KINDS, Fault, FaultProxy, Seeded
from tests.servers.http1 import EndedError, Head, Reader, has_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.servers.s3 import S3Server

BODY = bytes(range(256)) * 40
GONE = (trio.BrokenResourceError, EndedError)


class Origin:
    """A server that remembers what reached it whole, and answers with ``BODY``."""

    def __init__(self) -> None:
        self.whole: list[tuple[str, bytes]] = []
        self.cut = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        reader = Reader(stream)
        async with stream:
            try:
                while (request := await reader.head()) is not None:
                    self.whole.append((request.method, await reader.body(request)))
                    answer = Head(b"HTTP/1.1 200 OK", ((b"ETag", b'"e"'), (b"Date", b"then")))
                    answer = answer.put(b"Content-Length", b"%d" % len(BODY))
                    content = BODY if has_body(request, answer) else b""
                    await stream.send_all(answer.encode() + content)
            except GONE:
                self.cut += 1


class Client:
    """One connection to the proxy."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.reader = Reader(stream)

    async def send(self, method: str, body: bytes = b"", **headers: str) -> Head:
        lines = [f"{method} /bucket/key?x=1 HTTP/1.1", "Host: odd.example"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        await self.stream.send_all("\r\n".join(lines).encode() + body)
        return Head(lines[0].encode(), ())

    async def ask(
        self, method: str = "GET", body: bytes = b"", **headers: str
    ) -> tuple[Head, bytes]:
        request = await self.send(method, body, **headers)
        answer = await self.reader.head()
        if answer is None:
            raise EndedError("no answer")
        return answer, await self.reader.body(answer) if has_body(request, answer) else b""


class Stage:
    """A client, the proxy and the origin behind it."""

    def __init__(self, origin: Origin, proxy: FaultProxy) -> None:
        self.origin = origin
        self.proxy = proxy

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        port = int(self.proxy.endpoint.rpartition(":")[2])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            yield Client(stream)

    async def works(self) -> None:
        """The next request meets no fault."""
        async with self.client() as client:
            answer, content = await client.ask()
            assert (answer.status, content) == (200, BODY)


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    origin = Origin()
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, origin.serve, [listener])
        port = listener.socket.getsockname()[1]
        with trio.fail_after(20):
            async with FaultProxy(f"http://127.0.0.1:{port}") as proxy:
                yield Stage(origin, proxy)
        nursery.cancel_scope.cancel()


async def test_without_faults_nothing_changes(stage: Stage) -> None:
    async with stage.client() as client:
        for _ in range(3):
            answer, content = await client.ask("PUT", b"up")
            assert content == BODY
            assert answer.get(b"etag") == b'"e"'
            assert answer.get(b"date") == b"then"
        answer, content = await client.ask("HEAD")
        assert (answer.get(b"content-length"), content) == (b"%d" % len(BODY), b"")
    assert stage.origin.whole == [("PUT", b"up")] * 3 + [("HEAD", b"")]
    assert [(held.method, held.fault, held.status) for held in stage.proxy.seen] == [
        ("PUT", None, 200)
    ] * 3 + [("HEAD", None, 200)]


async def test_a_plan_hits_the_request_that_it_names(stage: Stage) -> None:
    stage.proxy.plan(Fault("answer", retry_after_s=3), method="PUT", where="key", times=2)
    async with stage.client() as client:
        assert (await client.ask("GET"))[0].status == 200
        for _ in range(2):
            answer, content = await client.ask("PUT", b"up")
            assert (answer.status, answer.get(b"retry-after")) == (503, b"3")
            assert b"<Code>SlowDown</Code>" in content
        assert stage.proxy.is_done
        assert (await client.ask("PUT", b"up"))[0].status == 200
    assert stage.origin.whole == [("GET", b""), ("PUT", b"up")]


@pytest.mark.parametrize(
    ("kind", "reached"),
    [("reset_before", 0), ("lose_answer", 1), ("cut_upload", 0)],
)
async def test_a_reset_leaves_no_answer(stage: Stage, kind: str, reached: int) -> None:
    stage.proxy.plan(Fault(kind))
    async with stage.client() as client:
        with pytest.raises(GONE):
            await client.ask("PUT", BODY)
    await stage.works()
    assert len(stage.origin.whole) == reached + 1
    assert stage.origin.cut == (kind == "cut_upload")


async def test_a_failure_after_the_fact(stage: Stage) -> None:
    stage.proxy.plan(Fault("fail_after", status=500, code="InternalError"))
    async with stage.client() as client:
        assert (await client.ask("PUT", b"up"))[0].status == 500
        assert (await client.ask("GET"))[0].status == 200
    assert stage.origin.whole[0] == ("PUT", b"up")


@pytest.mark.parametrize("kind", ["truncate", "reset_body", "stall"])
async def test_a_body_is_cut(stage: Stage, kind: str) -> None:
    stage.proxy.plan(Fault(kind, seconds=0.01, fraction=0.25))
    async with stage.client() as client:
        await client.send("GET")
        answer = await client.reader.head()
        assert answer is not None
        assert answer.get(b"content-length") == b"%d" % len(BODY)
        with pytest.raises(GONE):
            await client.reader.body(answer)
    await stage.works()


@pytest.mark.parametrize("kind", ["delay", "drip"])
async def test_a_slow_answer_is_whole(stage: Stage, kind: str) -> None:
    stage.proxy.plan(Fault(kind, seconds=0.16))
    async with stage.client() as client:
        started = trio.current_time()
        assert (await client.ask())[1] == BODY
        assert trio.current_time() - started >= 0.15
        assert (await client.ask())[1] == BODY


async def test_another_etag(stage: Stage) -> None:
    stage.proxy.plan(Fault("wrong_etag"))
    async with stage.client() as client:
        answer, content = await client.ask()
        assert (answer.get(b"etag") != b'"e"', content) == (True, BODY)


async def test_a_request_is_delivered_twice(stage: Stage) -> None:
    stage.proxy.plan(Fault("duplicate"))
    async with stage.client() as client:
        assert (await client.ask("PUT", b"up"))[0].status == 200
    assert stage.origin.whole == [("PUT", b"up")] * 2


async def test_a_connection_that_closes_unannounced(stage: Stage) -> None:
    stage.proxy.plan(Fault("close_idle"))
    async with stage.client() as client:
        answer, content = await client.ask()
        assert (answer.get(b"connection"), content) == (None, BODY)
        with pytest.raises(GONE):
            await client.ask()
    await stage.works()


async def test_an_answer_before_the_body(stage: Stage) -> None:
    stage.proxy.plan(Fault("answer_early", status=412, code="PreconditionFailed"))
    async with stage.client() as client:
        head = b"PUT /b/k HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n"
        await client.stream.send_all(head + b"a few bytes")
        answer = await client.reader.head()
        assert answer is not None
        assert (answer.status, answer.get(b"connection")) == (412, b"close")
    assert stage.origin.whole == []


async def test_a_client_that_expects_100_gets_it(stage: Stage) -> None:
    async with stage.client() as client:
        head = b"PUT /b/k HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        await client.stream.send_all(head)
        told = await client.reader.head()
        assert told is not None
        assert told.status == 100
        await client.stream.send_all(b"body")
        answer = await client.reader.head()
        assert answer is not None
        assert answer.status == 200
    assert stage.origin.whole == [("PUT", b"body")]


async def test_a_100_that_never_comes(stage: Stage) -> None:
    stage.proxy.plan(Fault("no_continue"))
    async with stage.client() as client:
        answer, _ = await client.ask("PUT", b"body", Expect="100-continue")
        assert answer.status == 200
    assert stage.origin.whole == [("PUT", b"body")]


async def test_an_expectation_that_is_refused(stage: Stage) -> None:
    stage.proxy.plan(Fault("refuse_expect"))
    async with stage.client() as client:
        answer, _ = await client.ask("PUT", b"body", Expect="100-continue")
        assert answer.status == 417
    assert stage.origin.whole == []


async def test_a_clock_that_is_wrong(stage: Stage) -> None:
    stage.proxy.skew_s = 7200.0
    async with stage.client() as client:
        answer, content = await client.ask(x_amz_date="20200101T000000Z")
        assert (answer.status, b"RequestTimeTooSkewed" in content) == (403, True)
        theirs = parsedate_to_datetime((answer.get(b"date") or b"").decode())
        answer, _ = await client.ask(x_amz_date=theirs.strftime("%Y%m%dT%H%M%SZ"))
        assert answer.status == 200
        assert answer.get(b"date") != b"then"


async def test_a_server_that_is_down(stage: Stage) -> None:
    async with (
        FaultProxy("http://127.0.0.1:1") as proxy,
        Stage(stage.origin, proxy).client() as client,
    ):
        with pytest.raises(GONE):
            await client.ask()


def test_a_seed_decides_everything() -> None:
    request = Head(b"GET / HTTP/1.1", ())

    def play(seed: int) -> list[Fault | None]:
        script = Seeded(seed, rate=0.3)
        return [script(request) for _ in range(1000)]

    assert play(1) == play(1)
    assert play(1) != play(2)
    faults = [fault for fault in play(1) if fault is not None]
    assert 200 < len(faults) < 400
    assert {fault.kind for fault in faults} == set(KINDS)


async def test_signatures_survive_the_proxy(s3_server: S3Server) -> None:
    bucket = s3_server.bucket()
    async with FaultProxy(s3_server.endpoint) as proxy:
        client = s3_server.client(
            endpoint_url=proxy.endpoint, config=Config(read_timeout=5, connect_timeout=5)
        )
        put = functools.partial(client.put_object, Bucket=bucket, Key="a b/ü", Body=BODY)
        await trio.to_thread.run_sync(put)
        held = functools.partial(s3_server.client().get_object, Bucket=bucket, Key="a b/ü")
        with (await trio.to_thread.run_sync(held))["Body"] as body:
            assert body.read() == BODY
        proxy.plan(Fault("cut_upload"))
        with pytest.raises(Exception, match="Connection"):
            await trio.to_thread.run_sync(functools.partial(put, Key="cut"))
        proxy.plan(Fault("duplicate"))
        with pytest.raises(ClientError, match="PreconditionFailed"):
            await trio.to_thread.run_sync(functools.partial(put, Key="new", IfNoneMatch="*"))
        listed = s3_server.client().list_objects_v2(Bucket=bucket)["Contents"]
    assert [entry["Key"] for entry in listed] == ["a b/ü", "new"]

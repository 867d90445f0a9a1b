"""The control socket: what is asked is answered, and what is wrong is named."""

from __future__ import annotations

import logging
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from tests.control.conftest import Daemon, Served, served, take
from unifs.control import address, server
from unifs.control.server import serve
from unifs.errors import (
    Corrupt,
    InvalidArgument,
    NoDaemon,
    NoSpace,
    NotAvailableOffline,
    StateInUse,
    StateUnusable,
    TryAgain,
    UnifsError,
    UnknownOperation,
)

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.control.client import Client
    from unifs.control.registry import Registry

ECHO = "/api/v1/sample/echo"
#: For what happens at once, on a machine with other work.
PATIENCE_S = 120.0


async def test_an_operation_answers_with_its_fields(sample: Served) -> None:
    answer = await sample.call("sample.echo", text="hi", number=3, color="blue", names=["a", "b"])
    expected = {"text": "hi", "number": 3, "flag": False, "color": "blue", "names": ["a", "b"]}
    assert answer == expected


async def test_the_socket_is_private_and_goes_with_the_server(
    tmp_path: Path, registry: Registry
) -> None:
    link = tmp_path / "state" / "control.sock"
    link.parent.mkdir()
    umask = os.umask(0)
    try:
        async with served(tmp_path, registry) as running:
            assert stat.S_IMODE(running.path.stat().st_mode) == 0o600
            assert stat.S_IMODE(running.path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(umask)
    assert not running.path.exists()
    with pytest.raises(NoDaemon):
        await running.call("sample.echo", text="hi")


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'"text"', "has to be a JSON object"),
        (b"[]", "has to be a JSON object"),
        (b'{"text": "\\ud800"}', "not JSON"),
        (b"[" * 4000, "not JSON"),
        (b"{}", "missing required field"),
        (b'{"text": 1}', "text: expected text, got a whole number"),
        (b'{"text": null}', "text: expected text, got nothing"),
        (b'{"text": ["a"]}', "text: expected text, got a list"),
        (b'{"text": "a", "number": "1"}', "number: expected a whole number, got text"),
        (b'{"text": "a", "number": 1.5}', "number: expected a whole number"),
        (b'{"text": "a", "number": -1}', "number: expected a whole number >= 0"),
        (b'{"text": "a", "number": 9223372036854775808}', "number: a number has 64 bits at most"),
        (b'{"text": "a", "flag": 1}', "flag: expected true or false"),
        (b'{"text": "a", "color": "green"}', "color: invalid enum value 'green'"),
        (b'{"text": "a", "names": "b"}', "names: expected a list, got text"),
        (b'{"text": "a", "names": [1]}', "names[0]: expected text, got a whole number"),
        (b'{"text": "a", "txet": 1}', "no parameter 'txet'; did you mean text?"),
        (b'{"text": "a", "daemon": 1}', "no parameter 'daemon'"),
    ],
)
async def test_a_wrong_request_is_refused_in_a_sentence(
    sample: Served, body: bytes, sentence: str
) -> None:
    status, answer = await sample.post(ECHO, body)
    assert status == 400
    assert answer["status"] == "error"
    assert answer["error_code"] == "INVALID_ARGUMENT"
    assert sentence in answer["error"]
    assert set(answer) == {"status", "error", "error_code", "context", "hint"}
    await _still_answers(sample)


async def _still_answers(sample: Served) -> None:
    assert (await sample.call("sample.echo", text="still"))["text"] == "still"


async def test_a_body_that_is_too_large_is_refused_before_it_is_read(sample: Served) -> None:
    head = b"POST " + ECHO.encode() + b" HTTP/1.1\r\nhost: x\r\ncontent-length: 9999999999\r\n\r\n"
    status, answer = await sample.raw(head)
    assert (status, answer["error_code"]) == (413, "TOO_LARGE")
    chunked = (
        b"POST " + ECHO.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    status, answer = await sample.raw(chunked + b"1001\r\n" + b"x" * 4097 + b"\r\n0\r\n\r\n")
    assert (status, answer["error_code"]) == (413, "TOO_LARGE")
    assert answer["context"] == {"limit_bytes": 4096}
    await _still_answers(sample)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", ECHO, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", ECHO, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/api/v1/sample/eco", 404, "UNKNOWN_OPERATION"),
        ("POST", "/api/v1/", 404, "UNKNOWN_OPERATION"),
        ("POST", "/api/v1/../../etc/passwd", 404, "UNKNOWN_OPERATION"),
        ("GET", "/", 404, "UNKNOWN_OPERATION"),
        ("POST", ECHO + "?text=a", 400, "INVALID_ARGUMENT"),
    ],
)
async def test_a_wrong_place_or_method_is_named(
    sample: Served, method: str, path: str, status: int, code: str
) -> None:
    answered, answer = await sample.post(path, b"{}", method)
    assert (answered, answer["error_code"]) == (status, code)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"GET /" + b"a" * 70_000,
    ],
)
async def test_what_is_not_http_is_told_so(sample: Served, request_bytes: bytes) -> None:
    status, answer = await sample.raw(request_bytes)
    assert status in (400, 431)
    assert answer["error_code"] == "INVALID_ARGUMENT"
    await _still_answers(sample)


async def test_a_body_with_broken_chunks_is_refused(sample: Served) -> None:
    head = b"POST " + ECHO.encode() + b" HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
    status, answer = await sample.raw(head + b"zz\r\n")
    assert (status, answer["error_code"]) == (400, "INVALID_ARGUMENT")
    await _still_answers(sample)


async def test_a_bug_is_internal_and_its_traceback_is_in_the_log_only(
    sample: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        status, answer = await sample.post("/api/v1/sample/bug", b"{}")
    assert (status, answer["error_code"]) == (500, "INTERNAL")
    assert "secret detail" not in str(answer)
    assert "secret detail" in caplog.text
    await _still_answers(sample)


async def test_an_error_of_the_system_has_its_name(sample: Served) -> None:
    with pytest.raises(NoSpace):
        await sample.call("sample.disk")
    with pytest.raises(UnknownOperation, match=r"did you mean sample\.echo\?"):
        await sample.call("sample.eco")
    with pytest.raises(InvalidArgument, match="takes no parameters"):
        await sample.call("sample.disk", a=1)


async def test_events_come_one_a_line_and_end_with_their_status(sample: Served) -> None:
    assert await sample.events("sample.lines", count=3) == [{"number": n} for n in range(3)]
    assert await sample.events("sample.lines", count=0) == []
    with pytest.raises(NotAvailableOffline, match="elsewhere"):
        await sample.events("sample.lines", count=2, fails=True)
    events = sample.client.events("sample.lines", {"count": 2, "fails": True})
    assert await sample.run(lambda: take(events, 2)) == [{"number": 0}, {"number": 1}]
    await sample.run(events.close)


async def test_an_operation_ends_when_its_caller_goes_away(sample: Served) -> None:
    events = sample.client.events("sample.forever", {})
    assert len(await sample.run(lambda: take(events, 2))) == 2
    await sample.run(events.close)
    with trio.fail_after(PATIENCE_S):
        await sample.daemon.ended.wait()


@pytest.mark.parametrize("operation", ["hang", "named"])
@pytest.mark.parametrize("framing", ["content-length: 0\r\n", ""])
async def test_a_caller_that_leaves_without_reading_cancels_what_it_asked_for(
    sample: Served, operation: str, framing: str
) -> None:
    """Also of an operation that does not look at what is sent: it was told a path instead."""
    stream = await trio.open_unix_socket(str(sample.path))
    head = f"POST /api/v1/sample/{operation} HTTP/1.1\r\nhost: x\r\n{framing}\r\n"
    await stream.send_all(head.encode())
    with trio.fail_after(PATIENCE_S):
        await sample.daemon.began.wait()
        await stream.aclose()
        await sample.daemon.ended.wait()


async def test_bytes_go_up_without_a_limit_and_down_with_their_size(sample: Served) -> None:
    def up() -> dict[str, Any]:
        chunks = (bytes(100_000) for _ in range(100))
        with sample.client.upload("sample.send", {"names": ["a", "b"]}, chunks) as reply:
            return reply.table()

    def down() -> tuple[int | None, int]:
        with sample.client.download("sample.fetch", {"size": 1_000_000}) as reply:
            return reply.size_bytes, sum(map(len, reply.chunks()))

    assert await sample.run(up) == {"bytes": 10_000_000}
    assert await sample.run(down) == (1_000_000, 1_000_000)


async def test_an_upload_that_is_refused_early_hears_why(sample: Served) -> None:
    def up() -> None:
        chunks = (bytes(65536) for _ in range(2000))
        with sample.client.upload("sample.send", {"limit": 100_000}, chunks) as reply:
            reply.table()

    with pytest.raises(Corrupt, match="not what it should be"):
        await sample.run(up)
    await _still_answers(sample)


async def test_a_query_is_checked_like_a_body(sample: Served) -> None:
    for query, sentence in [
        ("limit=x", "limit: expected a whole number"),
        ("limit=1&limit=2", "limit is given twice"),
        ("lmiit=1", "did you mean limit?"),
    ]:
        status, answer = await sample.post(f"/api/v1/sample/send?{query}", b"abc")
        assert (status, sentence in answer["error"]) == (400, True), answer


async def test_bytes_that_break_off_say_why(sample: Served) -> None:
    received: list[bytes] = []

    def down() -> None:
        with sample.client.download("sample.fetch", {"size": 100_000, "fails": True}) as reply:
            received.extend(reply.chunks())

    with pytest.raises(NotAvailableOffline, match="elsewhere") as caught:
        await sample.run(down)
    assert caught.value.context == {"at": 100_000}
    received.clear()


async def test_many_requests_use_one_connection(sample: Served) -> None:
    request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
    async with await trio.open_unix_socket(str(sample.path)) as stream:
        for _ in range(3):
            await stream.send_all(request)
            assert b"200" in await stream.receive_some(4096)
        await stream.send_all(request * 2)
        answers = b""
        while answers.count(b"success") < 2:
            answers += await stream.receive_some(4096)


async def test_too_many_requests_are_told_so_and_idle_connections_make_room(
    sample: Served,
) -> None:
    path = str(sample.path)
    hang = b"POST /api/v1/sample/hang HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    idle = [await trio.open_unix_socket(path) for _ in range(8)]
    await _still_answers(sample)
    busy = [await trio.open_unix_socket(path) for _ in range(8)]
    for stream in busy:
        await stream.send_all(hang)
        await trio.testing.wait_all_tasks_blocked(0.02)
    with pytest.raises(TryAgain, match="too many"):
        await sample.call("sample.echo", text="x")
    for stream in busy:
        await stream.aclose()
    with trio.fail_after(PATIENCE_S):
        await sample.daemon.ended.wait()
    await trio.testing.wait_all_tasks_blocked(0.02)
    await _still_answers(sample)
    for stream in idle:
        await stream.aclose()


async def test_whoever_still_talks_at_the_end_hears_why_it_ends(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody here stops reading: it is never waited out.
    monkeypatch.setattr(server, "FAREWELL_S", PATIENCE_S)
    failures: list[UnifsError] = []
    has_begun = threading.Event()

    def follow(client: Client, name: str) -> None:
        try:
            if name == "sample.hang":
                client.call(name, {})
            else:
                for _ in client.events(name, {}):
                    has_begun.set()
        except UnifsError as error:
            failures.append(error)

    threads = []
    async with served(tmp_path, registry) as running:
        for name in ("sample.forever", "sample.hang"):
            threads.append(threading.Thread(target=follow, args=(running.client, name)))
            threads[-1].start()
        await trio.to_thread.run_sync(has_begun.wait)
        with trio.fail_after(PATIENCE_S):
            await running.daemon.began.wait()
    for thread in threads:
        await trio.to_thread.run_sync(thread.join)
    assert [str(error) for error in failures] == ["unifs is stopping"] * 2
    assert {type(error) for error in failures} == {TryAgain}


async def test_ending_waits_for_nobody_who_has_stopped_reading(
    tmp_path: Path, registry: Registry
) -> None:
    # "Less than a second" of the server's docstring: what it waits for, one after the other.
    assert server.GRACE_S + 2 * server.FAREWELL_S < 1.0
    body = b'{"size": 1000000000}'
    head = b"POST /api/v1/sample/fetch HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
    with trio.fail_after(PATIENCE_S):
        async with served(tmp_path, registry) as running:
            stalled = await trio.open_unix_socket(str(running.path))
            await stalled.send_all(head % len(body) + body)
            assert await stalled.receive_some(1)
            idle = await trio.open_unix_socket(str(running.path))
    await stalled.aclose()
    await idle.aclose()


async def test_a_socket_left_by_a_dead_daemon_is_replaced_and_a_live_one_is_not(
    tmp_path: Path, registry: Registry
) -> None:
    async with served(tmp_path, registry) as running:
        with pytest.raises(StateInUse):
            async with served(tmp_path, registry):
                raise AssertionError
        await _still_answers(running)
    dead = trio.socket.socket(trio.socket.AF_UNIX)
    await dead.bind(str(running.path))
    dead.close()
    async with served(tmp_path, registry) as running:
        await _still_answers(running)
    running.path.write_text("a file of somebody else")
    with pytest.raises(StateUnusable, match="is in the way"):
        async with served(tmp_path, registry):
            raise AssertionError
    assert running.path.read_text() == "a file of somebody else"


async def test_a_link_left_by_a_dead_daemon_is_taken_over(
    tmp_path: Path, registry: Registry
) -> None:
    path, link = tmp_path / "runtime" / "control.sock", tmp_path / "control.sock"
    link.symlink_to(path)
    async with serve(registry, Daemon(tmp_path), path, link):
        assert link.readlink() == path
        # Another daemon's socket is not found through it.
        with pytest.raises(StateInUse, match="already answers"):
            address.link(link, tmp_path / "other.sock")


async def test_a_path_longer_than_an_address_works(tmp_path: Path, registry: Registry) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    async with served(deep, registry) as running:
        assert len(str(running.path)) > 200
        await _still_answers(running)
    assert not running.path.exists()


async def test_names_that_are_not_utf8_go_both_ways(sample: Served) -> None:
    name = os.fsdecode(b"caf\xe9 50%\n")
    answer = await sample.call("sample.echo", text=name, names=[name, "plain"])
    assert (answer["text"], answer["names"]) == (name, [name, "plain"])
    body = b'{"text": "caf%E9", "name_encoding": "percent"}'
    _, raw = await sample.post(ECHO, body)
    assert (raw["text"], raw["name_encoding"]) == ("caf%E9", "percent")


async def test_what_was_asked_is_counted(sample: Served) -> None:
    await sample.call("sample.echo", text="a")
    with pytest.raises(NoSpace):
        await sample.call("sample.disk")

    def metrics() -> str:
        with sample.client.get("/metrics") as reply:
            return b"".join(reply.chunks()).decode()

    text = await sample.run(metrics)
    assert 'unifs_control_errors_total{error_code="NO_SPACE",operation="sample.disk"} 1' in text
    assert 'le="+Inf",operation="sample.echo"} 1' in text

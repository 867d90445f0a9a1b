"""Every handler of the driver: what it decodes, what it answers, and that nothing escapes it."""

from __future__ import annotations

import errno
import gc
import logging
from types import SimpleNamespace

import pyfuse3
import pytest
import trio
import trio.testing

from tests.driver.faultfs import KINDS
from tests.driver.handlers import ARGUMENTS, CALLER, Driver
from unifs.driver.access import VERBS
from unifs.driver.operations import REFUSED_BUCKET
from unifs.errors import Corrupt, NotFound
from unifs.telemetry import (
    REQUEST_BUGS,
    REQUEST_DURATION,
    REQUEST_ERRORS,
)
from unifs.types import SetAttributes, Space
from unifs.waiting import WouldBlock

EXPECTED_ERRNO = {
    "value": errno.EIO,
    "key": errno.EIO,
    "assertion": errno.EIO,
    "recursion": errno.EIO,
    "memory": errno.ENOMEM,
    "type": errno.EIO,
    "base": errno.EIO,
    "corrupt": errno.EIO,
    "os": errno.EIO,
    "oswithout": errno.EIO,
    "group": errno.EIO,
    "groups": errno.EIO,
}
BUGS = {"value", "key", "assertion", "recursion", "type", "base", "oswithout", "groups"}


def test_each_handler_of_pyfuse3_has_arguments_here() -> None:
    assert set(ARGUMENTS) == set(VERBS)
    handlers = {
        name
        for name, member in vars(pyfuse3.Operations).items()
        if callable(member) and not name.startswith("_")
    }
    without = {"init", "stacktrace", "forget", "access", "poll"}
    assert handlers - without == set(VERBS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
async def test_whatever_a_handler_raises_becomes_an_errno(
    verb: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "unifs.driver.operations")
    driver = Driver(KINDS[kind])
    assert await driver.errno_of(verb) == EXPECTED_ERRNO[kind]
    name = errno.errorcode[EXPECTED_ERRNO[kind]]
    assert driver.metrics.counter(REQUEST_ERRORS, verb, name).value == 1
    assert driver.metrics.counter(REQUEST_BUGS, verb).value == (kind in BUGS)
    assert sum(driver.metrics.histogram(REQUEST_DURATION, verb).counts) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("verb", VERBS)
async def test_whatever_comes_out_of_waiting_becomes_an_errno(
    verb: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "unifs.driver.operations")

    async def fail() -> object:
        await trio.lowlevel.checkpoint()
        raise KINDS[kind]

    driver = Driver(WouldBlock(fail, "remote"))
    assert await driver.errno_of(verb) == EXPECTED_ERRNO[kind]
    assert driver.waits.waiting_by_mount() == {}


@pytest.mark.parametrize("verb", VERBS)
async def test_cancellation_passes_through_every_handler(verb: str) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"))
    with trio.CancelScope() as scope:
        scope.cancel()
        await driver.request(verb)
    assert scope.cancelled_caught
    assert driver.waits.waiting_by_mount() == {}


async def test_a_bug_is_logged_with_its_traceback_but_not_without_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    driver = Driver(ValueError("what went wrong"))
    for _ in range(100):
        await driver.errno_of("read")
    assert driver.metrics.counter(REQUEST_BUGS, "read").value == 100
    assert [record.args[1] for record in caplog.records] == [1, 2, 4, 8, 16, 32, 64]
    assert "what went wrong" in caplog.text
    assert "Traceback" in caplog.text


async def test_failures_leave_nothing_for_the_collector() -> None:
    driver = Driver(NotFound())

    async def fail() -> object:
        await trio.lowlevel.checkpoint()
        raise Corrupt

    async def fail_often() -> None:
        for _ in range(50):
            try:
                await driver.request("lookup")
            except pyfuse3.FUSEError:
                pass

    await fail_often()
    driver.served.answer = WouldBlock(fail, "remote")
    await fail_often()
    gc.collect()
    gc.disable()
    try:
        driver.served.answer = NotFound()
        await fail_often()
        assert gc.collect() < 50
    finally:
        gc.enable()


# --- what is decoded and encoded ----------------------------------------------------------------


async def test_setattr_decodes_what_changes_and_nothing_else() -> None:
    driver = Driver()
    await driver.request("setattr")
    changes = SetAttributes(mode=0o4755, gid=4, size_bytes=5, mtime_ns=7_000_000_001)
    assert driver.served.calls == [("setattr", (2, changes, None, CALLER))]


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in {"setattr", "readdir"}])
async def test_the_vfs_gets_the_arguments_that_it_wants(verb: str) -> None:
    answers = {
        "statfs": Space(0, 0, 0, 0, 0),
        "open": SimpleNamespace(fh=1, keep_cache=True, direct_io=False),
        "create": (SimpleNamespace(fh=1, keep_cache=True, direct_io=False), None),
    }
    driver = Driver(answers.get(verb))
    await driver.request(verb)
    without_caller = {
        "getattr",
        "readlink",
        "statfs",
        "getxattr",
        "setxattr",
        "listxattr",
        "removexattr",
    }
    args = ARGUMENTS[verb][:-1] if verb in without_caller else ARGUMENTS[verb]
    assert driver.served.calls == [(verb, args)]


@pytest.mark.parametrize("keep_cache", [True, False])
@pytest.mark.parametrize("direct_io", [True, False])
async def test_open_and_create_tell_the_kernel_how_to_cache(
    keep_cache: bool, direct_io: bool
) -> None:
    file = SimpleNamespace(fh=1 << 40, keep_cache=keep_cache, direct_io=direct_io)
    attributes = pyfuse3.EntryAttributes()
    opened = await Driver(file).request("open")
    created, entry = await Driver((file, attributes)).request("create")
    for info in (opened, created):
        assert (info.fh, info.keep_cache, info.direct_io) == (1 << 40, keep_cache, direct_io)
    assert entry is attributes


async def test_an_answer_that_waiting_brings_is_encoded_like_any_other() -> None:
    async def bring() -> object:
        await trio.lowlevel.checkpoint()
        return SimpleNamespace(fh=5, keep_cache=True, direct_io=False)

    info = await Driver(WouldBlock(bring, "remote")).request("open")
    assert isinstance(info, pyfuse3.FileInfo)
    assert info.fh == 5


async def test_attributes_and_bytes_are_answered_without_a_copy() -> None:
    attributes = pyfuse3.EntryAttributes()
    assert await Driver(attributes).request("lookup") is attributes
    view = memoryview(b"bytes")
    assert await Driver(view).request("read") is view


async def test_statfs_counts_in_blocks() -> None:
    space = Space(
        total_bytes=4096 * 100,
        free_bytes=4096 * 50,
        available_bytes=4096 * 40,
        files=9,
        files_free=8,
        block_bytes=4096,
    )
    data = await Driver(space).request("statfs")
    assert (data.f_bsize, data.f_frsize) == (4096, 4096)
    assert (data.f_blocks, data.f_bfree, data.f_bavail) == (100, 50, 40)
    assert (data.f_files, data.f_ffree, data.f_favail, data.f_namemax) == (9, 8, 8, 255)


@pytest.mark.parametrize("timeout_s", [0, -1, None, "long"])
async def test_absence_that_is_not_proven_is_not_cached(timeout_s: object) -> None:
    driver = Driver(NotFound("gone", negative_timeout_s=timeout_s))
    assert await driver.errno_of("lookup") == errno.ENOENT


async def test_proven_absence_is_an_entry_without_an_inode() -> None:
    driver = Driver(NotFound("gone", negative_timeout_s=12.5))
    entry = await driver.request("lookup")
    assert (entry.st_ino, entry.entry_timeout) == (0, 12.5)
    assert await driver.errno_of("unlink") == errno.ENOENT


@pytest.mark.parametrize("name", [b"security.capability", b"system.posix_acl_access"])
async def test_foreign_xattr_namespaces_never_reach_the_vfs(name: bytes) -> None:
    driver = Driver(b"value")
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await driver.operations.getxattr(2, name, CALLER)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert driver.served.calls == []
    assert driver.metrics.histogram(REQUEST_DURATION, "getxattr").counts[REFUSED_BUCKET] == 1


async def test_forget_is_passed_on_and_never_fails(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver()
    await driver.operations.forget([(2, 1), (3, 4)])
    assert driver.served.calls == [("forget", ([(2, 1), (3, 4)],))]
    driver.served.answer = ValueError("a bug")
    await driver.operations.forget([(2, 1)])
    assert driver.metrics.counter(REQUEST_BUGS, "forget").value == 1
    assert "a bug" in caplog.text


# --- the access log -----------------------------------------------------------------------------


@pytest.mark.parametrize("is_blocked", [False, True])
async def test_a_read_log_gets_one_line_per_request(is_blocked: bool) -> None:
    async def wait() -> object:
        await trio.lowlevel.checkpoint()
        return 4

    driver = Driver(WouldBlock(wait, "remote") if is_blocked else 4)
    with driver.access_log.reading() as reader:
        await driver.request("write")
        line = await anext(reader)
    assert (line.operation, line.ino, line.offset, line.size) == ("write", 103, 10, 4)
    assert (line.errno, line.pid) == (0, 0)
    assert line.elapsed_ns > 0


@pytest.mark.parametrize("verb", VERBS)
async def test_every_request_has_a_line_even_when_it_fails(verb: str) -> None:
    driver = Driver(NotFound())
    with driver.access_log.reading() as reader:
        await driver.errno_of(verb)
        line = await anext(reader)
    assert (line.operation, line.errno) == (verb, errno.ENOENT)
    if any(argument is CALLER for argument in ARGUMENTS[verb]):
        assert (line.pid, line.uid) == (9, 7)
    if b"n" in ARGUMENTS[verb]:
        assert line.name == b"n"


async def test_nobody_reading_costs_no_line() -> None:
    driver = Driver(b"data")
    await driver.request("read")
    with driver.access_log.reading() as reader, trio.move_on_after(0):
        await anext(reader)
        pytest.fail("a line from before anybody read")
    assert sum(driver.metrics.histogram(REQUEST_DURATION, "read").counts) == 1

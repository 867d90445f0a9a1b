"""Requests that wait: deadlines, places, and how they all end."""

from __future__ import annotations

import errno
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from tests.driver.handlers import Driver
from unifs.driver.latereads import HANDLES_MAX, LateReads
from unifs.errors import DeadlineExceeded
from unifs.waiting import RETRY, WouldBlock


async def test_a_request_is_asked_again_when_what_it_waited_for_has_happened() -> None:
    driver = Driver()
    answers: list[Any] = [b"done"]

    async def wait() -> object:
        await trio.lowlevel.checkpoint()
        driver.served.answer = answers.pop()
        return RETRY

    driver.served.answer = WouldBlock(wait, "remote")
    assert await driver.request("read") == b"done"
    assert [verb for verb, _ in driver.served.calls] == ["read", "read"]


@pytest.mark.parametrize(
    ("verb", "deadline_s"), [("lookup", 5.0), ("read", 30.0), ("flush", 60.0), ("fsync", 300.0)]
)
async def test_waiting_ends_at_the_deadline(
    verb: str, deadline_s: float, autojump_clock: trio.abc.Clock
) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"))
    started = trio.current_time()
    assert await driver.errno_of(verb) == errno.ETIMEDOUT
    assert trio.current_time() - started == pytest.approx(deadline_s)
    assert driver.waits.statistics()["timed_out"] == 1
    assert driver.waits.waiting_by_mount() == {}


async def test_a_read_that_was_late_is_refused_once_and_then_waits_again(
    autojump_clock: trio.abc.Clock,
) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"), read_s=10)
    started = trio.current_time()
    passed = []
    for _ in range(4):
        assert await driver.errno_of("read") == errno.ETIMEDOUT
        passed.append(trio.current_time() - started)
    assert passed == pytest.approx([10, 10, 20, 20])
    assert driver.waits.statistics()["timed_out"] == 2


@pytest.mark.parametrize(
    ("other", "after_s", "is_refused"),
    [
        ((3, 10, 20), 0.0, True),
        ((3, 29, 4096), 0.0, True),
        ((3, 30, 20), 0.0, False),
        ((3, 9, 20), 0.0, False),
        ((4, 10, 20), 0.0, False),
        ((3, 10, 20), 1.0, False),
    ],
)
async def test_a_read_of_something_else_or_later_has_its_own_deadline(
    autojump_clock: trio.abc.Clock, other: tuple[int, int, int], after_s: float, is_refused: bool
) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"), read_s=10)
    assert await driver.errno_of("read") == errno.ETIMEDOUT
    await trio.sleep(after_s)
    started = trio.current_time()
    with pytest.raises(pyfuse3.FUSEError):
        await driver.operations.read(*other)
    assert (trio.current_time() == started) is is_refused


async def test_a_late_read_that_need_not_wait_any_more_is_answered(
    autojump_clock: trio.abc.Clock,
) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"))
    assert await driver.errno_of("read") == errno.ETIMEDOUT
    driver.served.answer = b"here"
    assert await driver.request("read") == b"here"


async def test_only_so_many_late_reads_are_remembered(autojump_clock: trio.abc.Clock) -> None:
    late = LateReads()
    for fh in range(HANDLES_MAX + 1):
        late.note(fh, 0, 10)
    late.refuse_second(0, 0, 10)
    with pytest.raises(DeadlineExceeded, match="just now"):
        late.refuse_second(1, 0, 10)
    assert len(late._late) == HANDLES_MAX - 1


async def test_the_deadline_holds_over_every_wait_of_one_request(
    autojump_clock: trio.abc.Clock,
) -> None:
    async def wait() -> object:
        await trio.sleep(3)
        return RETRY

    driver = Driver(WouldBlock(wait, "remote"), lookup_s=10)
    started = trio.current_time()
    assert await driver.errno_of("lookup") == errno.ETIMEDOUT
    assert trio.current_time() - started == pytest.approx(10)


async def test_a_request_tells_the_loop_before_it_suspends() -> None:
    told: list[str] = []

    async def wait() -> object:
        told.append("waits")
        await trio.lowlevel.checkpoint()
        return b""

    driver = Driver(WouldBlock(wait, "remote"))
    driver.waits.about_to_suspend = lambda: told.append("about to")
    await driver.request("read")
    assert told == ["about to", "waits"]


async def test_a_frozen_mount_takes_its_own_places_only(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "frozen"), per_mount_max=3)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(driver.request, "read")
        await trio.testing.wait_all_tasks_blocked()
        assert driver.waits.waiting_by_mount() == {"frozen": 3}
        for _ in range(2):
            assert await driver.errno_of("read") == errno.ETIMEDOUT
        driver.served.answer = WouldBlock(_answered, "healthy")
        assert await driver.request("read") == b"answered"
        driver.served.answer = WouldBlock(_answered)
        assert await driver.request("read") == b"answered"
        nursery.cancel_scope.cancel()
    assert driver.waits.waiting_by_mount() == {}
    assert len([r for r in caplog.records if "does not answer" in r.getMessage()]) == 1
    assert len([r for r in caplog.records if "answers again" in r.getMessage()]) == 1


async def test_this_machines_disk_has_no_cap() -> None:
    driver = Driver(WouldBlock(_answered), per_mount_max=1)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(driver.request, "read")
    assert driver.waits.statistics()["waiting_highest"] == 20


async def _answered() -> object:
    await trio.lowlevel.checkpoint()
    return b"answered"


async def test_the_end_of_the_session_ends_every_wait() -> None:
    driver = Driver(WouldBlock(trio.sleep_forever, "remote"))
    numbers: list[int] = []

    async def wait() -> None:
        numbers.append(await driver.errno_of("read"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        driver.waits.end_all()
    await wait()
    assert numbers == [errno.ENOTCONN] * 3


async def test_a_backend_that_says_timed_out_is_not_taken_for_the_deadline() -> None:
    driver = Driver(DeadlineExceeded())
    assert await driver.errno_of("read") == errno.ETIMEDOUT
    assert driver.waits.statistics()["timed_out"] == 0

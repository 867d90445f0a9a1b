"""The request loop's parts: when it suspends, when it spins, when it refuses to serve."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pyfuse3
import pytest
import trio
import trio.testing

from unifs.driver import loop
from unifs.driver.loop import BURST, SPINS, FastLoop
from unifs.driver.waits import Waits
from unifs.telemetry import Metrics
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def waits() -> Waits:
    return Waits(Metrics())


@pytest.fixture
def fast(waits: Waits) -> FastLoop:
    return FastLoop(waits)


@pytest.fixture
def pipe() -> Iterator[SimpleNamespace]:
    reading, writing = os.pipe()
    ends = SimpleNamespace(reading=reading, writing=writing)
    yield ends
    for end in vars(ends).values():
        if end is not None:
            os.close(end)


# --- waiting for a request ------------------------------------------------------------------------


async def test_a_queued_request_costs_no_checkpoint(fast: FastLoop, pipe: SimpleNamespace) -> None:
    os.write(pipe.writing, b"request")
    with trio.testing.assert_no_checkpoints():
        for _ in range(BURST):
            await fast.wait_readable(pipe.reading)


async def test_quick_requests_are_served_for_a_while_without_a_checkpoint(
    fast: FastLoop, pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = loop.BURST_NS
    monkeypatch.setattr(loop, "perf_counter_ns", lambda: now_ns)
    os.write(pipe.writing, b"request")
    for _ in range(BURST + 1):
        await fast.wait_readable(pipe.reading)
    with trio.testing.assert_no_checkpoints():
        for _ in range(10 * BURST - 1):
            await fast.wait_readable(pipe.reading)
            now_ns += loop.BURST_NS // (10 * BURST)
    now_ns += loop.BURST_NS // 10
    with trio.testing.assert_checkpoints():
        for _ in range(BURST + 1):
            await fast.wait_readable(pipe.reading)
    # Whoever starts a worker does not wait for that.
    fast.pause_soon()
    with trio.testing.assert_checkpoints():
        await fast.wait_readable(pipe.reading)


async def test_a_long_burst_lets_others_run_and_can_be_cancelled(
    fast: FastLoop, pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BURST_NS", 0)
    os.write(pipe.writing, b"request")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(10 * BURST):
            await fast.wait_readable(pipe.reading)
        assert 8 <= turns <= 12
        nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            for _ in range(2 * BURST):
                await fast.wait_readable(pipe.reading)
        assert scope.cancelled_caught


async def test_without_a_request_it_sleeps_until_one_comes(
    fast: FastLoop, pipe: SimpleNamespace
) -> None:
    has_come = False

    async def wait() -> None:
        nonlocal has_come
        await fast.wait_readable(pipe.reading)
        has_come = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not has_come
        os.write(pipe.writing, b"request")
    assert has_come
    assert fast.statistics()["sleeps"] == 1


async def test_spinning_stops_where_it_never_pays_and_is_tried_again(
    fast: FastLoop, pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    yields = 0

    def count() -> None:
        nonlocal yields
        yields += 1

    monkeypatch.setattr(loop, "sched_yield", count)

    async def sleep_once() -> int:
        """How often one wait without a request gives the CPU away."""
        nonlocal yields
        yields = 0
        with trio.move_on_after(0):
            await fast.wait_readable(pipe.reading)
        return yields

    assert await sleep_once() == SPINS
    spun = [await sleep_once() for _ in range(500)]
    assert spun[-1] in (0, SPINS)
    # A trial of some five spins comes every 64 waits.
    late = spun[300:]
    assert 2 <= late.count(SPINS) <= len(late) // 8


async def test_a_request_that_comes_while_spinning_is_taken(
    fast: FastLoop, pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "sched_yield", lambda: os.write(pipe.writing, b"request"))
    with trio.testing.assert_no_checkpoints():
        await fast.wait_readable(pipe.reading)
    assert fast.statistics()["sleeps"] == 0


# --- readers that take turns ----------------------------------------------------------------------


async def test_only_a_request_that_suspends_wakes_the_standby(fast: FastLoop) -> None:
    lock = fast.Lock()
    order: list[str] = []

    async def standby() -> None:
        async with lock:
            order.append("standby reads")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(standby)
            await trio.testing.wait_all_tasks_blocked()
            fast.about_to_suspend()
            await trio.testing.wait_all_tasks_blocked()
            # Somebody reads: there is nobody to replace.
            assert order == []
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        fast.about_to_suspend()
        await trio.testing.wait_all_tasks_blocked()
        assert order == ["standby reads"]


async def test_a_woken_standby_waits_on_when_another_was_quicker(fast: FastLoop) -> None:
    lock = fast.Lock()
    order: list[str] = []

    async def standby() -> None:
        async with lock:
            order.append("standby reads")

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(standby)
            await trio.testing.wait_all_tasks_blocked()
        fast.about_to_suspend()
        async with lock:
            await trio.testing.wait_all_tasks_blocked()
            assert order == []
        fast.about_to_suspend()
    assert order == ["standby reads"]


async def test_a_worker_that_ends_lets_the_standby_end(fast: FastLoop) -> None:
    lock = fast.Lock()
    ended: list[str] = []

    async def worker(name: str) -> None:
        async with lock:
            pass
        ended.append(name)

    async with fast.open_nursery() as workers:
        async with lock:
            workers.start_soon(worker, "a", name="a")
            workers.start_soon(worker, "b", name="b")
            await trio.testing.wait_all_tasks_blocked()
        fast.about_to_suspend()
    assert sorted(ended) == ["a", "b"]


async def test_a_dead_connection_ends_every_wait(
    fast: FastLoop, waits: Waits, pipe: SimpleNamespace
) -> None:
    # Writing into a pipe that nobody reads is an error, as reading a dead connection is.
    assert os.write(pipe.writing, b"") == 0
    with trio.move_on_after(0):
        await fast.wait_readable(pipe.writing)
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(OSError, match="unmounted"):
                await waits.finish(WouldBlock(trio.sleep_forever, "remote"), 60, bytes, ())

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        fast.worker_ended()
        assert waits.waiting_by_mount() == {"remote": 1}
        os.close(pipe.reading)
        pipe.reading = None
        fast.worker_ended()
    assert waits.waiting_by_mount() == {}


class Alone:
    """Between ``on_return`` and ``on_leave`` no other task may run."""

    def __init__(self, waits: Waits) -> None:
        self.is_alone = False
        self.returns = 0
        waits.on_leave, waits.on_return = self._left, self._returned

    def _left(self) -> None:
        self.is_alone = False

    def _returned(self) -> None:
        self.is_alone = True
        self.returns += 1

    async def watch(self) -> None:
        while True:
            assert not self.is_alone
            await trio.lowlevel.checkpoint()


async def test_the_loop_tells_before_any_other_task_may_run(
    fast: FastLoop, waits: Waits, pipe: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "BURST_NS", 0)
    alone = Alone(waits)
    lock = fast.Lock()

    async def serve(count: int) -> None:
        for _ in range(count):
            async with lock:
                await fast.wait_readable(pipe.reading)

    async def request() -> None:
        # Served by the standby; whoever reads then makes the first one wait for its turn.
        await waits.finish(WouldBlock(trio.lowlevel.checkpoint), 60, bytes, ())
        await serve(BURST)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(alone.watch)
        # Nothing is queued: it sleeps, and comes back with a request.
        async with fast.open_nursery() as workers:
            workers.start_soon(serve, 1)
            await trio.sleep(0.01)
            os.write(pipe.writing, b"request")
        assert alone.returns == 2
        # Bursts, and requests that suspend while others are served.
        async with fast.open_nursery() as workers:
            for _ in range(3):
                workers.start_soon(request)
            workers.start_soon(serve, 5 * BURST)
        assert alone.returns > 7
        assert not alone.is_alone
        nursery.cancel_scope.cancel()


def test_everything_else_of_trio_is_trios(fast: FastLoop) -> None:
    assert fast.sleep is trio.sleep
    assert fast.lowlevel.current_task is trio.lowlevel.current_task
    with pytest.raises(AttributeError):
        fast.nothing_of_that_name  # noqa: B018


# --- is pyfuse3 what it was? ----------------------------------------------------------------------


def test_this_pyfuse3_is_known() -> None:
    assert loop.incompatibility() == ""


@pytest.mark.parametrize("version", ["3.4.2", "3.6.0", "4.0", "unknown"])
def test_another_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "__version__", version)
    assert f"pyfuse3 {version} is not one of 3.5.x" in loop.incompatibility()


def test_missing_internals_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(pyfuse3, "_session_loop")
    assert loop.incompatibility().endswith("has no _session_loop")


def test_another_event_loop_is_left_alone(monkeypatch: pytest.MonkeyPatch, waits: Waits) -> None:
    other = SimpleNamespace()
    monkeypatch.setattr(pyfuse3, "trio", other)
    with loop.installed(True, waits) as is_fast:
        assert not is_fast
        assert pyfuse3.trio is other
    assert pyfuse3.trio is other


async def _as_expected() -> bool:
    async with pyfuse3.trio.Lock():
        await pyfuse3.trio.lowlevel.wait_readable(0)
    return True


async def _ends_otherwise() -> bool:
    async with pyfuse3.trio.Lock():
        await pyfuse3.trio.lowlevel.wait_readable(0)
    return False


async def _suspends() -> bool:
    async with pyfuse3.trio.Lock():
        await pyfuse3.trio.lowlevel.wait_readable(0)
        await trio.lowlevel.checkpoint()
    return True


async def _keeps_the_lock() -> bool:
    await pyfuse3.trio.Lock().__aenter__()
    return True


async def _needs_no_lock() -> bool:
    await pyfuse3.trio.lowlevel.wait_readable(0)
    return True


async def test_the_fast_loop_is_there_only_while_it_is_installed(
    monkeypatch: pytest.MonkeyPatch, waits: Waits
) -> None:
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", _as_expected)
    with loop.installed(True, waits) as is_fast:
        assert is_fast
        assert isinstance(pyfuse3.trio, FastLoop)
        assert waits.about_to_suspend == pyfuse3.trio.about_to_suspend
    assert pyfuse3.trio is trio


@pytest.mark.parametrize(
    ("wait", "reason"),
    [
        (_ends_otherwise, "ends otherwise"),
        (_suspends, "suspends elsewhere"),
        (_keeps_the_lock, "read lock is taken elsewhere"),
        (_needs_no_lock, "read lock is taken elsewhere"),
    ],
)
async def test_a_pyfuse3_that_waits_otherwise_gets_its_own_loop(
    wait: object,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    waits: Waits,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", wait)
    with loop.installed(True, waits) as is_fast:
        assert not is_fast
        assert pyfuse3.trio is trio
        waits.about_to_suspend()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()


async def test_switched_off_is_no_warning(waits: Waits, caplog: pytest.LogCaptureFixture) -> None:
    with loop.installed(False, waits) as is_fast:
        assert not is_fast
        assert pyfuse3.trio is trio
    assert caplog.records == []


async def test_a_refused_loop_leaves_a_lock_that_works(fast: FastLoop) -> None:
    lock = fast.Lock()
    lock.hands_over = True
    order: list[int] = []

    async def reader(number: int) -> None:
        async with lock:
            order.append(number)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(reader, number)
    assert sorted(order) == [0, 1, 2, 3, 4]

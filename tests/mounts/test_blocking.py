"""The bridge to blocking calls: bounded, and clear about what cancellation does."""

from __future__ import annotations

import threading

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from unifs.mounts.blocking import Blocking


async def test_a_cancelled_read_leaves_at_once_and_keeps_its_place() -> None:
    blocking = Blocking(1)
    gate = threading.Event()
    with trio.move_on_after(0.01) as scope:
        await blocking.read(gate.wait)
    assert scope.cancelled_caught
    assert blocking.statistics().threads == 1
    gate.set()
    assert await blocking.read(lambda: "next") == "next"


async def test_a_change_that_has_started_is_waited_for() -> None:
    blocking = Blocking(1)
    gate, started, done = threading.Event(), threading.Event(), []

    def change() -> None:
        started.set()
        gate.wait(5)
        done.append("changed")

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blocking.change, change)
            await trio.to_thread.run_sync(started.wait)
            scope.cancel()
            nursery.start_soon(_set, gate)
    assert done == ["changed"]


async def _set(gate: threading.Event) -> None:
    gate.set()


async def test_a_change_that_waits_for_a_thread_is_given_up_undone() -> None:
    blocking = Blocking(1)
    gate, done = threading.Event(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(blocking.change, gate.wait)
        await wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.01) as scope:
            await blocking.change(done.append, "changed")
        statistics = blocking.statistics()
        gate.set()
    assert scope.cancelled_caught
    assert done == []
    assert (statistics.threads, statistics.threads_max, statistics.waiting) == (1, 1, 0)


async def test_exceptions_pass_through() -> None:
    blocking = Blocking(2)
    with pytest.raises(ZeroDivisionError):
        await blocking.read(lambda: 1 // 0)
    with pytest.raises(KeyError):
        await blocking.change({}.__getitem__, "x")

"""Invalidations: told in order, never waited for, never lost without a word."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import pytest

from unifs.driver import notify
from unifs.driver.notify import Notifications

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE_S = 10.0


class FakeKernel:
    """Remembers what it was told; holds the thread while ``is_free`` is not set."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        self.is_free = threading.Event()
        self.is_free.set()
        self.was_asked = threading.Semaphore(0)
        self.error: Exception | None = None

    def invalidate_inode(self, inode: int, attr_only: bool = False, /) -> None:
        self._tell(("inode", inode, attr_only))

    def invalidate_entry(self, inode_p: int, name: bytes, /) -> None:
        self._tell(("entry", inode_p, name))

    def _tell(self, notice: tuple[object, ...]) -> None:
        self.was_asked.release()
        assert self.is_free.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        self.told.append(notice)

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.was_asked.acquire(timeout=PATIENCE_S)


@pytest.fixture
def kernel() -> FakeKernel:
    return FakeKernel()


@pytest.fixture
def notifications(kernel: FakeKernel) -> Iterator[Notifications]:
    made = Notifications(kernel)
    yield made
    kernel.is_free.set()
    assert made.close(lambda: None)


def test_tells_the_kernel_in_order(kernel: FakeKernel, notifications: Notifications) -> None:
    notifications.open()
    invalidator = notifications.for_mount("mfs")
    invalidator.inode(5)
    invalidator.inode(6, attributes_only=True)
    invalidator.entry(1, b"name")
    kernel.wait_for(3)
    assert notifications.close(lambda: None)
    assert kernel.told == [("inode", 5, False), ("inode", 6, True), ("entry", 1, b"name")]


def test_waits_until_there_is_a_session(kernel: FakeKernel, notifications: Notifications) -> None:
    notifications.for_mount("mfs").inode(5)
    assert not kernel.was_asked.acquire(timeout=0.05)
    notifications.open()
    kernel.wait_for(1)


def test_what_waits_already_is_told_once(kernel: FakeKernel, notifications: Notifications) -> None:
    invalidator = notifications.for_mount("mfs")
    for _ in range(1000):
        invalidator.inode(5)
        invalidator.inode(5, attributes_only=True)
        invalidator.entry(1, b"name")
    assert invalidator.statistics()["waiting"] == 2
    notifications.open()
    kernel.wait_for(2)
    assert notifications.close(lambda: None)
    assert kernel.told == [("inode", 5, False), ("entry", 1, b"name")]


def test_a_change_while_the_kernel_is_told_is_told_again(
    kernel: FakeKernel, notifications: Notifications
) -> None:
    notifications.open()
    kernel.is_free.clear()
    invalidator = notifications.for_mount("mfs")
    invalidator.inode(5)
    kernel.wait_for(1)
    invalidator.inode(5)
    kernel.is_free.set()
    kernel.wait_for(1)
    assert notifications.close(lambda: None)
    assert kernel.told == [("inode", 5, False)] * 2


def test_closing_waits_once_for_all_that_are_stuck(
    notifications: Notifications, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "JOIN_S", 0.2)
    kernel.is_free.clear()
    notifications.open()
    for number in range(10):
        notifications.for_mount(f"mount{number}").inode(1)
    kernel.wait_for(10)
    started = time.monotonic()
    assert notifications.close(kernel.is_free.set)
    assert 0.2 <= time.monotonic() - started < 10 * 0.2


def test_a_stuck_mount_delays_no_other(kernel: FakeKernel) -> None:
    stuck = FakeKernel()
    stuck.is_free.clear()
    gate = threading.Event()
    gate.set()
    slow = notify.KernelInvalidator("slow", stuck, gate)
    quick = notify.KernelInvalidator("quick", kernel, gate)
    slow.inode(1)
    stuck.wait_for(1)
    quick.inode(2)
    kernel.wait_for(1)
    assert stuck.told == []
    stuck.is_free.set()
    for each in (slow, quick):
        each.stop()
        assert each.join(PATIENCE_S)


def test_a_full_queue_drops_and_says_so_once(
    kernel: FakeKernel,
    notifications: Notifications,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(notify, "QUEUE_MAX", 10)
    invalidator = notifications.for_mount("mfs")
    for ino in range(15):
        invalidator.inode(ino)
    assert notifications.statistics()["mfs"]["dropped"] == 5
    assert invalidator.statistics()["waiting"] == 10
    assert len(caplog.records) == 1


def test_unknown_inodes_are_no_news(
    kernel: FakeKernel, notifications: Notifications, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    kernel.error = FileNotFoundError(2, "No such file or directory")
    notifications.open()
    notifications.for_mount("mfs").inode(5)
    notifications.for_mount("mfs").inode(6)
    kernel.wait_for(2)
    assert notifications.close(lambda: None)
    assert caplog.records == []


@pytest.mark.parametrize("error", [PermissionError(1, "Operation not permitted"), ValueError("x")])
def test_other_failures_are_logged_and_the_thread_goes_on(
    kernel: FakeKernel,
    notifications: Notifications,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    kernel.error = error
    notifications.open()
    notifications.for_mount("mfs").inode(5)
    kernel.wait_for(1)
    kernel.is_free.clear()
    notifications.for_mount("mfs").inode(6)
    kernel.wait_for(1)
    kernel.error = None
    kernel.is_free.set()
    assert notifications.close(lambda: None)
    assert kernel.told == [("inode", 6, False)]
    assert str(error) in caplog.text


def test_closing_aborts_the_connection_that_holds_a_thread(
    kernel: FakeKernel, notifications: Notifications, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "JOIN_S", 0.05)
    notifications.open()
    kernel.is_free.clear()
    notifications.for_mount("mfs").inode(5)
    kernel.wait_for(1)
    assert not notifications.close(lambda: None)

    def abort() -> None:
        kernel.is_free.set()
        monkeypatch.setattr(notify, "JOIN_S", PATIENCE_S)

    assert notifications.close(abort)


def test_a_removed_mount_ends_its_thread(kernel: FakeKernel, notifications: Notifications) -> None:
    notifications.open()
    invalidator = notifications.for_mount("s3")
    invalidator.inode(5)
    kernel.wait_for(1)
    notifications.remove("s3")
    assert invalidator.join(PATIENCE_S)
    invalidator.inode(6)
    assert notifications.statistics() == {}


def test_without_news_there_is_no_thread(notifications: Notifications) -> None:
    before = threading.active_count()
    notifications.open()
    notifications.for_mount("mfs")
    assert threading.active_count() == before

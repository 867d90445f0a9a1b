"""When a flush round begins: at once with the loop pausing for it, or when all have joined."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.vfs.harness import File, FileSystem
from unifs.errors import DiskFailed, JournalFailed
from unifs.journal import flush
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on how long this machine's disk takes."""
    monkeypatch.setattr(flush, "PAUSE_S", 30)
    monkeypatch.setattr(flush, "GATHER_S", 30)


async def _written(fs: FileSystem, name: str) -> File:
    file = await fs.open_file(name, CREATE)
    await file.write(0, name.encode())
    return file


async def test_a_lonely_fsync_is_answered_without_the_scheduler(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        flusher = fs.storage.flusher
        flusher.is_loop_idle = lambda: True
        fs.vfs.fsync(file.fh, False)
        assert (flusher.pauses, flusher.durable_seq) == (1, fs.storage.log.seq)
        await fs.kill(boot="another boot")
        assert await fs.read("a") == b"a"


async def test_without_a_driver_nothing_pauses(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        with pytest.raises(WouldBlock):
            fs.vfs.fsync(file.fh, False)
        await file.fsync()
        assert fs.storage.flusher.pauses == 0
        await file.close()


async def test_a_slow_disk_ends_the_pause_and_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        flusher = fs.storage.flusher
        flusher.is_loop_idle = lambda: True
        monkeypatch.setattr(flush, "PAUSE_S", 0.001)
        go_on, real = threading.Event(), os.fdatasync

        def slow(descriptor: int) -> None:
            assert go_on.wait(30)
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", slow)
        with pytest.raises(WouldBlock) as blocked:
            fs.vfs.fsync(file.fh, False)
        assert flusher.durable_seq < fs.storage.log.seq
        go_on.set()
        await blocked.value.wait()
        assert flusher.durable_seq == fs.storage.log.seq
        monkeypatch.setattr(flush, "PAUSE_S", 30)
        for _ in range(flush.NO_PAUSE_ROUNDS - 1):
            await file.fsync()
        assert flusher.pauses == 1
        await file.fsync()
        assert flusher.pauses == 2
        await file.close()


async def test_a_pause_that_kept_somebody_waiting_is_the_last_for_a_while(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        answers = [True, False]
        fs.storage.flusher.is_loop_idle = lambda: answers.pop(0) if answers else True
        fs.vfs.fsync(file.fh, False)
        with pytest.raises(WouldBlock):
            fs.vfs.fsync(file.fh, False)
        assert fs.storage.flusher.pauses == 1
        await file.close()


async def test_what_the_disk_refuses_during_a_pause_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        fs.storage.flusher.is_loop_idle = lambda: True

        def refuse(_descriptor: int) -> None:
            raise OSError(errno.EIO, "no")

        monkeypatch.setattr(os, "fdatasync", refuse)
        with pytest.raises(DiskFailed):
            fs.vfs.fsync(file.fh, False)
        monkeypatch.undo()
        for _ in range(2):
            with pytest.raises(JournalFailed):
                fs.vfs.fsync(file.fh, False)
        await fs.kill()


async def test_a_round_waits_until_everybody_was_heard(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        files = [await _written(fs, name) for name in ("a", "b", "c")]
        flusher = fs.storage.flusher
        flusher.is_loop_idle = lambda: False
        rounds = flusher.rounds
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(file.fsync)
                await wait_all_tasks_blocked()
            assert flusher.rounds == rounds
            flusher.loop_is_idle()
        assert flusher.rounds == rounds + 1
        assert flusher.durable_seq == fs.storage.log.seq
        flusher.is_loop_idle = None
        for file in files:
            await file.close()


async def test_a_round_waits_no_longer_than_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "GATHER_S", 0.001)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await _written(fs, "a")
        fs.storage.flusher.is_loop_idle = lambda: False
        with trio.fail_after(30):
            await file.fsync()
        fs.storage.flusher.is_loop_idle = None
        await file.close()


async def test_who_leaves_a_gathering_round_leaves_it_to_the_others(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        files = [await _written(fs, name) for name in ("a", "b")]
        flusher = fs.storage.flusher
        flusher.is_loop_idle = lambda: False
        first = trio.CancelScope()

        async def leaves() -> None:
            with first:
                await files[0].fsync()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(leaves)
                await wait_all_tasks_blocked()
                nursery.start_soon(files[1].fsync)
                await wait_all_tasks_blocked()
                first.cancel()
        assert first.cancelled_caught
        flusher.is_loop_idle = None
        for file in files:
            await file.close()


async def test_a_pause_does_not_take_the_place_of_a_gathering_round(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        files = [await _written(fs, name) for name in ("a", "b")]
        flusher = fs.storage.flusher
        flusher.is_loop_idle = lambda: False
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(files[0].fsync)
                await wait_all_tasks_blocked()
                flusher.is_loop_idle = lambda: True
                await files[1].fsync()
        assert flusher.pauses == 0
        flusher.is_loop_idle = None
        for file in files:
            await file.close()

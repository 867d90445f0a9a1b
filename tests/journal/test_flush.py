"""Flush rounds: shared, honest about whose bytes failed, safe to leave."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from tests.journal.powercut import refused_syncs
from tests.vfs.harness import FileSystem
from unifs.errors import DiskFailed
from unifs.journal.flush import WAL_AHEAD
from unifs.journal.proof import holds, prove

if TYPE_CHECKING:
    from pathlib import Path

CREATE = os.O_CREAT | os.O_RDWR
LARGE = bytes(range(256)) * 300


async def test_many_share_few_rounds(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        files = [await fs.open_file(f"f{index}", CREATE) for index in range(50)]
        for index, file in enumerate(files):
            await file.write(0, LARGE if index % 2 else b"small")
        before = fs.storage.flusher.rounds
        async with trio.open_nursery() as nursery:
            for file in files:
                nursery.start_soon(file.fsync)
        assert fs.storage.flusher.rounds - before <= 6
        assert fs.storage.flusher.sealed_seq == fs.storage.log.seq
        for file in files:
            await file.close()


async def test_32_writers_of_logs_share_their_flushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, not timed: a flush of the WAL serves several of those who append and sync."""
    writers, lines = 32, 12
    async with FileSystem(tmp_path, upkeep=False) as fs:
        wal = fs.storage.database.wal
        real = os.fdatasync
        synced: list[int] = []

        def sync(descriptor: int) -> None:
            if descriptor == wal:
                synced.append(descriptor)
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", sync)

        async def append(number: int) -> None:
            async with fs.open(f"log{number}", CREATE) as file:
                for index in range(lines):
                    await file.write(index * 100, b"%99d\n" % index)
                    await file.fsync()

        async with trio.open_nursery() as nursery:
            for number in range(writers):
                nursery.start_soon(append, number)
        fsyncs = writers * lines
        assert fs.storage.flusher.waited >= fsyncs
        assert len(synced) * 4 < fsyncs
        await fs.kill(boot="another")
        for number in range(writers):
            assert len(await fs.read(f"log{number}")) == lines * 100


async def test_an_error_reaches_exactly_its_waiters(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        files = [await fs.open_file(name, CREATE) for name in ("good", "bad", "good2")]
        for file in files:
            await file.write(0, LARGE)
            await file.flush()
        await fs.fsyncdir()
        fs.storage.contents.containers.has_new = False
        bad = fs.vfs.handle(files[1].fh).inode.overlay.descriptor  # type: ignore[attr-defined]
        outcomes: dict[int, BaseException | None] = {}

        async def fsync(index: int) -> None:
            try:
                await files[index].fsync()
                outcomes[index] = None
            except DiskFailed as error:
                outcomes[index] = error

        with refused_syncs(lambda descriptor: descriptor == bad):
            async with trio.open_nursery() as nursery:
                for index in (0, 1, 1, 2):
                    nursery.start_soon(fsync, index)
        assert [type(outcomes[index]) for index in range(3)] == [
            type(None), DiskFailed, type(None)
        ]  # fmt: skip
        assert fs.storage.database.failed is None
        # Never called durable again, though the disk now says nothing.
        with pytest.raises(DiskFailed):
            await files[1].fsync()
        for file in files:
            await file.close()


async def test_a_cancelled_fsync_keeps_its_descriptors_until_the_round_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("a", CREATE)
        await file.write(0, LARGE)
        container = fs.vfs.handle(file.fh).inode.overlay.container  # type: ignore[attr-defined]
        pinned = fs.storage.contents.containers._pinned
        entered = trio.Event()
        token = trio.lowlevel.current_trio_token()
        go_on = threading.Event()
        real = os.fdatasync

        def slow(descriptor: int) -> None:
            token.run_sync_soon(entered.set)
            assert go_on.wait(10)
            real(descriptor)

        monkeypatch.setattr(os, "fdatasync", slow)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.fsync)
            await entered.wait()
            nursery.cancel_scope.cancel()
        await file.close()
        assert container in pinned
        go_on.set()
        monkeypatch.undo()
        await fs.storage.flusher.flush()
        assert container not in pinned


def test_a_proof_covers_order_and_place() -> None:
    data = bytes(range(200))

    def read(start: int, end: int) -> bytes:
        return data[start:end]

    proof = prove([(10, 20), (5, 8)], read)
    assert holds(proof, read)
    assert holds(prove([], read), read)
    assert not holds(proof, lambda start, end: bytes(end - start))
    assert not holds(proof, lambda start, end: data[start : end - 1])


@pytest.mark.parametrize("is_full", [False, True])
async def test_the_wal_grows_ahead_of_one_fsync_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """Its zeros are no records; on a full disk it only takes longer."""
    real = os.pwrite
    extended: list[int] = []

    def write(descriptor: int, data: bytes, offset: int) -> int:
        if data is WAL_AHEAD:
            extended.append(offset)
            if is_full:
                raise OSError(errno.ENOSPC, "full")
        return real(descriptor, data, offset)

    monkeypatch.setattr("os.pwrite", write)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("log", CREATE)
        written = b""
        for index in range(300):
            line = b"%05d\n" % index
            await file.write(len(written), line)
            await file.fsync()
            written += line
        database = fs.storage.database
        size = os.fstat(database.wal).st_size
        if is_full:
            assert extended
            assert size < database.wal_bytes + 4096
        else:
            assert 2 <= len(extended) <= 20
            assert size >= database.wal_bytes + (64 << 10)
        await fs.kill()
        assert await fs.read("log") == written
        await fs.write("after", b"more", fsync=True)
        await fs.kill()
        assert (await fs.read("log"), await fs.read("after")) == (written, b"more")

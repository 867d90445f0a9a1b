"""What is not stored yet is bounded: who waits, who hears that there is no space, who does not."""

from __future__ import annotations

import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs import config
from unifs.daemon import Daemon
from unifs.errors import NoSpace
from unifs.types import PlainCaller, SetAttributes
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from trio.testing import MockClock

LIMIT = 1 << 20
SMALL = 60_000
ROOT = PlainCaller()


class Tree:
    """/mfs of a daemon without a kernel, with its sealer or without."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.vfs = daemon.vfs
        self.volume = daemon.trees.volumes[1]
        self.unsynced = self.volume.unsynced

    async def create(self, name: bytes, parent: int = 0) -> Any:
        where = parent or self.volume.root
        handle, _ = await complete(self.vfs.create, where, name, 0o644, os.O_RDWR, ROOT)
        return handle

    async def write(self, handle: Any, data: bytes, offset: int = 0) -> None:
        await complete(self.vfs.write, handle.fh, offset, data)

    async def close(self, handle: Any) -> None:
        await complete(self.vfs.flush, handle.fh)
        await complete(self.vfs.release, handle.fh)

    async def store(self, name: bytes, data: bytes) -> None:
        handle = await self.create(name)
        await self.write(handle, data)
        await self.close(handle)

    async def unlink(self, name: bytes) -> None:
        await complete(self.vfs.unlink, self.volume.root, name, ROOT)


@asynccontextmanager
async def tree(directory: Path, *, is_sealing: bool) -> AsyncIterator[Tree]:
    host = directory / "host"
    host.mkdir(exist_ok=True)
    settings = config.load(
        state=directory / "state",
        overrides={
            "journal": {"dirty_bytes_max": LIMIT},
            "mounts": {"local": {"directories": {"h": str(host)}}},
        },
        environment={},
    )
    daemon = Daemon(settings, "")
    try:
        async with daemon.storage.serve(), trio.open_nursery() as nursery:
            daemon.sealer.find_closed()
            if is_sealing:
                nursery.start_soon(daemon.sealer.run)
            yield Tree(daemon)
            nursery.cancel_scope.cancel()
    finally:
        daemon.close(is_clean=False)


async def test_where_nothing_moves_writers_hear_that_there_is_no_space(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """After their time, not before; deletes, cuts, attributes and other mounts never wait."""
    async with tree(tmp_path, is_sealing=False) as here:
        large = await here.create(b"large")
        await here.write(large, bytes(LIMIT))
        began = trio.current_time()
        with pytest.raises(NoSpace, match=r"journal\.dirty_bytes_max"):
            await here.write(large, b"one more", LIMIT)
        assert trio.current_time() - began == pytest.approx(20.0)
        other = await here.create(b"other")
        await complete(here.vfs.setattr, other.inode.ino, SetAttributes(mode=0o600), None, ROOT)
        local = here.daemon.table._hosts["h"][0]
        await here.write(await here.create(b"free", local.root_ino), bytes(LIMIT))
        assert trio.current_time() - began == pytest.approx(20.0)
        changes = SetAttributes(size_bytes=LIMIT // 2)
        await complete(here.vfs.setattr, large.inode.ino, changes, large.fh, ROOT)
        assert here.unsynced.size_bytes == LIMIT // 2
        await here.write(other, bytes(LIMIT // 2))
        await here.unlink(b"large")
        await here.unlink(b"other")
        assert here.unsynced.size_bytes == 0
        # What has no name is kept for nobody.
        await here.write(other, bytes(LIMIT))
        assert here.unsynced.size_bytes == 0
        assert trio.current_time() - began == pytest.approx(20.0)
        await here.close(large)
        await here.close(other)


async def test_writers_go_on_when_their_bytes_are_sealed(tmp_path: Path) -> None:
    """An open file is sealed under its writer; small files wait for a flush round."""
    async with tree(tmp_path, is_sealing=True) as here:
        large = await here.create(b"large")
        for number in range(16):
            await here.write(large, os.urandom(LIMIT // 2), number * LIMIT // 2)
            assert here.unsynced.size_bytes <= LIMIT
        await here.close(large)
        for number in range(100):
            await here.store(b"small-%d" % number, os.urandom(SMALL))
            assert here.unsynced.size_bytes <= LIMIT
        await here.daemon.journal.sync(None, "sealed", None)
        assert here.daemon.journal.unsynced_bytes() == {"mfs": 0, "ipfs": 0}


async def test_a_rewritten_range_counts_once(tmp_path: Path) -> None:
    """Of one file never more than its size is dirty; a file in a directory counts below it."""
    async with tree(tmp_path, is_sealing=False) as here:
        handle = await here.create(b"file")
        for _ in range(10):
            await here.write(handle, bytes(200_000))
        assert here.unsynced.size_bytes == 200_000
        status = await here.daemon.journal.status("/mfs/file")
        assert (status.open, status.unsynced_bytes) == (1, 200_000)
        await here.close(handle)
        assert here.unsynced.size_bytes == 200_000
        await here.daemon.sealer.seal(handle.inode)
        assert here.unsynced.size_bytes == 0


async def test_small_files_count_until_their_flush_round(tmp_path: Path) -> None:
    async with tree(tmp_path, is_sealing=False) as here:
        for number in range(3):
            await here.store(b"small-%d" % number, bytes(100))
        assert here.daemon.journal.unsynced_bytes()["mfs"] == 300
        await here.daemon.storage.flusher.flush()
        assert here.daemon.journal.unsynced_bytes()["mfs"] == 0


async def test_what_an_earlier_daemon_closed_counts_until_it_is_sealed(tmp_path: Path) -> None:
    async with tree(tmp_path, is_sealing=False) as here:
        await here.store(b"file", bytes(300_000))
    async with tree(tmp_path, is_sealing=False) as here:
        assert here.unsynced.size_bytes == 300_000
        (inode,) = here.daemon.writer.unsealed.values()
        await here.daemon.sealer.seal(inode)
        assert here.unsynced.size_bytes == 0

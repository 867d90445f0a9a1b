"""Clean stops, kills and restarts of a whole file system."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from tests.ipfs.embedded.stores import put_raw
from tests.vfs.harness import FileSystem
from tests.vfs.nodeworld import NodeSystem
from unifs.errors import DiskFailed, NoSpace, UnifsError
from unifs.state.database import Database
from unifs.vfs.storage import Storage

if TYPE_CHECKING:
    from pathlib import Path

    from unifs.ipfs.embedded.blocks import Blocks

LARGE = bytes(range(256)) * 1024


async def fill(fs: FileSystem) -> None:
    await fs.mkdir("d", 0o2750)
    await fs.mkdir("d/e")
    await fs.write("d/small", b"hello")
    await fs.write("d/large", LARGE)
    await fs.write("d/empty", b"")
    await fs.link("d/small", "d/e/second")
    await fs.symlink(b"../\xff nowhere", "d/symlink")
    await fs.mknod("d/fifo", 0o010600)
    await fs.setxattr("d/small", b"user.comment", b"kept")
    await fs.setattr("d/large", mode=0o600, uid=7, gid=8, mtime_ns=123456789)
    await fs.rename("d/e", "d/f")


async def test_a_clean_stop_keeps_everything(tmp_path: Path) -> None:
    async with FileSystem(tmp_path) as fs:
        await fill(fs)
        before = await fs.tree()
        await fs.remount()
        assert fs.receipt is None
        assert await fs.tree() == before
        assert len(before) == 9


async def test_a_kill_keeps_everything_acknowledged(tmp_path: Path) -> None:
    async with FileSystem(tmp_path) as fs:
        await fill(fs)
        before = await fs.tree()
        open_file = await fs.open_file("d/large", os.O_RDWR)
        await open_file.write(5, b"never closed")
        await fs.kill()
        assert fs.receipt is not None
        assert not fs.receipt.has_losses()
        assert await fs.tree() == before
        await fs.kill()
        assert await fs.tree() == before


async def test_a_kill_loses_what_nobody_closed(tmp_path: Path) -> None:
    async with FileSystem(tmp_path, upkeep=False) as fs:
        file = await fs.open_file("new", os.O_RDWR | os.O_CREAT)
        await file.write(0, b"x")
        await fs.kill()
        assert await fs.listdir() == []


async def test_the_time_of_a_directory_that_somebody_set_survives_a_kill(tmp_path: Path) -> None:
    """Older than the changes before it, committed or not; a change after it counts again."""
    async with FileSystem(tmp_path, upkeep=False) as fs:
        for name in ("done", "pending", "changed"):
            await fs.mkdir(name)
        await fs.write("done/a", b"")
        file = await fs.open_file("pending/a", os.O_WRONLY | os.O_CREAT)
        for name in ("done", "pending", "changed"):
            await fs.setattr(name, mtime_ns=5)
        await file.close()
        await fs.write("changed/a", b"")
        await fs.kill()
        assert (await fs.stat("done")).mtime_ns == 5
        assert (await fs.stat("pending")).mtime_ns == 5
        assert (await fs.stat("changed")).mtime_ns > 5


async def test_a_stop_closes_the_block_index_beside_the_tree(tmp_path: Path) -> None:
    """Each waits for the disk, which may take seconds where it is busy."""
    is_closed = threading.Event()
    async with FileSystem(tmp_path) as fs:
        await fs.write("a", b"x")
        storage = fs.storage
        close_index, close_tree = storage.blocks.close, storage.database.close

        def index() -> None:
            assert is_closed.wait(10)
            close_index()

        def tree() -> None:
            close_tree()
            is_closed.set()

        storage.blocks.close = index  # type: ignore[method-assign]
        storage.database.close = tree  # type: ignore[method-assign]
        await fs.remount()
        assert await fs.read("a") == b"x"


async def test_a_block_index_without_room_ends_no_stop(tmp_path: Path) -> None:
    async with NodeSystem(tmp_path / "state") as system:
        blocks = system.storage.blocks
        (pages,) = blocks.index._writer.execute("pragma page_count").fetchone()
        blocks.index._writer.execute(f"pragma max_page_count={pages}")
        cids = [put_raw(blocks, b"%d" % number) for number in range(500)]
        assert blocks.index.pending == 500
        await system.stop()
        await system.start()
        # A clean end it was.
        assert system.receipt is None
        system.storage.blocks.catch_up()
        assert all(map(system.storage.blocks.has, cids))


async def test_a_tree_without_room_at_a_start_takes_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = [NoSpace("full")]

    def opened(path: Path) -> Database:
        if failures:
            raise failures.pop()
        return Database(path)

    monkeypatch.setattr("unifs.vfs.storage.Database", opened)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        assert not fs.storage.state.has_reserve
        await fs.write("a", b"x")


@pytest.mark.parametrize("kind", [NoSpace, DiskFailed])
async def test_a_block_index_without_room_at_a_start_takes_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[UnifsError]
) -> None:
    open_blocks, failures = Storage._open_blocks, [kind("full")]

    def opened(storage: Storage) -> Blocks:
        if failures:
            raise failures.pop()
        return open_blocks(storage)

    monkeypatch.setattr(Storage, "_open_blocks", opened)
    async with FileSystem(tmp_path, upkeep=False) as fs:
        assert not fs.storage.state.has_reserve
        await fs.write("a", b"x")

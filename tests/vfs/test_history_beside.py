"""The past beside who still writes to it or reads it, and beside sealing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.historyworld import HistorySystem
from tests.vfs.invariants import check
from tests.vfs.test_keeper import move_all
from unifs.vfs.epochs import next_epoch
from unifs.vfs.rollback import Rollback
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.ipfs.embedded.segments import Place

LARGE = bytes(range(256)) * 1_000
PATCHED = LARGE[:10] + b"patch" + LARGE[15:]


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[HistorySystem]:
    async with HistorySystem(tmp_path) as system:
        yield system
        check(system)


async def test_who_writes_to_a_removed_file_changes_nothing_of_its_past(fs: HistorySystem) -> None:
    file = await fs.open_file("file", os.O_RDWR | os.O_CREAT)
    await file.write(0, LARGE)
    await file.flush()
    epoch = next_epoch(fs.writer, fs.storage.log.seq)
    await fs.unlink("file")
    await file.write(5, b"to nobody")
    assert (await fs.then(epoch))[b"/file"].data == LARGE
    await file.truncate(1_000)
    await file.truncate(2_000)
    assert (await fs.then(epoch))[b"/file"].data == LARGE
    assert await file.read() == LARGE[:5] + b"to nobody" + LARGE[14:1_000] + bytes(1_000)
    await file.close()


async def test_who_writes_to_a_removed_file_does_not_write_to_what_was_brought_back(
    fs: HistorySystem,
) -> None:
    file = await fs.open_file("file", os.O_RDWR | os.O_CREAT)
    await file.write(0, LARGE)
    await file.flush()
    next_epoch(fs.writer, fs.storage.log.seq)
    await fs.unlink("file")
    await fs.answer.undelete("/mfs/file", None, None)
    await file.write(5, b"to nobody")
    assert await fs.read("file") == LARGE
    await fs.settle()
    await file.write(50, b"to nobody")
    assert await fs.read("file") == LARGE
    assert await file.read(5, 9) == b"to nobody"
    await file.close()
    await fs.settle()
    await fs.remount()
    assert await fs.read("file") == LARGE


async def patch_and_restart(fs: HistorySystem) -> int:
    """A file that is not sealed, of two containers; nothing else names them. The epoch it is in."""
    await fs.write("file", LARGE)
    await fs.seal()
    async with fs.open("file", os.O_RDWR) as file:
        await file.write(10, b"patch")
    epoch = next_epoch(fs.writer, fs.storage.log.seq)
    await fs.kill()
    return epoch


async def seal(fs: HistorySystem) -> None:
    """Seal the file, which copies it into a third container, and let go of the others."""
    await fs.seal()
    await fs.storage.flusher.flush()
    fs.tick()
    assert len(fs.writer.dead_containers) == 2
    for container in sorted(fs.writer.dead_containers):
        fs.keeper.drop_container(container)


async def test_a_file_of_the_past_is_read_on_while_it_is_sealed(fs: HistorySystem) -> None:
    epoch = await patch_and_restart(fs)
    ino = await fs.at(f"/.unifs/history/mfs/{epoch}/file")
    handle = await complete(fs.vfs.open, ino, os.O_RDONLY, fs.caller)
    assert bytes(await complete(fs.vfs.read, handle.fh, 0, len(LARGE))) == PATCHED
    await seal(fs)
    assert bytes(await complete(fs.vfs.read, handle.fh, 0, len(LARGE))) == PATCHED
    await complete(fs.vfs.release, handle.fh)


async def test_a_removed_file_is_read_on_while_what_was_brought_back_is_sealed(
    fs: HistorySystem,
) -> None:
    await patch_and_restart(fs)
    async with fs.open("file") as reader:
        await fs.unlink("file")
        await fs.answer.undelete("/mfs/file", None, None)
        await seal(fs)
        assert await fs.read("file") == PATCHED
        assert await reader.read() == PATCHED


async def test_what_a_rollback_replaces_does_not_wait_to_be_stored(fs: HistorySystem) -> None:
    """It is the past's: journal.dirty_bytes_max would be reached by nothing but rollbacks."""
    for name in ("one", "other"):
        await fs.write(name, b"small")
    await fs.history.checkpoint("then")
    for name in ("one", "other"):
        await fs.write(name, LARGE)
        await fs.answer.rollback(f"/mfs/{name}", "then")
    await fs.settle()
    fs.volume.unsynced.flushed(fs.storage.flusher.sealed_seq)
    assert fs.volume.unsynced.size_bytes == 0


async def test_a_collection_moves_what_a_rollback_is_about_to_bring_back(
    fs: HistorySystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names of a directory are read once, and brought back one after another."""
    await fs.mkdir("d")
    for name in ("changed", "removed"):
        await fs.write(f"d/{name}", b"old " + name.encode())
    await fs.history.checkpoint("then")
    await fs.write("d/changed", b"new")
    await fs.unlink("d/removed")
    bring_back = Rollback._file
    moved: list[dict[Place, Place]] = []

    async def move_then_bring_back(self: Rollback, *args: object) -> None:
        if not moved:
            moved.append(await move_all(fs, fs.keeper))
        await bring_back(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Rollback, "_file", move_then_bring_back)
    await fs.answer.rollback("/mfs/d", "then")
    assert moved[0]
    for name in ("changed", "removed"):
        assert await fs.read(f"d/{name}") == b"old " + name.encode()
    await fs.kill()
    for name in ("changed", "removed"):
        assert await fs.read(f"d/{name}") == b"old " + name.encode()

"""The past beside who still writes to it or reads it, and beside sealing."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.vfs.historyworld import HistorySystem
from tests.vfs.invariants import check
from unifs.vfs.epochs import next_epoch
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

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

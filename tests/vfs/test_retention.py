"""How long rows of earlier epochs stay, and what a full disk does to that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.vfs.harness import FileSystem
from unifs.vfs.retention import Retention

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    async with FileSystem(tmp_path, upkeep=False) as system:
        yield system


def end_epoch(fs: FileSystem) -> None:
    """As a build of the root does."""
    tree = fs.writer.tree
    row = (tree.epoch, fs.storage.log.seq, time.time_ns(), b"root")
    tree.commit([("insert into epoch values(?,?,?,?)", row)])
    tree.epoch += 1


def count(fs: FileSystem, table: str) -> int:
    return int(fs.storage.database.one(f"select count(*) from {table}")[0])


async def change_everything(fs: FileSystem) -> None:
    """A file changed, one removed, one renamed, each in an epoch after it was made."""
    for name in ("changed", "removed", "renamed"):
        await fs.write(name, b"first " * 20_000)
    end_epoch(fs)
    await fs.write("changed", b"second")
    await fs.unlink("removed")
    await fs.rename("renamed", "moved")
    end_epoch(fs)
    await fs.storage.flusher.flush()


async def test_the_past_is_kept_for_its_time(fs: FileSystem) -> None:
    await change_everything(fs)
    retention = Retention(fs.writer, keep_s=3600.0)
    while retention.prune():
        pass
    assert count(fs, "inode_past") >= 2
    assert count(fs, "dentry_past") == 2
    assert count(fs, "epoch") == 2


async def test_then_it_goes_with_its_bytes(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past rows, rows without a name and their containers go; what is live stays whole."""
    await change_everything(fs)
    # Sealed, so that recovery needs none of it: these contents are large.
    fs.writer.unsealed_since.clear()
    fs.tick()
    end_epoch(fs)
    retention = Retention(fs.writer, keep_s=0.0)
    monkeypatch.setattr(retention, "is_low", lambda: False)
    await trio.sleep(0.001)
    while retention.prune():
        pass
    assert count(fs, "inode_past") == count(fs, "dentry_past") == 0
    assert fs.storage.database.one("select count(*) from inode where gone is not null")[0] == 0
    assert await fs.read("changed") == b"second"
    assert await fs.read("moved") == b"first " * 20_000


async def test_a_full_disk_keeps_no_past(fs: FileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    await change_everything(fs)
    retention = Retention(fs.writer, keep_s=3600.0)
    monkeypatch.setattr(retention, "is_low", lambda: True)
    await trio.sleep(0.001)
    while retention.prune():
        pass
    assert count(fs, "dentry_past") == 0


async def test_records_that_recovery_needs_stay(fs: FileSystem) -> None:
    """A large content that is not sealed may have to go back to what its record says."""
    await change_everything(fs)
    needed = fs.writer.needed_since()
    retention = Retention(fs.writer, keep_s=0.0)
    await trio.sleep(0.001)
    while retention.prune():
        pass
    records = [record.seq for record in fs.storage.log.records(needed)]
    assert records
    assert records[-1] == fs.storage.log.seq
    assert records[0] == needed + 1

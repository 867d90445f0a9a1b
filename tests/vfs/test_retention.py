"""How long rows of earlier epochs stay, and what a full disk does to that."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import trio

from tests.vfs.harness import FileSystem
from unifs.vfs import retention as retention_module
from unifs.vfs.retention import Limits, Retention

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


async def test_the_past_is_kept_for_its_time(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await change_everything(fs)
    retention = Retention(fs.writer)
    monkeypatch.setattr(retention, "is_low", lambda: False)
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
    retention = Retention(fs.writer, Limits(0, 0, 0))
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
    retention = Retention(fs.writer)
    monkeypatch.setattr(retention, "is_low", lambda: True)
    await trio.sleep(0.001)
    while retention.prune():
        pass
    assert count(fs, "dentry_past") == 0


async def test_records_that_recovery_needs_stay(fs: FileSystem) -> None:
    """A large content that is not sealed may have to go back to what its record says."""
    await change_everything(fs)
    needed = fs.writer.needed_since()
    retention = Retention(fs.writer, Limits(0, 0, 0))
    await trio.sleep(0.001)
    while retention.prune():
        pass
    records = [record.seq for record in fs.storage.log.records(needed)]
    assert records
    assert records[-1] == fs.storage.log.seq
    assert records[0] == needed + 1


def prune(fs: FileSystem, retention: Retention) -> None:
    while retention.prune():
        pass
    fs.tick()


async def remove_everything(fs: FileSystem) -> None:
    """Files of an epoch that has ended are removed in the next one."""
    for number in range(5):
        await fs.write(f"{number}", b"%d" % number * 100_000, fsync=True)
    end_epoch(fs)
    for number in range(5):
        await fs.unlink(f"{number}")
    await fs.storage.flusher.flush()
    fs.writer.unsealed_since.clear()
    fs.tick()


async def test_the_past_goes_though_no_root_is_built(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remove_everything(fs)
    monkeypatch.setattr(retention_module, "EPOCH_S", 0.0)
    retention = Retention(fs.writer, Limits(0, 0, 0), built_seq=lambda: 3)
    monkeypatch.setattr(retention, "is_low", lambda: False)
    prune(fs, retention)
    assert count(fs, "inode where gone is not null") == 0
    assert count(fs, "dentry_past") == 0
    await fs.storage.flusher.flush()
    fs.tick()
    assert count(fs, "content") == 0
    # What a start needs to know of what is not built yet is there.
    records = [record.seq for record in fs.storage.log.records()]
    assert records == list(range(3, fs.storage.log.seq + 1))


async def test_an_epoch_without_a_root_lasts_a_while(fs: FileSystem) -> None:
    await remove_everything(fs)
    retention = Retention(fs.writer)
    retention.is_low = lambda: False  # type: ignore[method-assign]
    epoch = fs.writer.tree.epoch
    prune(fs, retention)
    assert fs.writer.tree.epoch == epoch
    assert count(fs, "inode where gone is not null") == 5


async def test_deletes_free_a_full_disk_though_no_root_can_be_built(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remove_everything(fs)
    retention = Retention(fs.writer, built_seq=lambda: 0)
    monkeypatch.setattr(retention, "is_low", lambda: True)
    prune(fs, retention)
    await fs.storage.flusher.flush()
    fs.tick()
    assert count(fs, "content") == 0
    assert len(fs.writer.dead_containers) == 5


async def test_the_newest_root_outlives_epochs_without_one(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.write("a", b"1", fsync=True)
    end_epoch(fs)
    monkeypatch.setattr(retention_module, "EPOCH_S", 0.0)
    retention = Retention(fs.writer, Limits(0, 0, 0))
    monkeypatch.setattr(retention, "is_low", lambda: False)
    for number in range(3):
        await fs.write("a", b"%d" % number, fsync=True)
        prune(fs, retention)
    await fs.write("a", b"last", fsync=True)
    prune(fs, retention)
    roots = [row[0] for row in fs.storage.database.all("select root from epoch")]
    assert roots[0] == b"root"
    assert len(roots) <= 3
    await fs.remount()
    assert await fs.read("a") == b"last"

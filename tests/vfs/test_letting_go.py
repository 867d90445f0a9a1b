"""What nobody needs any more goes when that is durable: a power cut brings back what it takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.journal.powercut import Disk
from tests.vfs import invariants
from tests.vfs.harness import FileSystem
from unifs.fsck.offline import CLEAN, examine
from unifs.vfs.epochs import next_epoch
from unifs.vfs.retention import Limits, Retention
from unifs.vfs.sealing import Sealer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LARGE = bytes(range(1, 251)) * 2000


@pytest.fixture
async def fs(tmp_path: Path) -> AsyncIterator[FileSystem]:
    async with FileSystem(tmp_path, upkeep=False) as system:
        yield system


def delete_dead(fs: FileSystem) -> None:
    """As ``Keeper`` does, a second later."""
    for container in sorted(fs.writer.dead_containers):
        fs.storage.contents.containers.delete(container)
    fs.writer.dead_containers.clear()


async def cut(fs: FileSystem, disk: Disk) -> None:
    """The power fails; of the log there is what was synced."""
    await fs.kill(start=False)
    disk.cut("synced")
    await fs.start("another boot")
    invariants.check(fs)


async def test_what_sealing_has_no_use_for_stays_until_the_seal_is_durable(fs: FileSystem) -> None:
    """After a restart nothing but the file itself names the bytes that it was laid over."""
    await fs.write("file", LARGE)
    await fs.seal()
    async with fs.open("file", os.O_RDWR) as file:
        await file.write(10, b"patch")
        await file.fsync()
    wanted = LARGE[:10] + b"patch" + LARGE[15:]
    await fs.kill()
    sealer = Sealer(fs.writer, fs.storage.blocks, fs.storage.profile)
    sealer.find_closed()
    with Disk(fs.path) as disk:
        await fs.seal()
        fs.tick()
        delete_dead(fs)
        await cut(fs, disk)
    assert await fs.read("file") == wanted
    # Once it is durable they go.
    Sealer(fs.writer, fs.storage.blocks, fs.storage.profile).find_closed()
    await fs.seal()
    await fs.storage.flusher.flush()
    fs.tick()
    assert len(fs.writer.dead_containers) == 2
    delete_dead(fs)
    invariants.check(fs, at_rest=True)
    assert await fs.read("file") == wanted


async def test_bytes_of_the_past_stay_until_their_rows_are_gone_for_good(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To remove rows of the past is no change, and has no record."""
    await fs.write("file", LARGE)
    await fs.seal()
    next_epoch(fs.writer, fs.storage.log.seq)
    await fs.write("file", LARGE[::-1])
    await fs.seal()
    next_epoch(fs.writer, fs.storage.log.seq)
    await fs.storage.flusher.flush()
    fs.tick()
    await fs.storage.flusher.flush()
    retention = Retention(fs.writer, Limits(0, 0, 0))
    monkeypatch.setattr(retention, "is_low", lambda: False)
    with Disk(fs.path) as disk:
        while retention.prune():
            pass
        fs.tick()
        delete_dead(fs)
        await cut(fs, disk)
    assert await fs.read("file") == LARGE[::-1]
    await fs.stop()
    assert examine(fs.path).exit_code == CLEAN
    await fs.start()


async def test_bytes_without_a_name_are_not_cut_from_under_their_row(fs: FileSystem) -> None:
    """The name is back after a power cut before its removal was durable, with what was synced."""
    for size in (0, 1, 300_000):
        file = await fs.open_file(f"file{size}", os.O_RDWR | os.O_CREAT)
        await file.write(0, LARGE)
        await file.fsync()
        await file.write(100, b"not committed")
        mixed = LARGE[:100] + b"not committed" + LARGE[113:]
        with Disk(fs.path) as disk:
            await fs.unlink(f"file{size}")
            await file.truncate(size)
            await file.write(size + 5, b"after")
            assert await file.read() == mixed[:size] + bytes(5) + b"after"
            await file.truncate(size + 4)
            assert await file.read() == mixed[:size] + bytes(4)
            invariants.check(fs)
            for container in (fs.path / "data").iterdir():
                disk.synced(str(container))
            await fs.kill(start=False)
            disk.cut("synced")
        await fs.start(f"boot {size}")
        back = await fs.read(f"file{size}")
        assert len(back) == len(LARGE)
        assert back[:100] + back[113:] == LARGE[:100] + LARGE[113:]


async def test_the_last_of_several_names_goes_with_its_file(fs: FileSystem) -> None:
    """No row of a file that is gone is left, and no check calls that wrong."""
    await fs.write("file", b"bytes")
    await fs.link("file", "again")
    await fs.unlink("file")
    await fs.unlink("again")
    fs.tick()
    invariants.check(fs, at_rest=True)
    await fs.stop()
    assert examine(fs.path).exit_code == CLEAN


async def test_the_last_of_several_names_goes_with_its_history(
    fs: FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fs.write("file", b"bytes")
    await fs.link("file", "again")
    next_epoch(fs.writer, fs.storage.log.seq)
    await fs.unlink("file")
    await fs.unlink("again")
    next_epoch(fs.writer, fs.storage.log.seq)
    await fs.storage.flusher.flush()
    fs.tick()
    retention = Retention(fs.writer, Limits(0, 0, 0))
    monkeypatch.setattr(retention, "is_low", lambda: False)
    while retention.prune():
        pass
    assert fs.storage.database.one("select count(*) from inode where gone is not null")[0] == 0
    invariants.check(fs)


async def test_the_last_of_several_names_goes_at_the_start_after_a_kill(fs: FileSystem) -> None:
    file = await fs.open_file("file", os.O_RDWR | os.O_CREAT)
    await file.write(0, b"bytes")
    await fs.link("file", "again")
    await fs.unlink("file")
    await fs.unlink("again")
    await fs.kill()
    assert fs.storage.database.one("select count(*) from inode where gone is not null")[0] == 0
    invariants.check(fs)

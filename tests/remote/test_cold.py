"""What was written here and is at the backend becomes its own, with the bytes in the cache."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
import trio

from tests.remotes.system import S3, DaemonSystem
from unifs.journal.content import REMOTE
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BIG = bytes(range(256)) * 10_000


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[DaemonSystem]:
    async with DaemonSystem(tmp_path, s3=S3) as running:
        assert isinstance(running, DaemonSystem)
        running.volume.cold.cold_s = 0.05
        yield running


async def settle(system: DaemonSystem, count: int) -> None:
    """So many contents have become cold."""
    await system.sync()
    with trio.fail_after(20):
        while system.volume.cold.cooled < count:
            await trio.sleep(0.02)
            for inode in list(system.writer.unsealed.values()):
                await system.daemon.sealer.seal(inode)
            await system.storage.flusher.flush()


def kinds(system: DaemonSystem) -> dict[int, int]:
    """How many files there are by the kind of their content column."""
    rows = system.storage.database.all(
        "select content from inode where mount=? and length(content)>0", (system.volume.mount_id,)
    )
    found: dict[int, int] = {}
    for (content,) in rows:
        found[content[0]] = found.get(content[0], 0) + 1
    return found


def containers(system: DaemonSystem) -> int:
    return int(system.storage.database.one("select count(*) from content")[0])


async def test_synced_contents_move_to_the_cache(system: DaemonSystem) -> None:
    await system.write("small", b"small")
    await system.write("big", BIG)
    await settle(system, 2)
    assert kinds(system) == {REMOTE: 2}
    await system.storage.flusher.flush()
    system.tick()
    assert containers(system) == 0
    assert await system.read("big") == BIG
    assert await system.read("small") == b"small"
    # Every byte came from the cache.
    assert system.remote().count("read") == 0
    assert await system.getxattr("big", b"user.unifs.state") == b"synced"
    await system.remount()
    assert await system.read("big") == BIG
    assert system.remote().count("read") == 0


async def test_what_is_evicted_comes_from_the_backend(system: DaemonSystem) -> None:
    await system.write("big", BIG)
    await settle(system, 1)
    await system.stop()
    for extent in (system.path / "cache").rglob("*"):
        if extent.is_file():
            extent.unlink()
    await system.start()
    assert await system.read("big") == BIG
    assert system.remote().count("read") > 0


async def test_a_cold_file_is_written_to_and_goes_out_again(system: DaemonSystem) -> None:
    await system.write("big", BIG)
    await settle(system, 1)
    async with system.open("big", os.O_RDWR) as file:
        await file.write(5, b"changed")
    await system.sync()
    wanted = BIG[:5] + b"changed" + BIG[12:]
    assert system.remote().content("big") == wanted
    await settle(system, 2)
    assert await system.read("big") == wanted
    assert kinds(system) == {REMOTE: 1}


async def test_what_is_open_or_changed_stays(system: DaemonSystem) -> None:
    async with system.open("open", os.O_RDWR | os.O_CREAT) as file:
        await file.write(0, BIG)
        await file.fsync()
        await system.write("other", b"x")
        await settle(system, 1)
        assert (await file.read(0, 100)) == BIG[:100]
        assert REMOTE not in {inode.stored[:1] for inode in system.writer.open.values()}
        await file.write(0, b"more")
        assert (await file.read(0, 100)) == b"more" + BIG[4:100]
    await system.sync()
    assert system.remote().content("open") == b"more" + BIG[4:]


async def test_a_reader_keeps_what_it_opened(system: DaemonSystem) -> None:
    system.volume.cold.cold_s = 0.3
    await system.write("big", BIG)
    await system.sync()
    async with system.open("big") as file:
        await system.write("other", b"x")
        await settle(system, 1)
        # The other one was written later and is cold already: this one's turn has been.
        assert kinds(system)[REMOTE] == 1
        assert await file.read(5, 100) == BIG[5:105]
    await settle(system, 2)
    assert kinds(system) == {REMOTE: 2}


async def test_contents_of_an_earlier_daemon_become_cold(system: DaemonSystem) -> None:
    system.volume.cold.cold_s = 3600.0
    await system.write("big", BIG)
    await system.sync()
    await system.kill(start=False)
    await system.start()
    system.volume.cold.cold_s = 0.05
    system.volume.cold._queue.clear()
    system.volume.cold._scanned = 0
    system.volume.cold._more.set()
    await settle(system, 1)
    assert kinds(system) == {REMOTE: 1}
    assert await system.read("big") == BIG


@pytest.mark.parametrize("is_durable", [False, True])
async def test_a_power_cut_around_it_loses_nothing(system: DaemonSystem, is_durable: bool) -> None:
    await system.write("small", b"small")
    await system.write("big", BIG)
    await settle(system, 2)
    if is_durable:
        await system.storage.flusher.flush()
        system.tick()
    await system.kill(boot="another")
    assert await system.read("big") == BIG
    assert await system.read("small") == b"small"
    await system.sync()
    assert (await system.daemon.status()).unsynced == 0


async def test_the_log_may_wait_for_its_checkpoint(system: DaemonSystem) -> None:
    """What cannot be written down at once is written down later, and the mount goes on."""
    commit, refused = system.volume.tree.commit, list[int]()

    async def over() -> object:
        return RETRY

    def waiting(batch: list[Any], **options: Any) -> None:
        if not refused and any("set synced=null" in text for text, _ in batch):
            refused.append(len(batch))
            raise WouldBlock(over)
        commit(batch, **options)

    with mock.patch.object(system.volume.tree, "commit", waiting):
        await system.write("small", b"small")
        await settle(system, 1)
    assert refused
    assert kinds(system) == {REMOTE: 1}
    assert await system.read("small") == b"small"

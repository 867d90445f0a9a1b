"""The read path: one fetch for many readers, bounded, cancellable, honest about what comes back."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.mounts.remote import RemoteMount
from unifs.cache.disk import DiskLimits, DiskTier
from unifs.cache.memory import EXTENT_BYTES
from unifs.cache.reads import ReadCache, ReadLimits
from unifs.cache.source import Source
from unifs.errors import Corrupt, Stale, TryAgain, Unreachable
from unifs.types import Version
from unifs.waiting import WouldBlock, complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

BYTES = bytes(index * 7 % 251 for index in range(2 * EXTENT_BYTES + 12345))
NO_MEMORY = ReadLimits(memory_bytes_max=0)


@asynccontextmanager
async def cache_of(
    directory: Path | None = None, limits: ReadLimits | None = None
) -> AsyncIterator[ReadCache]:
    disk = DiskTier(directory, DiskLimits(free_bytes_min=0)) if directory else None
    cache = ReadCache(disk, limits)
    async with cache.serve():
        yield cache


async def source_of(remote: RemoteMount, path: str = "a", data: bytes = BYTES) -> Source:
    remote.change(path, data)
    node = await remote.stat(path)
    assert node.version is not None
    return Source.of("s3", remote, path, node.version, node.size_bytes)


async def read(cache: ReadCache, source: Source, offset: int, size: int) -> bytes:
    return bytes(await complete(cache.read_nowait, source, offset, size))


async def settled(cache: ReadCache, extents: int) -> None:
    """Wait until the threads have written that many extents."""
    with trio.fail_after(5):
        while (disk := cache.statistics().disk) is None or disk.extents < extents:
            await wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 10),
        (EXTENT_BYTES - 5, 10),
        (0, len(BYTES)),
        (5, 2 * EXTENT_BYTES + 1),
        (len(BYTES) - 3, 100),
        (len(BYTES), 10),
        (len(BYTES) + 10, 10),
        (7, 0),
    ],
)
@pytest.mark.parametrize("tiers", ["memory", "disk", "none"])
async def test_every_range_through_every_tier(
    tmp_path: Path, offset: int, size: int, tiers: str
) -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    directory = tmp_path if tiers == "disk" else None
    limits = None if tiers == "memory" else NO_MEMORY
    async with cache_of(directory, limits) as cache:
        for _ in range(2):
            assert await read(cache, source, offset, size) == BYTES[offset : offset + size]
            await wait_all_tasks_blocked(0.01)


async def test_a_second_read_asks_nobody(tmp_path: Path) -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    async with cache_of() as cache:
        await read(cache, source, 0, 100)
        assert bytes(cache.read_nowait(source, 500, 100)) == BYTES[500:600]
        assert remote.count("read") == 1
        statistics = cache.statistics()
        assert (statistics.fetches, statistics.fetched_bytes) == (1, EXTENT_BYTES)
        assert statistics.memory.extents == 1


async def test_many_readers_of_one_extent_are_one_remote_read() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    remote.freeze()
    got: list[bytes] = []
    async with cache_of() as cache, trio.open_nursery() as nursery:

        async def reader(offset: int) -> None:
            got.append(await read(cache, source, offset, 10))

        for offset in range(50):
            nursery.start_soon(reader, offset)
        await wait_all_tasks_blocked()
        assert cache.statistics().fetching == 1
        remote.thaw()
    assert remote.count("read") == 1
    assert cache.statistics().joined == 49
    assert sorted(got) == sorted(BYTES[offset : offset + 10] for offset in range(50))


async def test_a_reader_that_goes_away_does_not_take_the_fetch_with_it() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    remote.freeze()
    got: list[bytes] = []
    async with cache_of() as cache, trio.open_nursery() as nursery:

        async def reader() -> None:
            got.append(await read(cache, source, 0, 10))

        async def impatient(scope: trio.CancelScope) -> None:
            with scope:
                await read(cache, source, 0, 10)

        scope = trio.CancelScope()
        nursery.start_soon(impatient, scope)
        nursery.start_soon(reader)
        await wait_all_tasks_blocked()
        scope.cancel()
        await wait_all_tasks_blocked()
        assert scope.cancelled_caught
        remote.thaw()
    assert got == [BYTES[:10]]
    assert remote.count("read") == 1


async def test_the_last_reader_to_leave_ends_the_fetch() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    async with cache_of() as cache:
        remote.freeze()
        with trio.move_on_after(0):
            await read(cache, source, 0, 10)
        await wait_all_tasks_blocked()
        assert cache.statistics().fetching == 0
        remote.thaw()
        assert await read(cache, source, 0, 10) == BYTES[:10]
    assert remote.count("read") == 1


async def test_an_error_reaches_every_reader_and_is_not_kept() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    remote.fail("read", Unreachable("no route"))
    remote.freeze()
    seen: list[BaseException] = []
    async with cache_of() as cache:
        async with trio.open_nursery() as nursery:

            async def reader() -> None:
                try:
                    await read(cache, source, 0, 10)
                except Unreachable as error:
                    seen.append(error)

            for _ in range(3):
                nursery.start_soon(reader)
            await wait_all_tasks_blocked()
            remote.thaw()
        assert [str(error) for error in seen] == ["no route"] * 3
        assert len(set(map(id, seen))) == 3
        assert await read(cache, source, 0, 10) == BYTES[:10]
    assert cache.statistics().failures == 1


async def test_a_bug_in_a_mount_reaches_the_reader_and_the_cache_lives_on() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    async with cache_of() as cache:

        async def broken(offset: int, size: int) -> bytes:
            raise ZeroDivisionError

        faulty = Source("s3", "b", source.version, 10, broken)
        with pytest.raises(ZeroDivisionError):
            await read(cache, faulty, 0, 10)
        assert await read(cache, source, 0, 10) == BYTES[:10]


@pytest.mark.parametrize("lie", [b"", b"short", BYTES[:EXTENT_BYTES] + b"!"])
async def test_bytes_of_the_wrong_length_are_refused_and_not_kept(
    tmp_path: Path, lie: bytes
) -> None:
    remote = RemoteMount()
    source = await source_of(remote)

    async def lying(offset: int, size: int) -> bytes:
        return lie

    async with cache_of(tmp_path) as cache:
        false = Source("s3", source.object, source.version, source.size_bytes, lying)
        with pytest.raises(Corrupt):
            await read(cache, false, 0, 10)
        assert cache.statistics().memory.extents == 0
        assert await read(cache, source, 0, 10) == BYTES[:10]


async def test_a_version_that_is_gone_is_stale_and_another_version_is_other_bytes() -> None:
    remote = RemoteMount()
    old = await source_of(remote)
    async with cache_of() as cache:
        assert await read(cache, old, 0, 10) == BYTES[:10]
        new = await source_of(remote, data=BYTES[::-1])
        assert await read(cache, new, 0, 10) == BYTES[::-1][:10]
        assert await read(cache, old, 0, 10) == BYTES[:10]
        with pytest.raises(Stale):
            await read(cache, old, EXTENT_BYTES, 10)


async def test_fetches_for_one_mount_are_bounded_and_others_do_not_wait() -> None:
    frozen, healthy = RemoteMount(), RemoteMount()
    stuck = [await source_of(frozen, f"f{number}", b"x") for number in range(5)]
    fine = await source_of(healthy, "ok", b"fine")
    fine = Source("other", fine.object, fine.version, fine.size_bytes, fine.read)
    frozen.freeze()
    async with cache_of(None, ReadLimits(fetches_max=2)) as cache:
        async with trio.open_nursery() as nursery:
            for source in stuck:
                nursery.start_soon(read, cache, source, 0, 1)
            await wait_all_tasks_blocked()
            assert cache.statistics().fetches == 2
            assert await read(cache, fine, 0, 4) == b"fine"
            frozen.thaw()
        assert cache.statistics().fetches == 6


async def test_waiting_extents_are_bounded() -> None:
    remote = RemoteMount()
    sources = [await source_of(remote, f"f{number}", b"x") for number in range(3)]
    remote.freeze()
    async with cache_of(None, ReadLimits(waiting_max=2)) as cache, trio.open_nursery() as nursery:
        nursery.start_soon(read, cache, sources[0], 0, 1)
        nursery.start_soon(read, cache, sources[1], 0, 1)
        await wait_all_tasks_blocked()
        with pytest.raises(TryAgain):
            await read(cache, sources[2], 0, 1)
        remote.thaw()


async def test_memory_keeps_to_its_limit() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    async with cache_of(None, ReadLimits(memory_bytes_max=EXTENT_BYTES + 1000)) as cache:
        assert await read(cache, source, 0, len(BYTES)) == BYTES
        memory = cache.statistics().memory
        assert memory.bytes <= memory.bytes_max
        assert memory.extents == 1


async def test_extents_survive_a_restart_and_the_backend_is_not_asked_again(tmp_path: Path) -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    async with cache_of(tmp_path) as cache:
        assert await read(cache, source, 0, len(BYTES)) == BYTES
        await settled(cache, 3)
    remote.freeze()
    async with cache_of(tmp_path) as cache:
        with trio.fail_after(5):
            assert await read(cache, source, 0, len(BYTES)) == BYTES
        assert bytes(cache.read_nowait(source, 10, 10)) == BYTES[10:20]
        assert cache.statistics().fetches == 0


async def test_a_mount_with_bytes_on_this_machine_is_asked_itself(tmp_path: Path) -> None:
    class Here(RemoteMount):
        asked = 0

        def read_nowait(self, path: str, version: Version, offset: int, size: int) -> bytes:
            self.asked += 1
            if self.asked == 1:
                raise WouldBlock(lambda: self.read(path, version, offset, size))
            return self.content(path)[offset : offset + size]

    source = await source_of(Here())
    async with cache_of(tmp_path) as cache:
        assert await read(cache, source, 5, 10) == BYTES[5:15]
        assert cache.read_nowait(source, 7, 3) == BYTES[7:10]
        statistics = cache.statistics()
        assert (statistics.fetches, statistics.memory.extents) == (0, 0)


async def test_closing_the_cache_answers_those_who_wait() -> None:
    remote = RemoteMount()
    source = await source_of(remote)
    remote.freeze()
    seen: list[str] = []
    async with trio.open_nursery() as nursery:

        async def reader(cache: ReadCache) -> None:
            try:
                await read(cache, source, 0, 10)
            except TryAgain:
                seen.append("given up")

        async with cache_of() as cache:
            nursery.start_soon(reader, cache)
            await wait_all_tasks_blocked()
    assert seen == ["given up"]
    with pytest.raises(WouldBlock) as blocked:
        cache.read_nowait(source, 0, 10)
    with pytest.raises(TryAgain):
        await blocked.value.wait()


def test_objects_of_an_immutable_mount_share_extents() -> None:
    class Immutable(RemoteMount):
        is_immutable = True

    one = Source.of("ipfs", Immutable(), "cid/a", Version("bafk"), 1)
    other = Source.of("ipfs", Immutable(), "cid2/b", Version("bafk"), 1)
    assert (one.mount, one.object, one.version) == (other.mount, other.object, other.version)
    assert Source.of("s3", RemoteMount(), "k", Version("e"), 1).object == "k"

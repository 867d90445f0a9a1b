"""Runs: many extents by one request, each readable at once, and nothing kept alive by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.cache.bulk import MIB, Bulk, cache_of, read, source_of
from unifs.cache.flights import KEEPING_S, Flights
from unifs.cache.memory import PIECE_BYTES, ExtentKey, MemoryTier
from unifs.cache.readahead import Window
from unifs.cache.reads import ReadLimits
from unifs.errors import Corrupt, TryAgain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from trio.testing import MockClock

    from unifs.cache.flights import Landed
    from unifs.cache.source import Source
    from unifs.types import Version


def keys_of(source: Source, *numbers: int) -> list[ExtentKey]:
    return [ExtentKey(source.mount, source.object, source.version, number) for number in numbers]


async def test_an_extent_of_a_run_is_readable_while_the_rest_arrives() -> None:
    remote = Bulk()
    source = await source_of(remote, 8 * MIB)
    remote.stops_at = 3 * MIB
    async with cache_of() as cache, trio.open_nursery() as nursery:
        nursery.start_soon(read, cache, source, None, 0, 8 * MIB)
        await wait_all_tasks_blocked()
        assert bytes(cache.read_nowait(source, 2 * MIB, 4)) == (2048).to_bytes(4, "big")
        assert cache.statistics().fetching == 5
        remote.release()
    assert remote.asked == [(0, 8 * MIB)]


async def test_neighbours_are_one_request_and_others_are_not() -> None:
    remote = Bulk()
    source = await source_of(remote, 40 * MIB)
    flights = Flights(MemoryTier(64 * MIB), 32, 1024)
    async with trio.open_nursery() as nursery:
        flights.nursery = nursery
        brought = await flights.bring(source, keys_of(source, *range(20), 30, 32, 33))
    assert [len(data) for data in brought] == [MIB] * 23
    assert sorted(remote.asked) == [
        (0, 16 * MIB), (16 * MIB, 4 * MIB), (30 * MIB, MIB), (32 * MIB, 2 * MIB)
    ]  # fmt: skip


async def test_a_run_that_has_ended_keeps_no_bytes_alive() -> None:
    remote = Bulk()
    source = await source_of(remote, 4 * MIB)
    flights = Flights(MemoryTier(64 * MIB), 32, 1024)
    async with trio.open_nursery() as nursery:
        flights.nursery = nursery
        held = flights.hold(source, keys_of(source, 0, 1))
        await held[1].done.wait()
        await wait_all_tasks_blocked()
    assert held[0].run.flights == [], "a flight and its run would be a cycle"
    flights.leave(held)


async def test_too_many_leave_nothing_half_begun() -> None:
    remote = Bulk()
    source = await source_of(remote, 8 * MIB)
    remote.stops_at = 0
    flights = Flights(MemoryTier(64 * MIB), 32, 4)
    async with trio.open_nursery() as nursery:
        flights.nursery = nursery
        held = flights.hold(source, keys_of(source, 0, 1))
        with pytest.raises(TryAgain):
            flights.hold(source, keys_of(source, 1, 2, 3, 4))
        assert len(flights) == 2
        assert [flight.holders for flight in held] == [1, 1]
        flights.leave(held)
        assert len(flights) == 0


async def test_a_backend_that_fills_too_little_is_corrupt_and_what_it_filled_is_kept() -> None:
    class Short(Bulk):
        async def read_into(
            self,
            path: str,
            version: Version,
            offset: int,
            buffers: Sequence[memoryview],
            filled: Callable[[], None],
        ) -> None:
            await super().read_into(path, version, offset, buffers[:1], filled)

    remote = Short()
    source = await source_of(remote, 4 * MIB)
    async with cache_of() as cache:
        with pytest.raises(Corrupt):
            await read(cache, source, None, 0, 3 * MIB)
        assert bytes(cache.read_nowait(source, 0, 4)) == bytes(4)
        assert cache.statistics().memory.extents == 1


async def test_what_is_on_its_way_counts_as_memory() -> None:
    remote = Bulk()
    source = await source_of(remote, 24 * MIB)
    async with cache_of(ReadLimits(memory_bytes_max=16 * MIB)) as cache:
        await read(cache, source, None, 0, 15 * MIB)
        assert cache.statistics().memory.bytes > 14 * MIB
        remote.stops_at = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, cache, source, None, 16 * MIB, 8 * MIB)
            await wait_all_tasks_blocked()
            assert cache.statistics().memory.bytes <= 8 * MIB
            remote.release()
        assert cache.statistics().memory.bytes <= 16 * MIB


async def test_pieces_survive_a_restart_and_extents_serve_random_reads(tmp_path: Path) -> None:
    remote = Bulk()
    source = await source_of(remote, 16 * MIB)
    tiny = await source_of(remote, 1024, "b")
    async with cache_of(None, tmp_path) as cache:
        # A read waits until it is known what is on the disk.
        await read(cache, tiny, None, 0)
        remote.asked.clear()
        await read(cache, source, Window(), 9 * MIB, 200 << 10)
        await read(cache, source, None, 12 * MIB)
        assert remote.asked == [(9 * MIB, 2 * PIECE_BYTES), (12 * MIB, MIB)]
        with trio.fail_after(10):
            while (disk := cache.statistics().disk) is not None and disk.extents < 4:
                await wait_all_tasks_blocked(0.001)
    async with cache_of(None, tmp_path) as cache:
        window = Window()
        await read(cache, source, window, 12 * MIB + 300 * 1024, 4096)
        await read(cache, source, window, 9 * MIB + 100 * 1024, 64 << 10)
        assert remote.asked[2:] == []


async def test_a_large_run_waits_for_a_disk_that_is_behind_but_not_for_ever(
    autojump_clock: MockClock,
) -> None:
    remote = Bulk()
    source = await source_of(remote, 60 * MIB)
    flights = Flights(MemoryTier(64 * MIB), 32, 1024)
    disk, kept = trio.Event(), []

    async def keep(landed: Landed) -> None:
        await disk.wait()
        kept.append(len(landed))

    flights.keep = keep
    async with trio.open_nursery() as nursery:
        flights.nursery = nursery
        await flights.bring(source, keys_of(source, *range(34)))
        assert flights.keeping_bytes == 34 * MIB
        began = trio.current_time()
        await flights.bring(source, keys_of(source, 36))
        assert trio.current_time() == began, "one extent does not wait"
        await flights.bring(source, keys_of(source, 40, 41))
        assert trio.current_time() == began + KEEPING_S
        nursery.start_soon(flights.bring, source, keys_of(source, 50, 51))
        await wait_all_tasks_blocked()
        assert len(remote.asked) == 5
        disk.set()
    assert len(remote.asked) == 6
    assert (sum(kept), flights.keeping_bytes) == (39, 0)
    assert trio.current_time() == began + KEEPING_S

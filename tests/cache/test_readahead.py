"""Readahead: the law of its window, its bound, its end, and what its errors are worth."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.cache.bulk import MIB, Bulk, cache_of, read, source_of
from unifs.cache.disk import DiskTier
from unifs.cache.flights import RUN_BYTES_MAX
from unifs.cache.memory import PIECE_BYTES
from unifs.cache.readahead import PAUSE_S, WINDOW_BYTES_MAX, Window
from unifs.cache.reads import ReadLimits
from unifs.errors import Stale, Unreachable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from unifs.cache.memory import ExtentKey

ROOMY = ReadLimits(memory_bytes_max=256 * MIB)


async def test_the_window_grows_while_a_file_is_read_in_sequence() -> None:
    remote = Bulk()
    source = await source_of(remote, 80 * MIB)
    window, sizes = Window(), [0]
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 80 * MIB, MIB):
            await read(cache, source, window, offset)
            if window.size_bytes != sizes[-1]:
                sizes.append(window.size_bytes)
            assert window.unread_bytes <= window.size_bytes
            assert cache.statistics().ahead["unread_bytes"] <= WINDOW_BYTES_MAX
        assert cache.statistics().fetched_bytes == 80 * MIB
    assert sizes[:3] == [0, 2 * MIB, 4 * MIB]
    assert sizes[-1] == WINDOW_BYTES_MAX
    assert all(later >= min(2 * size, WINDOW_BYTES_MAX) for size, later in pairwise(sizes))
    assert len(remote.asked) < 20


async def test_no_request_crosses_the_end_of_a_piece_of_a_large_object() -> None:
    remote = Bulk()
    source = await source_of(remote, 80 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 80 * MIB, MIB):
            await read(cache, source, window, offset)
    pieces = {(at // RUN_BYTES_MAX, (at + size - 1) // RUN_BYTES_MAX) for at, size in remote.asked}
    assert all(first == last for first, last in pieces)
    whole = [at for at, size in remote.asked if size == RUN_BYTES_MAX]
    assert sorted(whole) == list(range(RUN_BYTES_MAX, 80 * MIB, RUN_BYTES_MAX))


async def test_small_reads_in_sequence_fetch_ahead_as_well() -> None:
    remote = Bulk()
    source = await source_of(remote, 12 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 12 * MIB, 128 << 10):
            await read(cache, source, window, offset, 128 << 10)
        assert cache.statistics().fetched_bytes == 12 * MIB
        assert cache.statistics().ahead["ahead_bytes"] >= 10 * MIB
    assert len(remote.asked) < 8


async def test_a_random_read_fetches_a_piece_and_nothing_ahead() -> None:
    remote = Bulk()
    source = await source_of(remote, 64 * MIB)
    window = Window()
    async with cache_of() as cache:
        for offset in (40 * MIB + 1024, 9 * MIB, 63 * MIB):
            await read(cache, source, window, offset, 4096)
            assert not window.is_sequential
        await wait_all_tasks_blocked()
        assert [size for _, size in remote.asked] == [PIECE_BYTES] * 3
        await read(cache, source, window, 40 * MIB, 4096)
        await read(cache, source, window, 9 * MIB + 64 * 1024, 4096)
        assert len(remote.asked) == 3


async def test_reading_on_after_a_random_read_is_a_sequence() -> None:
    remote = Bulk()
    source = await source_of(remote, 64 * MIB)
    window = Window()
    async with cache_of() as cache:
        await read(cache, source, window, 40 * MIB, 4096)
        await read(cache, source, window, 40 * MIB + 4096, 4096)
        assert window.is_sequential
        await read(cache, source, window, 40 * MIB, 4096)
        assert window.is_sequential, "a small step back"


async def test_requests_that_change_places_stay_a_sequence() -> None:
    remote = Bulk()
    source = await source_of(remote, 40 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 36 * MIB, 2 * MIB):
            await read(cache, source, window, offset + MIB)
            await read(cache, source, window, offset)
            assert window.is_sequential
        await wait_all_tasks_blocked()
        assert cache.statistics().fetched_bytes == 40 * MIB
        assert cache.statistics().ahead["cancelled"] == 0


async def test_a_random_read_collapses_the_window_and_cancels_what_is_on_its_way() -> None:
    remote = Bulk()
    source = await source_of(remote, 64 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        remote.stops_at, remote.stops_to = 14 * MIB, 40 * MIB
        for offset in range(0, 13 * MIB, MIB):
            await read(cache, source, window, offset)
        await wait_all_tasks_blocked()
        assert cache.statistics().fetching > 1
        await read(cache, source, window, 60 * MIB, 4096)
        await wait_all_tasks_blocked()
        assert (window.size_bytes, window.unread_bytes) == (0, 0)
        assert cache.statistics().fetching == 0
        assert cache.statistics().ahead["cancelled"] > 0
    assert remote.cancelled > 0


async def test_closing_cancels_what_nobody_else_waits_for() -> None:
    remote = Bulk()
    source = await source_of(remote, 32 * MIB)
    mine, other = Window(), Window()
    async with cache_of(ROOMY) as cache:
        remote.stops_at = 8 * MIB
        for offset in range(0, 7 * MIB, MIB):
            await read(cache, source, mine, offset)
        await wait_all_tasks_blocked()
        assert mine.reach > 8 * MIB
        assert cache.statistics().fetching > 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, cache, source, other, 8 * MIB, 4096)
            await wait_all_tasks_blocked()
            cache.close(mine)
            await wait_all_tasks_blocked()
            assert remote.cancelled == 0, "somebody else waits for it"
            remote.release()
        assert mine.unread_bytes == 0
        remote.stops_at = 0
        third = Window()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, cache, source, third, 24 * MIB)
            # It has asked, and would wait for ever.
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        cache.close(third)
        await wait_all_tasks_blocked()
        statistics = cache.statistics()
        assert (statistics.fetching, statistics.ahead["windows"]) == (0, 0)
    assert remote.cancelled > 0


async def test_all_windows_together_are_bounded_and_share() -> None:
    remote = Bulk()
    sources = [await source_of(remote, 24 * MIB, f"f{number}") for number in range(4)]
    windows = [Window() for _ in sources]
    limits = ReadLimits(memory_bytes_max=256 * MIB, ahead_bytes_max=12 * MIB)
    async with cache_of(limits) as cache:
        for offset in range(0, 24 * MIB, MIB):
            for source, window in zip(sources, windows, strict=True):
                await read(cache, source, window, offset)
                ahead = cache.statistics().ahead
                assert ahead["unread_bytes"] <= ahead["unread_bytes_max"] == 12 * MIB
                assert window.size_bytes <= 12 * MIB
        assert ahead["ahead_bytes"] >= 4 * 20 * MIB, "each of them had its share"


async def test_a_reader_that_pauses_gives_its_share_up(autojump_clock: MockClock) -> None:
    remote = Bulk()
    paused, active = await source_of(remote, 64 * MIB), await source_of(remote, 64 * MIB, "b")
    first, second = Window(), Window()
    limits = ReadLimits(memory_bytes_max=256 * MIB, ahead_bytes_max=8 * MIB)
    async with cache_of(limits) as cache:
        for offset in range(0, 8 * MIB, MIB):
            await read(cache, paused, first, offset)
        assert first.unread_bytes > 4 * MIB
        for offset in range(0, 4 * MIB, MIB):
            await read(cache, active, second, offset)
        await trio.sleep(PAUSE_S + 1)
        for offset in range(4 * MIB, 16 * MIB, MIB):
            await read(cache, active, second, offset)
        assert (first.unread_bytes, second.size_bytes) == (0, 8 * MIB)
        await read(cache, paused, first, 8 * MIB)


@pytest.mark.parametrize("error", [Unreachable("no route"), Stale("gone"), ZeroDivisionError()])
async def test_an_error_ahead_reaches_nobody_who_does_not_read_there(error: Exception) -> None:
    remote = Bulk()
    source = await source_of(remote, 24 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 4 * MIB, MIB):
            await read(cache, source, window, offset)
        remote.stops_at, remote.error = 8 * MIB, error
        for offset in range(4 * MIB, 8 * MIB, MIB):
            await read(cache, source, window, offset)
        await wait_all_tasks_blocked()
        assert cache.statistics().failures > 0
        with pytest.raises(type(error)):
            await read(cache, source, window, 8 * MIB)
        remote.release()
        for offset in range(8 * MIB, 24 * MIB, MIB):
            await read(cache, source, window, offset)
        assert window.is_sequential


async def test_what_is_here_is_not_fetched_ahead_again(tmp_path: Path) -> None:
    remote = Bulk()
    source = await source_of(remote, 24 * MIB)
    async with cache_of(ROOMY, tmp_path) as cache:
        for _ in range(2):
            window = Window()
            for offset in range(0, 24 * MIB, MIB):
                await read(cache, source, window, offset)
            cache.close(window)
        assert cache.statistics().fetched_bytes == 24 * MIB
        with trio.fail_after(10):
            while (disk := cache.statistics().disk) is not None and disk.extents < 24:
                await wait_all_tasks_blocked(0.001)
    small = ReadLimits(memory_bytes_max=2 * MIB)
    async with cache_of(small, tmp_path) as cache:
        window = Window()
        for offset in range(0, 24 * MIB, MIB):
            await read(cache, source, window, offset)
        assert cache.statistics().fetched_bytes == 0


def damage_one_of(directory: Path) -> None:
    files = [path for path in directory.rglob("*.run") if path.stat().st_size > RUN_BYTES_MAX]
    with files[0].open("r+b") as file:
        file.seek(3 * MIB + 5)
        file.write(b"damaged")


@pytest.mark.parametrize("is_damaged", [False, True])
async def test_what_the_page_cache_has_not_is_read_ahead_from_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_damaged: bool
) -> None:
    remote = Bulk()
    source = await source_of(remote, 56 * MIB)
    async with cache_of(ROOMY, tmp_path) as cache:
        window = Window()
        for offset in range(0, 56 * MIB, MIB):
            await read(cache, source, window, offset)
        with trio.fail_after(10):
            while (disk := cache.statistics().disk) is not None and disk.extents < 56:
                await wait_all_tasks_blocked(0.001)
    if is_damaged:
        damage_one_of(tmp_path)
    loaded: list[int] = []
    load = DiskTier.load

    async def watched(
        tier: DiskTier, keys: Sequence[ExtentKey], buffers: Sequence[memoryview]
    ) -> bool:
        is_loaded = await load(tier, keys, buffers)
        loaded.append(len(keys) if is_loaded else 0)
        return is_loaded

    monkeypatch.setattr(DiskTier, "load", watched)
    monkeypatch.setattr(DiskTier, "_pread_nowait", lambda *_arguments: None)
    remote.asked.clear()
    async with cache_of(ROOMY, tmp_path) as cache:
        window = Window()
        for offset in range(0, 56 * MIB, MIB):
            await read(cache, source, window, offset)
        assert cache.statistics().fetched_bytes == (RUN_BYTES_MAX if is_damaged else 0)
    assert loaded.count(0) == is_damaged
    assert max(loaded) == RUN_BYTES_MAX // MIB
    assert 52 <= sum(loaded) + RUN_BYTES_MAX // MIB * is_damaged < 56


async def test_a_backend_of_single_ranges_is_read_ahead_in_parallel() -> None:
    class Single(Bulk):
        def supports(self, capability: str) -> bool:
            return capability != "read_into" and super().supports(capability)

    remote = Single()
    source = await source_of(remote, 16 * MIB)
    window = Window()
    async with cache_of(ROOMY) as cache:
        for offset in range(0, 8 * MIB, MIB):
            await read(cache, source, window, offset)
        assert remote.asked == []
        await wait_all_tasks_blocked()
        assert remote.count("read") == cache.statistics().fetches == 16

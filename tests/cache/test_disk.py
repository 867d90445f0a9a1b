"""The disk tier: what it keeps, what it gives back, and that its faults are only misses."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs.cache import disk
from unifs.cache.buffers import BLOCK_BYTES, Buffers
from unifs.cache.disk import DiskLimits, DiskTier
from unifs.cache.extentfile import PADDED_BYTES, data_bytes, trailer_bytes
from unifs.cache.memory import ExtentKey
from unifs.types import Version

if TYPE_CHECKING:
    from pathlib import Path

BYTES = bytes(range(256)) * 3072  # 768 KiB
LIMITS = DiskLimits(bytes_max=64 << 20, free_bytes_min=0, extents_max=100)


def key(number: int = 0, path: str = "a") -> ExtentKey:
    return ExtentKey("s3", path, Version("v1"), number)


async def opened(directory: Path, limits: DiskLimits = LIMITS) -> DiskTier:
    tier = DiskTier(directory, limits)
    await tier.scan()
    return tier


def files_in(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def read(tier: DiskTier, extent: ExtentKey, start: int, size: int) -> bytes | None:
    view = tier.read_nowait(extent, start, size)
    return bytes(view) if view is not None else await tier.read(extent, start, size)


async def test_what_was_written_is_read_inline_and_in_a_thread(tmp_path: Path) -> None:
    tier = await opened(tmp_path)
    await tier.write(key(), BYTES)
    view = tier.read_nowait(key(), 70_000, 5000)
    assert view is not None
    assert bytes(view) == BYTES[70_000:75_000]
    assert await tier.read(key(), 1, 200_000) == BYTES[1:200_001]
    assert tier.read_nowait(key(1), 0, 1) is None
    assert tier.statistics().extents == 1
    tier.close()


async def test_extents_are_found_again_after_a_restart(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    await first.write(key(), BYTES)
    await first.write(key(1), b"tail")
    first.close()
    second = await opened(tmp_path)
    assert await read(second, key(), 0, len(BYTES)) == BYTES
    assert await read(second, key(1), 1, 3) == b"ail"
    assert second.statistics().bytes == first.statistics().bytes
    second.close()


async def test_a_read_waits_for_the_scan_instead_of_missing(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    await first.write(key(), BYTES)
    first.close()
    tier = DiskTier(tmp_path, LIMITS)
    assert tier.read_nowait(key(), 0, 10) is None
    got: list[bytes | None] = []

    async def reader() -> None:
        got.append(await tier.read(key(), 0, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.testing.wait_all_tasks_blocked()
        assert got == []
        await tier.scan()
    assert got == [BYTES[:10]]
    tier.close()


@pytest.mark.parametrize("at", [0, 300_000, len(BYTES) - 1, len(BYTES), len(BYTES) + 39])
@pytest.mark.parametrize("inline", [True, False])
async def test_a_flipped_bit_is_a_miss_and_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int, inline: bool
) -> None:
    first = await opened(tmp_path)
    await first.write(key(), BYTES)
    first.close()
    (file,) = files_in(tmp_path)
    damaged = bytearray(file.read_bytes())
    damaged[at] ^= 1
    file.write_bytes(damaged)
    tier = await opened(tmp_path)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            if inline:
                assert tier.read_nowait(key(), 5, 1) is None
            else:
                assert await tier.read(key(), 5, 1) is None
    assert len(caplog.records) == 1
    assert tier.statistics().faults == 1
    await tier.write(key(), BYTES)
    assert await read(tier, key(), 5, 1) == BYTES[5:6]
    tier.close()


async def test_the_trailer_of_another_extent_is_a_miss(tmp_path: Path) -> None:
    first = await opened(tmp_path)
    await first.write(key(), BYTES)
    (one,) = files_in(tmp_path)
    await first.write(key(1), BYTES[::-1])
    (other,) = [path for path in files_in(tmp_path) if path != one]
    first.close()
    other.replace(one)
    tier = await opened(tmp_path)
    assert await read(tier, key(), 0, 10) is None
    assert tier.statistics().faults == 1
    tier.close()


async def test_what_was_checked_is_not_checked_again(tmp_path: Path) -> None:
    tier = await opened(tmp_path)
    await tier.write(key(), BYTES)
    assert tier.read_nowait(key(), 0, 10) is not None
    (file,) = files_in(tmp_path)
    with file.open("r+b") as stream:
        stream.write(b"\xff")
    view = tier.read_nowait(key(), 0, 1)
    assert view is not None
    assert bytes(view) == b"\xff"
    tier.close()


async def test_a_file_cut_short_after_the_start_is_a_miss(tmp_path: Path) -> None:
    tier = await opened(tmp_path)
    await tier.write(key(), BYTES)
    (file,) = files_in(tmp_path)
    os.truncate(file, 1000)
    assert await read(tier, key(), 0, 5000) is None
    tier.close()


async def test_the_directory_may_be_deleted_at_any_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = tmp_path / "cache"
    tier = await opened(directory)
    await tier.write(key(), BYTES)
    for file in files_in(directory):
        file.unlink()
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir()
    directory.rmdir()
    with caplog.at_level(logging.WARNING):
        assert await read(tier, key(), 0, 10) is None
    assert caplog.records == []
    await tier.write(key(), BYTES)
    assert await read(tier, key(), 0, 10) == BYTES[:10]
    tier.close()


async def test_the_byte_limit_evicts_the_coldest(tmp_path: Path) -> None:
    size = len(BYTES) + trailer_bytes(len(BYTES))
    tier = await opened(tmp_path, DiskLimits(3 * size, 0, 100))
    for number in range(5):
        await tier.write(key(number), BYTES)
    assert [await read(tier, key(number), 0, 1) for number in range(5)] == [
        None,
        None,
        BYTES[:1],
        BYTES[:1],
        BYTES[:1],
    ]
    assert tier.statistics().bytes == 3 * size
    assert len(files_in(tmp_path)) == 3
    tier.close()


async def test_the_number_of_extents_is_bounded(tmp_path: Path) -> None:
    tier = await opened(tmp_path, DiskLimits(64 << 20, 0, 4))
    for number in range(9):
        await tier.write(key(number), b"x")
    assert tier.statistics().extents == 4
    assert len(files_in(tmp_path)) == 4
    tier.close()
    smaller = await opened(tmp_path, DiskLimits(64 << 20, 0, 2))
    assert smaller.statistics().extents == 2
    assert len(files_in(tmp_path)) == 2
    smaller.close()


async def test_space_that_belongs_to_others_is_not_used(tmp_path: Path) -> None:
    tier = await opened(tmp_path, DiskLimits(64 << 20, 1 << 60, 100))
    await tier.write(key(), BYTES)
    assert files_in(tmp_path) == []
    assert tier.statistics().skipped_writes == 1
    tier.close()


async def test_extents_are_given_back_when_others_need_the_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = await opened(tmp_path, DiskLimits(64 << 20, 1 << 20, 100))
    for number in range(6):
        await tier.write(key(number), BYTES)
    real = os.statvfs(tmp_path)
    nearly_full = os.statvfs_result((*real[:4], 1, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda _: nearly_full)
    await tier.write(key(6), BYTES)
    await tier.write(key(7), BYTES)
    assert tier.statistics().extents < 6
    assert len(files_in(tmp_path)) == tier.statistics().extents
    tier.close()


async def test_a_failing_disk_is_one_warning_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tier = await opened(tmp_path)

    def refuse(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(os, "rename", refuse)
        await tier.write(key(), BYTES)
        await tier.write(key(1), BYTES)
        assert await read(tier, key(), 0, 1) is None
    assert len(caplog.records) == 1
    assert files_in(tmp_path) == []
    await tier.write(key(), BYTES)
    assert await read(tier, key(), 0, 1) == BYTES[:1]
    tier.close()


async def test_a_scan_keeps_what_is_not_ours_and_drops_what_is_torn(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    foreign = tmp_path / "ab" / "letter.txt"
    foreign.write_text("mine")
    torn = tmp_path / "ab" / ("0" * 38)
    torn.write_bytes(b"x")
    (tmp_path / "tmp.unifs").mkdir()
    leftover = tmp_path / "tmp.unifs" / "half"
    leftover.write_bytes(b"half an extent")
    tier = await opened(tmp_path)
    assert files_in(tmp_path) == [foreign]
    assert tier.statistics().extents == 0
    tier.close()


async def test_an_unreadable_directory_means_no_disk_tier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING):
        tier = await opened(tmp_path / "cache")
        await tier.write(key(), BYTES)
        assert await read(tier, key(), 0, 1) is None
    assert len(caplog.records) == 1
    tier.close()


async def test_descriptors_are_bounded(tmp_path: Path) -> None:
    tier = await opened(tmp_path, DiskLimits(64 << 20, 0, 1000))
    before = len(os.listdir("/proc/self/fd"))
    for number in range(100):
        await tier.write(key(number), b"x")
        assert tier.read_nowait(key(number), 0, 1) is not None
    assert len(os.listdir("/proc/self/fd")) - before <= 64
    tier.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_the_data_length_follows_from_the_file_size() -> None:
    edges = (1, 4056, BLOCK_BYTES, PADDED_BYTES - 1, PADDED_BYTES, PADDED_BYTES + 1, 1 << 20)
    for length in edges:
        assert data_bytes(length + trailer_bytes(length)) == length
    assert data_bytes(0) is None
    assert data_bytes(trailer_bytes(0)) is None
    sizes = {length + trailer_bytes(length) for length in range(1, 200_000)}
    assert len(sizes) == 199_999
    assert {size for size in range(200_000) if data_bytes(size)} <= sizes


def extent_in_blocks(size: int = 1 << 20) -> memoryview:
    room = Buffers(size).take(size)
    room[:] = (BYTES * 2)[:size]
    return room


@pytest.mark.parametrize("size", [1 << 20, 128 << 10, (128 << 10) + 1])
async def test_large_extents_go_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    data = extent_in_blocks(size)
    opened_with: list[int] = []
    real = os.open

    def watched(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            opened_with.append(flags & os.O_DIRECT)
        return real(path, flags, mode)

    first = await opened(tmp_path)
    monkeypatch.setattr(os, "open", watched)
    await first.write(key(), data)
    monkeypatch.undo()
    # Its directory was not there at first.
    assert opened_with[0] == (os.O_DIRECT if not size % BLOCK_BYTES else 0)
    assert await read(first, key(), 7, 1000) == data[7:1007]
    first.close()
    tier = await opened(tmp_path)
    assert await tier.read(key(), 0, size) == data
    tier.close()


@pytest.mark.parametrize("fails_at", ["open", "writev"])
async def test_a_file_system_that_does_not_know_direct_writes_is_used_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    data = extent_in_blocks()
    real_open, real_writev = os.open, os.writev
    direct: set[int] = set()
    refused: list[str] = []

    def open_(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and fails_at == "open":
            refused.append("open")
            raise OSError(errno.EINVAL, "no direct writes")
        fd = real_open(path, flags, mode)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def writev(fd: int, parts: list[memoryview]) -> int:
        if fd in direct:
            refused.append("writev")
            raise OSError(errno.EINVAL, "not aligned")
        return real_writev(fd, parts)

    tier = await opened(tmp_path)
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "writev", writev)
    await tier.write(key(), data)
    monkeypatch.undo()
    assert refused == [fails_at]
    assert await read(tier, key(), 9, 100_000) == data[9:100_009]
    assert tier.statistics().faults == 0
    tier.close()


async def test_a_slow_disk_is_written_through_the_page_cache_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: list[bool] = []
    tier = await opened(tmp_path)
    shelf = tier._shelf
    write = shelf.write

    def watched(*arguments: Any) -> Any:
        ways.append(arguments[-1])
        return write(*arguments)

    monkeypatch.setattr(shelf, "write", watched)
    monkeypatch.setattr(disk, "BUFFERED_BYTES", 3 << 20)
    for number in range(6):
        rate = 1 << 60 if number == 1 else 1
        monkeypatch.setattr(disk, "DIRECT_RATE_MIN", rate)
        await tier.write(key(number), extent_in_blocks())
    assert ways == [True, True, False, False, False, True]
    tier.close()


def run_of(count: int, size: int = 1 << 20) -> list[tuple[ExtentKey, memoryview]]:
    run = []
    for number in range(count):
        room = extent_in_blocks(size)
        room[:4] = b"%04d" % number
        run.append((key(number), room))
    return run


async def test_what_came_together_is_one_file(tmp_path: Path) -> None:
    run = run_of(5)
    run[-1] = (key(4), memoryview(BYTES)[:700_001])
    first = await opened(tmp_path)
    await first.write_all(run)
    assert len(files_in(tmp_path)) == 1
    for tier in (first, await opened(tmp_path)):
        assert tier.statistics().extents == 5
        for extent, data in reversed(run):
            assert await read(tier, extent, 3, 5000) == data[3:5003]
            assert await tier.read(extent, len(data) - 9, 9) == data[-9:]
        assert tier.statistics().bytes == files_in(tmp_path)[0].stat().st_size
        assert tier.statistics().faults == 0
        tier.close()


async def test_a_run_is_evicted_as_a_whole(tmp_path: Path) -> None:
    tier = await opened(tmp_path, DiskLimits(17 << 20, 0, 100))
    await tier.write_all(run_of(2))
    for number in range(10, 26):
        await tier.write(key(number), extent_in_blocks())
    assert not tier.has(key(0))
    assert not tier.has(key(1))
    assert tier.has(key(25))
    assert not [path for path in files_in(tmp_path) if path.suffix]
    tier.close()


async def test_a_run_that_is_much_of_the_limit_is_many_files(tmp_path: Path) -> None:
    tier = await opened(tmp_path, DiskLimits(15 << 20, 0, 100))
    await tier.write_all(run_of(2))
    assert len(files_in(tmp_path)) == 2
    assert await read(tier, key(1), 0, 4) == b"0001"
    tier.close()


async def test_what_is_there_already_is_not_written_with_a_run(tmp_path: Path) -> None:
    tier = await opened(tmp_path)
    run = run_of(4)
    await tier.write(*run[1])
    await tier.write_all(run)
    assert tier.statistics().extents == 4
    assert sum(path.stat().st_size for path in files_in(tmp_path)) < 5 << 20
    for extent, data in run:
        assert await read(tier, extent, 0, 4) == data[:4]
    tier.close()


@pytest.mark.parametrize("inline", [True, False])
async def test_damage_in_a_run_drops_the_run(tmp_path: Path, inline: bool) -> None:
    first = await opened(tmp_path)
    await first.write_all(run_of(3))
    first.close()
    (file,) = files_in(tmp_path)
    damaged = bytearray(file.read_bytes())
    damaged[(1 << 20) + 77] ^= 1
    file.write_bytes(damaged)
    tier = await opened(tmp_path)
    assert await read(tier, key(0), 0, 4) == b"0000"
    bad = tier.read_nowait(key(1), 0, 4) if inline else await tier.read(key(1), 0, 4)
    assert bad is None
    assert tier.statistics().extents == 0
    assert files_in(tmp_path) == []
    tier.close()


@pytest.mark.parametrize("cut", [1, 4096, 1 << 20])
async def test_a_run_cut_short_is_removed_by_the_scan(tmp_path: Path, cut: int) -> None:
    first = await opened(tmp_path)
    await first.write_all(run_of(3))
    first.close()
    (file,) = files_in(tmp_path)
    os.truncate(file, file.stat().st_size - cut)
    tier = await opened(tmp_path)
    assert tier.statistics().extents == 0
    assert files_in(tmp_path) == []
    tier.close()


async def test_a_read_that_its_file_is_replaced_under_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = await opened(tmp_path)
    await tier.write_all(run_of(3))
    (held, _) = tier._places[next(iter(tier._places))]
    real = tier._shelf.read

    def late(*arguments: Any) -> bytes:
        trio.from_thread.run_sync(replace)
        return real(*arguments)

    def replace() -> None:
        # As if it had been evicted, and fetched again in another company.
        tier._files.pop(held.name)
        tier._forget(held)
        file = tmp_path / held.name
        file.write_bytes(file.read_bytes()[1 << 20 :])

    monkeypatch.setattr(tier._shelf, "read", late)
    assert await tier.read(key(1), 0, 4) is None
    tier.close()

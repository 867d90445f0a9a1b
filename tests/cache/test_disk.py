"""The disk tier: what it keeps, what it gives back, and that its faults are only misses."""

from __future__ import annotations

import errno
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio

from unifs.cache.buffers import Buffers
from unifs.cache.disk import DiskLimits, DiskTier
from unifs.cache.extentfile import PADDED_BYTES, data_bytes, digest_of, trailer_bytes
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
    edges = (1, 4056, 4096, PADDED_BYTES - 1, PADDED_BYTES, PADDED_BYTES + 1, 1 << 20)
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


@pytest.mark.parametrize("fails_at", ["", "open", "preadv"])
async def test_a_run_is_loaded_past_the_page_cache_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: str
) -> None:
    first = await opened(tmp_path)
    run = run_of(4)
    await first.write_all(run)
    first.close()
    tier = await opened(tmp_path)
    real_open, real_preadv = os.open, os.preadv
    direct: set[int] = set()
    seen: list[str] = []

    def open_(path: str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT:
            seen.append("open")
            if fails_at == "open":
                raise OSError(errno.EINVAL, "no direct reads")
        fd = real_open(path, flags, mode)
        (direct.add if flags & os.O_DIRECT else direct.discard)(fd)
        return fd

    def preadv(fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if fd in direct:
            seen.append("preadv")
            if fails_at == "preadv":
                raise OSError(errno.EINVAL, "not aligned")
        return real_preadv(fd, buffers, offset, flags)

    rooms = Buffers(1 << 20)
    buffers = [rooms.take(1 << 20) for _ in range(3)]
    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "preadv", preadv)
    assert await tier.load([key(0), key(1), key(3)], buffers)
    monkeypatch.undo()
    assert seen[: 1 + (fails_at != "open")] == ["open", "preadv"][: 1 + (fails_at != "open")]
    assert [bytes(one) for one in buffers] == [bytes(run[number][1]) for number in (0, 1, 3)]
    assert tier.statistics().faults == 0
    tier.close()


async def test_a_run_is_loaded_from_several_files(tmp_path: Path) -> None:
    tier = await opened(tmp_path)
    run = run_of(5)
    run[-1] = (key(4), memoryview(BYTES)[:700_001])
    await tier.write_all(run[:2])
    await tier.write(*run[2])
    await tier.write_all(run[3:])
    buffers = [memoryview(bytearray(len(data))) for _, data in run]
    assert await tier.load([extent for extent, _ in run], buffers)
    assert [bytes(one) for one in buffers] == [bytes(data) for _, data in run]
    assert not await tier.load([key(3), key(9)], buffers[:2])
    tier.close()


@pytest.mark.parametrize("damage", ["bit", "cut", "gone", "trailer"])
async def test_a_damaged_run_is_not_loaded(tmp_path: Path, damage: str) -> None:
    first = await opened(tmp_path)
    await first.write_all(run_of(3))
    first.close()
    tier = await opened(tmp_path)
    (file,) = files_in(tmp_path)
    data = bytearray(file.read_bytes())
    data[{"bit": 2 << 20, "trailer": (3 << 20) + 20}.get(damage, 0)] ^= 1
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(data[: 1 << 20] if damage == "cut" else data)
    rooms = Buffers(1 << 20)
    buffers = [rooms.take(1 << 20) for _ in range(3)]
    assert not await tier.load([key(0), key(1), key(2)], buffers)
    assert tier.statistics().extents == 0
    assert tier.statistics().faults == (damage != "gone")
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
    (held, _) = tier._places.use(digest_of(key(1))) or pytest.fail("it is not there")
    real = tier._shelf.read

    def late(*arguments: Any) -> bytes:
        trio.from_thread.run_sync(replace)
        return real(*arguments)

    def replace() -> None:
        # As if it had been evicted, and fetched again in another company.
        assert tier._places.remove(held)
        file = tmp_path / held.name
        file.write_bytes(file.read_bytes()[1 << 20 :])

    monkeypatch.setattr(tier._shelf, "read", late)
    assert await tier.read(key(1), 0, 4) is None
    tier.close()

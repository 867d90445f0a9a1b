"""Segments: what was appended is found again, whatever a crash or bit rot did to the file."""

from __future__ import annotations

import errno
import gc
import hashlib
import os
import threading
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from unifs.errors import Corrupt, DiskFailed, Exists, NoSpace, NotFound
from unifs.ipfs.embedded.sections import HEADER, RAW_PREFIX, Gap
from unifs.ipfs.embedded.segment_file import SegmentFile
from unifs.ipfs.embedded.segments import DESCRIPTORS_MAX, Damage, Place, Segments

from .stores import file_size_limit

if TYPE_CHECKING:
    from pathlib import Path

CONTENTS = [b"", b"a", b"b" * 91, b"c" * 92, b"d" * 300, bytes(40), b"last"]


def digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def cid(data: bytes) -> bytes:
    return RAW_PREFIX + digest(data)


def append_all(segments: Segments, contents: list[bytes]) -> list[Place]:
    return [segments.append_raw(digest(data), data) for data in contents]


def found(segments: Segments) -> list[tuple[bytes, bytes]]:
    return [
        (cid_binary, segments.read(place))
        for number in segments.segments()
        for cid_binary, place in segments.iterate(number)
    ]


def expected(contents: list[bytes]) -> list[tuple[bytes, bytes]]:
    return [(cid(data), data) for data in contents]


def crash(segments: Segments) -> None:
    """Forget the object as kill -9 would: no footer, no sync."""
    segments._open = None
    segments._files.clear()


def test_appended_blocks_are_read_back_and_found(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "s")
    places = append_all(segments, CONTENTS)
    assert [segments.read(place) for place in places] == CONTENTS
    dag_node = segments.append(b"\x01\x70\x12\x20" + digest(b"node"), memoryview(b"node"))
    assert segments.read(dag_node) == b"node"
    assert found(segments)[:-1] == expected(CONTENTS)


def test_a_segment_is_a_car_file(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    append_all(segments, CONTENTS)
    sections = b"".join(_varint(36 + len(data)) + cid(data) + data for data in CONTENTS)
    assert (tmp_path / "1.car").read_bytes() == HEADER + sections
    segments.close()
    closed = (tmp_path / "1.car").read_bytes()
    assert closed[: len(HEADER + sections) + 1] == HEADER + sections + b"\0"


def _varint(value: int) -> bytes:
    return bytes((value,)) if value < 128 else bytes((value & 127 | 128, value >> 7))


@pytest.mark.parametrize("is_clean", [True, False])
def test_reopening_goes_on_in_the_same_segment(tmp_path: Path, is_clean: bool) -> None:
    segments = Segments(tmp_path)
    append_all(segments, CONTENTS)
    segments.close() if is_clean else crash(segments)
    again = Segments(tmp_path)
    assert again.damages == []
    append_all(again, [b"more"])
    assert found(again) == expected([*CONTENTS, b"more"])
    assert list(again.segments()) == [1]
    assert os.listdir(tmp_path) == ["1.car"]


def test_full_segments_are_closed_by_the_next_flush_round(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=400)
    places = append_all(segments, CONTENTS)
    assert {place.segment for place in places} == {1, 2, 3}
    target = segments.sync_target()
    assert target is not None
    assert not any(segments.is_synced(place) for place in places)
    target.run()
    assert all(segments.is_synced(place) for place in places)
    assert segments.sync_target() is None
    crash(segments)
    again = Segments(tmp_path, limit_bytes=400)
    assert found(again) == expected(CONTENTS)
    assert (again.damages, list(again._files)) == ([], [3])


def test_starting_reads_only_the_ends_of_closed_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = Segments(tmp_path, limit_bytes=5000)
    contents = [b"%d" % number * 20 for number in range(1000)]
    append_all(segments, contents)
    segments.close()
    read = 0
    real = os.pread

    def spy(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        data = real(fd, length, offset)
        read += len(data)
        return data

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", spy)
        again = Segments(tmp_path, limit_bytes=5000)
    assert len(again.segments()) > 15
    assert read < 64 * len(again.segments()) + 5000
    assert found(again) == expected(contents)


def test_a_block_larger_than_the_limit_gets_a_segment_of_its_own(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=100)
    contents = [b"x" * 500, b"y", b"z" * 600]
    assert [place.segment for place in append_all(segments, contents)] == [1, 2, 3]
    assert found(segments) == expected(contents)


def test_a_target_covers_what_was_appended_before_it(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    first = segments.append_raw(digest(b"1"), b"1")
    target = segments.sync_target()
    second = segments.append_raw(digest(b"2"), b"2")
    assert target is not None
    assert (target.segment, target.position) == (1, first.offset + 1)
    target.run()
    assert (segments.is_synced(first), segments.is_synced(second)) == (True, False)


def test_a_round_syncs_data_footers_and_the_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for call in ("fdatasync", "fsync"):
        real = getattr(os, call)

        def spy(fd: int, call: str = call, real: object = real) -> None:
            calls.append(f"{call} {os.path.basename(os.readlink(f'/proc/self/fd/{int(fd)}'))}")
            real(fd)  # type: ignore[operator]

        monkeypatch.setattr(os, call, spy)
    segments = Segments(tmp_path / "dir", limit_bytes=300)
    append_all(segments, [b"d" * 200, b"e" * 200])
    target = segments.sync_target()
    assert target is not None
    target.run()
    assert calls[:2] == ["fdatasync 1.car", "fdatasync 2.car"]
    assert set(calls[2:]) == {"fsync dir"}
    calls.clear()
    append_all(segments, [b"f"])
    target = segments.sync_target()
    assert target is not None
    target.run()
    assert calls == ["fdatasync 2.car"], "the directory is synced only for new names"


def test_a_failed_sync_is_never_followed_by_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = Segments(tmp_path)
    lost = segments.append_raw(digest(b"lost"), b"lost")
    target = segments.sync_target()
    assert target is not None

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(DiskFailed):
            target.run()
    kept = segments.append_raw(digest(b"kept"), b"kept")
    assert kept.segment != lost.segment
    for _ in range(2):
        target = segments.sync_target()
        assert target is not None
        with pytest.raises(DiskFailed):
            target.run()
    segments.acknowledge_failure()
    segments.append_raw(digest(b"more"), b"more")
    target = segments.sync_target()
    assert target is not None
    target.run()
    assert segments.sync_target() is None
    assert (segments.is_synced(lost), segments.is_synced(kept)) == (False, True)
    assert segments.read(lost) == b"lost"
    assert found(segments) == expected([b"lost", b"kept", b"more"])
    crash(segments)
    again = Segments(tmp_path)
    assert again.read(lost) == b"lost"
    target = again.sync_target()
    assert target is not None
    target.run()
    assert (again.is_synced(lost), again.is_synced(kept)) == (False, True)
    again.remove(lost.segment)
    assert sorted(os.listdir(tmp_path)) == ["2.car"]


def test_torn_tail_at_every_byte(tmp_path: Path) -> None:
    contents = CONTENTS[:4]
    segments = Segments(tmp_path / "whole")
    places = append_all(segments, contents)
    whole = (tmp_path / "whole" / "1.car").read_bytes()
    ends = [len(HEADER), *(place.offset + place.length for place in places)]
    for size in range(len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / "1.car").write_bytes(whole[:size])
        again = Segments(directory)
        complete = max([end for end in ends if end <= size], default=0)
        kept = contents[: max(0, sum(end <= size for end in ends) - 1)]
        assert found(again) == expected(kept)
        torn = [Damage(1, complete, size - complete, True)] if size - complete else []
        assert [d for d in again.damages if d.length] == torn
        append_all(again, [b"after"])
        assert found(again) == expected([*kept, b"after"])
        crash(again)
        assert found(Segments(directory)) == expected([*kept, b"after"])


@pytest.mark.parametrize("zeros", [1, 100, 4096, 1 << 20])
def test_zeros_end_the_log(tmp_path: Path, zeros: int) -> None:
    segments = Segments(tmp_path)
    append_all(segments, CONTENTS)
    _, end = segments.position()
    crash(segments)
    with (tmp_path / "1.car").open("ab") as file:
        file.write(bytes(zeros))
    again = Segments(tmp_path)
    assert again.damages == [Damage(1, end, zeros, True)]
    assert found(again) == expected(CONTENTS)


def test_every_rotten_head_byte_of_an_open_segment_is_named_and_hides_nothing(
    tmp_path: Path,
) -> None:
    contents = [b"first" * 30, b"rotten" * 30, b"third" * 30]
    segments = Segments(tmp_path / "whole")
    places = append_all(segments, contents)
    whole = (tmp_path / "whole" / "1.car").read_bytes()
    begin = places[0].offset + places[0].length
    for position in range(begin, places[1].offset):
        damaged = bytearray(whole)
        damaged[position] ^= 0x41
        directory = tmp_path / str(position)
        directory.mkdir()
        (directory / "1.car").write_bytes(damaged)
        again = Segments(directory)
        sound = [(c, data) for c, data in found(again) if c == cid(data)]
        assert (cid(contents[0]), contents[0]) in sound
        assert (cid(contents[2]), contents[2]) in sound
        wrong = [c for c, data in found(again) if c != cid(data)]
        gaps = [damage for damage in again.damages if not damage.is_torn_tail]
        assert len(wrong) + len(gaps) == 1
        if gaps:
            assert gaps == [Damage(1, begin, places[2].offset - 38 - begin, False)]
            assert again.gaps(1) == [Gap(begin, places[2].offset - 38 - begin)]
            assert again.append_raw(digest(b"new"), b"new").segment == 2


def test_a_rotten_length_that_swallows_sections_is_found_out(tmp_path: Path) -> None:
    contents = [bytes([n]) * 200 for n in range(20)]
    segments = Segments(tmp_path)
    places = append_all(segments, contents)
    crash(segments)
    whole = bytearray((tmp_path / "1.car").read_bytes())
    whole[places[3].offset - 37] += 5
    (tmp_path / "1.car").write_bytes(whole)
    again = Segments(tmp_path)
    assert found(again) == expected(contents[:3] + contents[4:])
    assert again.damages == [Damage(1, places[3].offset - 38, 238, False)]


def test_a_scan_finds_rot_across_its_windows(tmp_path: Path) -> None:
    contents = [bytes([n]) * 300_000 for n in range(12)]
    segments = Segments(tmp_path)
    places = append_all(segments, contents)
    crash(segments)
    whole = bytearray((tmp_path / "1.car").read_bytes())
    for victim in (2, 3, 7):
        whole[places[victim].offset - 38] ^= 0x55
    (tmp_path / "1.car").write_bytes(whole)
    again = Segments(tmp_path)
    assert found(again) == expected([c for n, c in enumerate(contents) if n not in (2, 3, 7)])


def test_every_rotten_byte_of_a_closed_segment_hides_nothing(tmp_path: Path) -> None:
    contents = [b"first" * 20, b"second" * 20]
    segments = Segments(tmp_path / "whole")
    places = append_all(segments, contents)
    segments.close()
    whole = (tmp_path / "whole" / "1.car").read_bytes()
    for position in range(len(HEADER), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x81
        directory = tmp_path / str(position)
        directory.mkdir()
        (directory / "1.car").write_bytes(damaged)
        (directory / "2.car").write_bytes(HEADER)
        again = Segments(directory)
        sound = [data for c, data in found(again) if c == cid(data)]
        assert len(sound) >= 1
        if position > places[-1].offset + places[-1].length:
            assert sound == contents, "a rotten footer costs a scan, nothing else"


def test_no_space_leaves_nothing_half_written(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    append_all(segments, [b"kept" * 100])
    _, end = segments.position()
    for room in (0, 1, 37, 38, 100, 499):
        with file_size_limit(end + room), pytest.raises(NoSpace):
            segments.append_raw(digest(b"n" * 500), b"n" * 500)
        assert (tmp_path / "1.car").stat().st_size == end
    append_all(segments, [b"after"])
    assert found(segments) == expected([b"kept" * 100, b"after"])


def test_no_space_for_a_new_segment_leaves_no_file(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=100)
    append_all(segments, [b"1" * 50])
    with file_size_limit(4), pytest.raises(NoSpace):
        segments.append_raw(digest(b"2" * 50), b"2" * 50)
    assert os.listdir(tmp_path) == ["1.car"]
    append_all(segments, [b"2" * 50])
    assert found(segments) == expected([b"1" * 50, b"2" * 50])


def test_no_space_for_the_footer_is_no_error(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=100)
    append_all(segments, [b"1" * 50, b"2" * 50])
    target = segments.sync_target()
    assert target is not None
    with file_size_limit(segments.segments()[1] + 10):
        target.run()
    crash(segments)
    again = Segments(tmp_path, limit_bytes=100)
    assert (found(again), again.damages) == (expected([b"1" * 50, b"2" * 50]), [])


def test_where_even_cutting_back_fails_the_segment_takes_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    segments = Segments(tmp_path)
    append_all(segments, [b"first"])

    def broken(fd: int, length: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    with monkeypatch.context() as patch, file_size_limit(segments.position()[1] + 60):
        patch.setattr(os, "ftruncate", broken)
        with pytest.raises(NoSpace):
            segments.append_raw(digest(b"n" * 500), b"n" * 500)
    assert segments.append_raw(digest(b"next"), b"next").segment == 2
    crash(segments)
    assert found(Segments(tmp_path)) == expected([b"first", b"next"])


def test_reading_past_the_end_is_corrupt_and_names_the_place(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    (place,) = append_all(segments, [b"data"])
    with pytest.raises(Corrupt) as caught:
        segments.read(Place(1, place.offset, 5))
    assert caught.value.context["offset"] == place.offset
    with pytest.raises(NotFound):
        segments.read(Place(9, 18, 1))


def test_iterate_from_an_offset_gives_what_came_after(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    seen: list[bytes] = []
    position = (1, 0)
    for data in CONTENTS:
        append_all(segments, [data])
        seen += [segments.read(place) for _, place in segments.iterate(1, position[1])]
        position = segments.position()
    assert seen == CONTENTS
    segments.close()
    again = Segments(tmp_path)
    offset = [place for _, place in again.iterate(1)][3].offset - 38
    assert [again.read(place) for _, place in again.iterate(1, offset)] == CONTENTS[3:]


def test_descriptors_are_bounded_and_outlive_removal(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=60)
    places = append_all(segments, [bytes([n]) * 30 for n in range(DESCRIPTORS_MAX + 10)])
    target = segments.sync_target()
    assert target is not None
    target.run()
    held = segments.descriptor(1)
    for place in places:
        segments.read(place)
    gc.collect()
    assert segments.statistics().descriptors <= DESCRIPTORS_MAX + 1
    segments.remove(1)
    segments.remove(1)
    assert os.pread(held, 30, places[0].offset) == bytes(30)
    with pytest.raises(NotFound):
        segments.read(places[0])
    assert 1 not in Segments(tmp_path).segments()


def test_rolling_lets_the_open_segment_be_collected(tmp_path: Path) -> None:
    segments = Segments(tmp_path)
    append_all(segments, [b"old"])
    segments.roll()
    segments.roll()
    target = segments.sync_target()
    assert target is not None
    target.run()
    assert append_all(segments, [b"new"])[0].segment == 2
    segments.remove(1)
    assert found(segments) == expected([b"new"])


def test_appends_from_threads_do_not_mix(tmp_path: Path) -> None:
    segments = Segments(tmp_path, limit_bytes=20_000)
    contents = [bytes([n]) * (n * 17 % 900) for n in range(200)]
    halves = (contents[::2], contents[1::2])
    threads = [threading.Thread(target=append_all, args=(segments, half)) for half in halves]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found(segments)) == sorted(expected(contents))
    crash(segments)
    assert sorted(found(Segments(tmp_path))) == sorted(expected(contents))


def test_a_disk_that_refused_a_new_segment_and_its_removal_may_come_back(tmp_path: Path) -> None:
    """What it left has nothing in it and takes nobody's number."""
    segments = Segments(tmp_path / "s")
    refused = mock.Mock(side_effect=OSError(errno.EIO, "no"))
    for written in (b"", b"half of a head"):
        with (
            mock.patch("os.pwrite", refused),
            mock.patch("os.unlink", refused),
            pytest.raises(DiskFailed),
        ):
            segments.append_raw(digest(b"refused"), b"refused")
        (tmp_path / "s" / "1.car").write_bytes(written)
    place = segments.append_raw(digest(b"taken"), b"taken")
    assert segments.read(place) == b"taken"
    segments.close()
    again = Segments(tmp_path / "s")
    assert (again.read(place), again.damages) == (b"taken", [])
    again.close()
    (tmp_path / "s" / "2.car").write_bytes(bytes(19))
    with pytest.raises(Exists):
        SegmentFile.create(tmp_path / "s" / "2.car", 2)

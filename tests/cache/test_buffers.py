"""Memory for extents: used again, but never while somebody looks at it."""

from __future__ import annotations

from unifs.cache.buffers import SPARE_MAX, Buffers
from unifs.cache.memory import EXTENT_BYTES, ExtentKey, MemoryTier
from unifs.types import Version

SIZE = 1 << 16


def key(number: int) -> ExtentKey:
    return ExtentKey("s3", "a", Version("v"), number)


def test_what_was_given_back_is_taken_again() -> None:
    buffers = Buffers(SIZE)
    first = buffers.take(SIZE)
    pages = first.obj
    buffers.give(first)
    del first
    again = buffers.take(SIZE)
    assert again.obj is pages
    assert buffers.take(SIZE).obj is not pages


def test_a_reader_keeps_what_it_reads() -> None:
    buffers = Buffers(SIZE)
    first = buffers.take(SIZE)
    first[:5] = b"first"
    part = first[1:3]
    buffers.give(first)
    del first
    second = buffers.take(SIZE)
    second[:5] = b"other"
    assert bytes(part) == b"ir"
    buffers.give(second)
    del second, part
    assert {buffers.take(SIZE)[:5].tobytes() for _ in range(2)} == {b"first", b"other"}


def test_other_sizes_are_not_used_again() -> None:
    buffers = Buffers(SIZE)
    small = buffers.take(5)
    assert bytes(small) == bytes(5)
    buffers.give(small)
    buffers.give(b"bytes")
    buffers.give(bytearray(SIZE))
    assert len(buffers) == 0


def test_what_waits_is_bounded() -> None:
    buffers = Buffers(SIZE)
    for room in [buffers.take(SIZE) for _ in range(SPARE_MAX + 3)]:
        buffers.give(room)
    assert len(buffers) == SPARE_MAX


def test_the_memory_tier_gives_back_what_it_evicts() -> None:
    memory = MemoryTier(3 * EXTENT_BYTES)
    for number, room in enumerate([memory.buffers.take(EXTENT_BYTES) for _ in range(5)]):
        memory.put(key(number), room)
    kept = memory.statistics().extents
    assert kept == 2
    assert len(memory.buffers) == 5 - kept

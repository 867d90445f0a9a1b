"""Memory for extents: used again, but never while somebody looks at it."""

from __future__ import annotations

import gc
import threading

from unifs.cache.buffers import BLOCK_BYTES, CHUNK_EXTENTS, SPARE_MAX, Buffers, in_blocks
from unifs.cache.memory import EXTENT_BYTES, ExtentKey, MemoryTier
from unifs.types import Version

SIZE = 1 << 16


def key(number: int) -> ExtentKey:
    return ExtentKey("s3", "a", Version("v"), number)


def test_all_room_is_apart() -> None:
    buffers = Buffers(SIZE)
    rooms = [buffers.take(SIZE) for _ in range(3 * CHUNK_EXTENTS)]
    for number, room in enumerate(rooms):
        room[:] = bytes([number]) * SIZE
    assert [set(bytes(room)) for room in rooms] == [{number} for number in range(len(rooms))]
    assert buffers.held_bytes == len(rooms) * SIZE


def test_what_nobody_looks_at_is_used_again() -> None:
    buffers = Buffers(SIZE)
    for number in range(100):
        room = buffers.take(SIZE)
        room[:4] = b"%04d" % number
        del room
    assert buffers.held_bytes == CHUNK_EXTENTS * SIZE


def test_a_part_that_is_looked_at_keeps_the_room() -> None:
    buffers = Buffers(SIZE)
    room = buffers.take(SIZE)
    room[:5] = b"first"
    part = memoryview(room)[1:3]
    del room
    others = [buffers.take(SIZE) for _ in range(2 * CHUNK_EXTENTS)]
    for other in others:
        other[:] = bytes(SIZE)
    assert bytes(part) == b"ir"


def test_a_thread_gives_room_back() -> None:
    buffers = Buffers(SIZE)
    held = [buffers.take(SIZE) for _ in range(CHUNK_EXTENTS)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    again = [buffers.take(SIZE) for _ in range(CHUNK_EXTENTS)]
    assert buffers.held_bytes == len(again) * SIZE


def test_chunks_that_nobody_needs_are_given_up() -> None:
    buffers = Buffers(SIZE)
    many = [buffers.take(SIZE) for _ in range(10 * CHUNK_EXTENTS)]
    many.clear()
    one = buffers.take(SIZE)
    assert buffers.held_bytes == (1 + SPARE_MAX) * CHUNK_EXTENTS * SIZE
    assert len(one) == SIZE


def test_a_chunk_that_was_given_up_lives_as_long_as_it_is_looked_at() -> None:
    buffers = Buffers(SIZE)
    room = buffers.take(SIZE)
    room[:] = b"x" * SIZE
    del buffers
    gc.collect()
    assert bytes(room) == b"x" * SIZE


def test_other_sizes_are_memory_like_any_other() -> None:
    buffers = Buffers(SIZE)
    small = buffers.take(5)
    assert bytes(small) == bytes(5)
    assert buffers.held_bytes == 0
    assert not in_blocks(small)
    assert not in_blocks(bytes(BLOCK_BYTES))
    assert not in_blocks(memoryview(bytearray(BLOCK_BYTES)))
    room = buffers.take(SIZE)
    assert in_blocks(room)
    assert not in_blocks(room[1:])


def test_what_the_memory_tier_evicts_is_used_again() -> None:
    memory = MemoryTier(3 * EXTENT_BYTES)
    for number in range(100):
        memory.put(key(number), memory.buffers.take(EXTENT_BYTES))
    assert memory.statistics().extents == 2
    assert memory.buffers.held_bytes == CHUNK_EXTENTS * EXTENT_BYTES

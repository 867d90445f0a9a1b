"""Memory for extents: lent out, and used again as soon as nobody looks at it any more.

``MemoryTier`` owns the one ``Buffers``. Room is cut from chunks of 8 MiB that the kernel backs by
huge pages, where it can. Fresh memory for each extent would cost 0.4 s of the processor's time per
GiB on a virtual machine, zeroing it 0.1; and a disk fills it past the page cache three times as
fast in few large segments as in pages of 4 KiB.

Whoever holds a view holds the room: a reply on its way to the kernel, a thread that writes it to
the disk, the memory tier. The last one to let go, in whatever thread, gives it back.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections import deque
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from unifs.cache.memory import Extent

#: Extents in a chunk: several huge pages.
CHUNK_EXTENTS: Final = 8
#: Chunks without a borrower that are kept.
SPARE_MAX: Final = 2
#: What disks read at once.
BLOCK_BYTES: Final = 4096


class Buffers:
    """Room for what is about to be fetched. Belongs to the event loop's thread."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._chunks: list[_Chunk] = []

    @property
    def held_bytes(self) -> int:
        """What all chunks take."""
        return len(self._chunks) * CHUNK_EXTENTS * self._size_bytes

    def take(self, size: int) -> memoryview:
        """Room for exactly so many bytes. What it holds is undefined."""
        if size != self._size_bytes:
            return memoryview(bytearray(size))
        chunk = next((chunk for chunk in self._chunks if chunk.free), None)
        if chunk is None:
            chunk = _Chunk(size)
            self._chunks.append(chunk)
        room = chunk.lend()
        spare = [chunk for chunk in self._chunks if len(chunk.free) == CHUNK_EXTENTS]
        for chunk in spare[SPARE_MAX:]:
            self._chunks.remove(chunk)
        return room


class _Chunk:
    """Memory for some extents, and which of it is free."""

    def __init__(self, size: int) -> None:
        self._room = ctypes.c_ubyte * size
        self._pages = mmap.mmap(-1, CHUNK_EXTENTS * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):
            # A kernel without huge pages says EINVAL: then they are small.
            self._pages.madvise(mmap.MADV_HUGEPAGE)
        self.free = deque(range(CHUNK_EXTENTS))
        self._lent: dict[int, weakref.ref[Any]] = {}

    def lend(self) -> memoryview:
        number = self.free.popleft()
        room = self._room.from_buffer(self._pages, number * ctypes.sizeof(self._room))
        self._lent[number] = weakref.ref(room, partial(self._returned, number))
        return memoryview(room).cast("B")

    def _returned(self, number: int, _room: weakref.ref[Any]) -> None:
        # In any thread; appending is one step.
        self.free.append(number)


def in_blocks(data: Extent) -> bool:
    """Whether this room can be filled past the page cache."""
    is_room = isinstance(data, memoryview) and isinstance(data.obj, ctypes.Array)
    return is_room and not len(data) % BLOCK_BYTES

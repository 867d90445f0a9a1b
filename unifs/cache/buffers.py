"""Memory for extents, used again: whole blocks that begin where a block does, as disks like them.

``ReadCache`` owns one. A buffer comes back when the memory tier evicts its extent, and is given out
again once nobody looks at it any more: not a reply on its way to the kernel, not a thread that
writes it to the disk. So a long read runs in memory that is there already: fresh memory costs 0.4 s
of the processor's time for each GiB where a hypervisor has to back it, and zeroing it 0.1.

At most ``SPARE_MAX`` buffers wait to be used again. Belongs to the event loop's thread.
"""

from __future__ import annotations

import mmap
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unifs.cache.memory import Extent

SPARE_MAX: Final = 16
#: What disks read and write at once.
BLOCK_BYTES: Final = 4096


class Buffers:
    """Room for what is about to be fetched; of ``size_bytes`` it is used again."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._spare: deque[mmap.mmap] = deque()

    def __len__(self) -> int:
        """How many wait to be used again."""
        return len(self._spare)

    def take(self, size: int) -> memoryview:
        """Room for exactly so many bytes. What it holds is undefined."""
        if size != self._size_bytes:
            return memoryview(bytearray(size))
        for _ in range(len(self._spare)):
            pages = self._spare.popleft()
            if _is_free(pages):
                return memoryview(pages)
            self._spare.append(pages)
        return memoryview(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give(self, data: Extent) -> None:
        """Its owner does not need it any more; others may still look at it."""
        if isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap):
            self._spare.append(data.obj)
            if len(self._spare) > SPARE_MAX:
                self._spare.popleft()


def in_blocks(data: Extent) -> bool:
    """Whether these bytes can go to a disk past the page cache."""
    is_aligned = isinstance(data, memoryview) and isinstance(data.obj, mmap.mmap)
    return is_aligned and not len(data) % BLOCK_BYTES


def _is_free(pages: mmap.mmap) -> bool:
    """Whether nobody holds a view: only then may a mapping be resized, here to what it is."""
    try:
        pages.resize(len(pages))
    except BufferError:
        return False
    return True

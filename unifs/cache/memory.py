"""The memory tier: whole extents, bounded, evicted by a segmented LRU.

``ReadCache`` owns it. It holds what has just been fetched, so that readers are answered before
the disk tier has the extent; what the disk tier serves is not copied here, because the page cache
holds it already. Nothing is allocated until something is fetched. No locks: it belongs to the
event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from unifs.cache.buffers import Buffers
from unifs.cache.evict import SegmentedLru

if TYPE_CHECKING:
    from unifs.types import Version

#: What is fetched and kept at once of an object that is read as a whole.
EXTENT_BYTES: Final = 1 << 20
#: And of one that is read here and there: 512 random reads of 64 KiB of a SeaweedFS take 1.0 s by
#: requests of this size, 8.4 by requests of an extent.
PIECE_BYTES: Final = 128 << 10
#: Key, map entries and object headers of one extent; measured 380–430 bytes on CPython 3.11.
ENTRY_OVERHEAD_BYTES: Final = 400


#: An extent's bytes; nobody changes them once they are whole.
Extent = bytes | bytearray | memoryview


class ExtentKey(NamedTuple):
    """One extent of one version of one object. Cannot go stale: other bytes have another version.

    ``object`` is the object's path at the backend, or "" where the version alone names the bytes
    (a CID). ``number`` counts extents of ``grain_bytes`` from the start of the object.
    """

    mount: str
    object: str
    version: Version
    number: int
    #: EXTENT_BYTES or PIECE_BYTES; the last one of an object may be shorter.
    grain_bytes: int = EXTENT_BYTES

    def length(self, size_bytes: int) -> int:
        """How many bytes it has in an object of that size."""
        return min(size_bytes - self.number * self.grain_bytes, self.grain_bytes)


@dataclass(frozen=True, slots=True)
class MemoryStatistics:
    """What the memory tier holds."""

    bytes: int
    bytes_max: int
    extents: int


class MemoryTier:
    """Extents in memory, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.buffers = Buffers(EXTENT_BYTES)
        #: Of the limit, what extents take that are on their way here.
        self._awaited_bytes = 0
        self._extents: SegmentedLru[ExtentKey, Extent] = SegmentedLru(_weigh)

    def get(self, key: ExtentKey) -> Extent | None:
        """The whole extent, or None."""
        return self._extents.get(key)

    def has(self, key: ExtentKey) -> bool:
        """Whether it is here; no use of it."""
        return key in self._extents

    def expect(self, size_bytes: int) -> None:
        """Buffers for so many bytes are about to be filled (or, below 0, are no more): up to three
        quarters of the limit are theirs."""
        self._awaited_bytes += size_bytes
        self._trim()

    def put(self, key: ExtentKey, data: Extent) -> None:
        """Keep what was fetched; the coldest ones make room. One over the limit is not kept."""
        if _weigh(data) > self.limit_bytes:
            return
        self._extents.put(key, data, is_used=False)
        self._trim()

    def _trim(self) -> None:
        limit_bytes = max(self.limit_bytes - self._awaited_bytes, self.limit_bytes // 4)
        while self._extents.weight > limit_bytes and len(self._extents) > 1:
            self.buffers.give(self._extents.pop_coldest()[1])

    def clear(self) -> None:
        """Give all memory back."""
        self._extents.clear()

    def statistics(self) -> MemoryStatistics:
        """What is held now, and the bound."""
        return MemoryStatistics(self._extents.weight, self.limit_bytes, len(self._extents))


def _weigh(data: Extent) -> int:
    return len(data) + ENTRY_OVERHEAD_BYTES

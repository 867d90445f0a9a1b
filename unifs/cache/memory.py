"""The memory tier: whole extents as bytes, bounded, evicted by a segmented LRU.

``ReadCache`` owns it. It holds what has just been fetched, so that readers are answered before
the disk tier has the extent; what the disk tier serves is not copied here, because the page cache
holds it already. Nothing is allocated until something is fetched. No locks: it belongs to the
event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from unifs.cache.evict import SegmentedLru

if TYPE_CHECKING:
    from unifs.types import Version

#: Key, map entries and object headers of one extent; measured 380–430 bytes on CPython 3.11.
ENTRY_OVERHEAD_BYTES: Final = 400


class ExtentKey(NamedTuple):
    """One extent of one version of one object. Cannot go stale: other bytes have another version.

    ``object`` is the object's path at the backend, or "" where the version alone names the bytes
    (a CID). ``number`` counts extents from the start of the object.
    """

    mount: str
    object: str
    version: Version
    number: int


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
        self._extents: SegmentedLru[ExtentKey, bytes] = SegmentedLru(_weigh)

    def get(self, key: ExtentKey) -> bytes | None:
        """The whole extent, or None."""
        return self._extents.get(key)

    def put(self, key: ExtentKey, data: bytes) -> None:
        """Keep an extent; the coldest ones make room. One over the limit is not kept."""
        if _weigh(data) > self.limit_bytes:
            return
        self._extents.put(key, data)
        while self._extents.weight > self.limit_bytes:
            self._extents.pop_coldest()

    def clear(self) -> None:
        """Give all memory back."""
        self._extents.clear()

    def statistics(self) -> MemoryStatistics:
        """What is held now, and the bound."""
        return MemoryStatistics(self._extents.weight, self.limit_bytes, len(self._extents))


def _weigh(data: bytes) -> int:
    return len(data) + ENTRY_OVERHEAD_BYTES

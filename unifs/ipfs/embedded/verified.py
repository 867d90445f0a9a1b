"""Which places were hashed and found right since the start: a bitmap per file, bounded in memory.

Used by ``blocks`` alone. Forgetting costs one more hash, never correctness.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from unifs.ipfs.embedded.block_index import BlockPlace

#: 16 MiB of bits remember 16 full segments of tiny contents, or 8 TiB of containers.
LIMIT_BYTES: Final = 16 << 20
#: A section is at least 35 bytes, so two never share a 32-byte slot.
_SECTION_SHIFT: Final = 5
#: No profile's chunk is smaller than 64 KiB; only the last one of a file is shorter.
_CONTAINER_SHIFT: Final = 16


class VerifiedPlaces:
    """A set of places. Thread-safe."""

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._bits: OrderedDict[tuple[bool, int], bytearray] = OrderedDict()
        self._lock = threading.Lock()

    def __contains__(self, place: BlockPlace) -> bool:
        key, slot = _slot(place)
        with self._lock:
            bits = self._bits.get(key)
            if bits is None:
                return False
            self._bits.move_to_end(key)
            return slot >> 3 < len(bits) and bool(bits[slot >> 3] >> (slot & 7) & 1)

    def add(self, place: BlockPlace) -> None:
        """Remember a place; forgets the file used longest ago where there is no room."""
        key, slot = _slot(place)
        with self._lock:
            bits = self._bits.setdefault(key, bytearray())
            if slot >> 3 >= len(bits):
                # Grow in steps, so that a sequential reader does not extend byte by byte.
                more = (slot >> 3) + 1024 - len(bits)
                bits.extend(bytes(more))
                self.size_bytes += more
            bits[slot >> 3] |= 1 << (slot & 7)
            self._bits.move_to_end(key)
            while self.size_bytes > self.limit_bytes and len(self._bits) > 1:
                _, dropped = self._bits.popitem(last=False)
                self.size_bytes -= len(dropped)

    def forget(self, holder: int, is_section: bool) -> None:
        """The file is gone; its number may come again."""
        with self._lock:
            dropped = self._bits.pop((is_section, holder), b"")
            self.size_bytes -= len(dropped)


def _slot(place: BlockPlace) -> tuple[tuple[bool, int], int]:
    is_section = place.kind == 0
    return (is_section, place.holder), place.offset >> (
        _SECTION_SHIFT if is_section else _CONTAINER_SHIFT
    )

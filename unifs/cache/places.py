"""What the disk tier holds: files of extents in the order of their use, and where each extent is.

``DiskTier`` owns one. It belongs to the event loop's thread and touches no disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.cache.evict import SegmentedLru

if TYPE_CHECKING:
    from unifs.cache.shelf import Held

    Place = tuple[Held, int]


class Places:
    """Files by name, extents by digest."""

    def __init__(self) -> None:
        self._files: SegmentedLru[str, Held] = SegmentedLru(lambda held: held.size_bytes)
        self._extents: dict[bytes, Place] = {}

    def __len__(self) -> int:
        """How many extents there are."""
        return len(self._extents)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._extents

    @property
    def size_bytes(self) -> int:
        """What all files take on disk."""
        return self._files.weight

    def get(self, digest: bytes) -> Place | None:
        """In which file an extent is, and at which place there; no use of it.

        The same object as long as it stays there.
        """
        return self._extents.get(digest)

    def use(self, digest: bytes) -> Place | None:
        """As ``get``, and one use of the file."""
        place = self._extents.get(digest)
        if place is not None:
            self._files.get(place[0].name)
        return place

    def add(self, held: Held) -> None:
        """Its extents are in this file from now on."""
        self._files.put(held.name, held)
        for number, digest in enumerate(held.digests):
            self._extents[digest] = held, number

    def remove(self, held: Held) -> bool:
        """Forget a file; whether it was there."""
        if self._files.get(held.name) is not held:
            return False
        self._files.pop(held.name)
        self._forget(held)
        return True

    def pop_coldest(self) -> Held | None:
        """Forget the file that is least likely to be used again; None where there is none."""
        if not len(self._files):
            return None
        held = self._files.pop_coldest()[1]
        self._forget(held)
        return held

    def _forget(self, held: Held) -> None:
        for digest in held.digests:
            place = self._extents.get(digest)
            if place is not None and place[0] is held:
                del self._extents[digest]

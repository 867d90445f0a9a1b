"""Hot inodes and the kernel's look-up counts.

Readdirplus makes the kernel remember every name it has ever listed; an object for each would cost
700 bytes, so objects are an LRU of ``HOT_MAX`` while the counts, which must be exact, lie in a
compact array by inode number (4 bytes each). An inode that left the table is loaded again by its
volume.
"""

from __future__ import annotations

from array import array
from itertools import islice
from typing import TYPE_CHECKING

from unifs.errors import Stale
from unifs.vfs.volume import INO_SHIFT

if TYPE_CHECKING:
    from unifs.vfs.volume import Inode, Volume

HOT_MAX = 50_000
EVICTED_TOGETHER = 64
_GROW = 1 << 16


class Inodes:
    """The table of hot inodes, for all volumes."""

    def __init__(self, hot_max: int = HOT_MAX) -> None:
        self.hot: dict[int, Inode] = {}
        self.volumes: dict[int, Volume] = {}
        #: Volume of a tree inode, by the mount number in its row.
        self.hot_max = hot_max
        self.counts = array("I", bytes(4 * _GROW))
        self._far: dict[int, int] = {}
        #: By prefix: how many inodes of it the kernel remembers; none has no entry.
        self.known: dict[int, int] = {}
        self.evictions = 0

    def get(self, ino: int) -> Inode:
        """The inode, hot or loaded; Stale if it is gone."""
        inode = self.hot.get(ino)
        if inode is None:
            volume = self.volumes.get(ino >> INO_SHIFT)
            if volume is None:
                raise Stale
            inode = self.add(volume.load(ino))
        return inode

    def add(self, inode: Inode) -> Inode:
        """Make an inode hot; the oldest that nobody needs make room."""
        hot = self.hot
        hot[inode.ino] = inode
        if len(hot) > self.hot_max:
            self._evict()
        return inode

    def _evict(self) -> None:
        hot = self.hot
        # Who looks for the oldest passes all that have left before it: 10 µs, so many go together.
        count = min(EVICTED_TOGETHER, len(hot) - self.hot_max * 7 // 8)
        for oldest in list(islice(hot, count)):
            inode = hot.pop(oldest)
            if inode.is_busy():
                hot[oldest] = inode
            else:
                self.evictions += 1

    def remember(self, ino: int) -> None:
        """One look-up more that the kernel will forget."""
        if ino >> INO_SHIFT:
            before = self._far.get(ino, 0)
            self._far[ino] = before + 1
            if not before:
                prefix = ino >> INO_SHIFT
                self.known[prefix] = self.known.get(prefix, 0) + 1
            return
        try:
            self.counts[ino] += 1
        except IndexError:
            short = ino + 1 - len(self.counts)
            self.counts.frombytes(bytes(4 * max(short, len(self.counts))))
            self.counts[ino] += 1

    def count(self, ino: int) -> int:
        """How many look-ups the kernel still remembers."""
        if ino >> INO_SHIFT:
            return self._far.get(ino, 0)
        return self.counts[ino] if ino < len(self.counts) else 0

    def forget(self, ino: int, lookups: int) -> None:
        """The kernel forgets that many look-ups."""
        if ino >> INO_SHIFT:
            if ino not in self._far:
                return
            left = self._far[ino] = self._far[ino] - lookups
            if left <= 0:
                del self._far[ino]
                self._unknown(ino >> INO_SHIFT)
                volume = self.volumes.get(ino >> INO_SHIFT)
                if volume is not None:
                    volume.forgotten(ino)
            return
        left = self.counts[ino] = max(0, self.counts[ino] - lookups)
        if left <= 0:
            inode = self.hot.get(ino)
            if inode is not None:
                inode.volume.forgotten(ino)

    def _unknown(self, prefix: int) -> None:
        left = self.known.get(prefix, 1) - 1
        if left > 0:
            self.known[prefix] = left
        else:
            self.known.pop(prefix, None)

    def drop_volume(self, prefix: int) -> None:
        """Nobody remembers any of its inodes; who asks for one from now on is told Stale."""
        del self.volumes[prefix]
        for ino in [ino for ino in self.hot if ino >> INO_SHIFT == prefix]:
            del self.hot[ino]

    def drop(self, ino: int) -> None:
        """The object is no longer wanted."""
        self.hot.pop(ino, None)

    def statistics(self) -> dict[str, int]:
        return {
            "hot": len(self.hot),
            "hot_max": self.hot_max,
            "evictions": self.evictions,
            "counts_bytes": 4 * len(self.counts),
        }

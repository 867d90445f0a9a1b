"""Which container holds which bytes of a large content.

An ``ExtentMap`` is a sorted list of disjoint ranges, each naming the container that holds it at
the same offset. What no range covers is a hole and reads as zeros. A writer's overlay starts with
a copy of its base's map and lays its own container over what it writes, so a sealed overlay is a
content like any other and nothing is ever chained.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_ROW = struct.Struct("<QQQ")

#: Stands for "no container" in ``pieces``: a hole.
HOLE = 0


class ExtentMap:
    """Ranges ``[start, end)`` by start, with their containers; adjacent equals are merged."""

    __slots__ = ("containers", "ends", "starts")

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.containers: list[int] = []

    @classmethod
    def unpack(cls, blob: bytes) -> ExtentMap:
        """From ``pack``'s bytes."""
        made = cls()
        for start, length, container in _ROW.iter_unpack(blob):
            made.starts.append(start)
            made.ends.append(start + length)
            made.containers.append(container)
        return made

    def pack(self) -> bytes:
        """24 bytes per range: start, length, container, little-endian."""
        return b"".join(
            _ROW.pack(start, end - start, container)
            for start, end, container in zip(self.starts, self.ends, self.containers, strict=True)
        )

    def copy(self) -> ExtentMap:
        made = ExtentMap()
        made.starts = self.starts.copy()
        made.ends = self.ends.copy()
        made.containers = self.containers.copy()
        return made

    def lay(self, start: int, end: int, container: int) -> None:
        """``container`` now holds ``[start, end)``, whatever held it before."""
        ends = self.ends
        if ends and self.containers[-1] == container and self.starts[-1] <= start <= ends[-1]:
            if end > ends[-1]:
                ends[-1] = end
            return
        if start >= end:
            return
        self._cut(start, end)
        self._insert(start, end, container)

    def _cut(self, start: int, end: int) -> None:
        """Make ``[start, end)`` a hole."""
        first = bisect_right(self.ends, start)
        starts, ends, containers = self.starts, self.ends, self.containers
        last = first
        while last < len(starts) and starts[last] < end:
            last += 1
        if first == last:
            return
        head = (starts[first], start, containers[first]) if starts[first] < start else None
        tail = (end, ends[last - 1], containers[last - 1]) if ends[last - 1] > end else None
        kept = [row for row in (head, tail) if row is not None]
        starts[first:last] = [row[0] for row in kept]
        ends[first:last] = [row[1] for row in kept]
        containers[first:last] = [row[2] for row in kept]

    def _insert(self, start: int, end: int, container: int) -> None:
        at = bisect_right(self.starts, start)
        starts, ends, containers = self.starts, self.ends, self.containers
        if at and ends[at - 1] == start and containers[at - 1] == container:
            ends[at - 1] = end
            at -= 1
        else:
            starts.insert(at, start)
            ends.insert(at, end)
            containers.insert(at, container)
        after = at + 1
        if after < len(starts) and starts[after] == end and containers[after] == container:
            ends[at] = ends[after]
            del starts[after], ends[after], containers[after]

    def truncate(self, size: int) -> None:
        """Nothing at or beyond ``size`` is held by anybody."""
        if self.ends and self.ends[-1] > size:
            self._cut(size, self.ends[-1])

    def single(self, offset: int, end: int) -> int:
        """The container that holds all of ``[offset, end)``, or ``HOLE`` if none does alone."""
        at = bisect_right(self.starts, offset) - 1
        if at >= 0 and self.ends[at] >= end:
            return self.containers[at]
        return HOLE

    def pieces(self, offset: int, end: int) -> Iterator[tuple[int, int, int]]:
        """(container or HOLE, start, end) covering ``[offset, end)`` in order."""
        at = bisect_right(self.ends, offset)
        while offset < end:
            if at >= len(self.starts) or self.starts[at] >= end:
                yield HOLE, offset, end
                return
            if self.starts[at] > offset:
                yield HOLE, offset, self.starts[at]
                offset = self.starts[at]
            stop = min(self.ends[at], end)
            yield self.containers[at], offset, stop
            offset = stop
            at += 1

    def is_hole(self, start: int, end: int) -> bool:
        """Whether nobody holds any of ``[start, end)``."""
        at = bisect_right(self.ends, start)
        return at >= len(self.starts) or self.starts[at] >= end

    def held_by(self, container: int) -> int:
        """How many bytes that container holds."""
        return sum(
            end - start
            for start, end, holder in zip(self.starts, self.ends, self.containers, strict=True)
            if holder == container
        )

    def held_bytes(self) -> int:
        """How many bytes some container holds: all but the holes."""
        return sum(self.ends) - sum(self.starts)

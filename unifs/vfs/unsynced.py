"""Unsynced: how much of a volume exists only here, and who has to wait because of it.

Each tree volume has one. Its handles ask before they write (``admit``) and tell what they wrote;
what takes bytes off again is the volume's kind: /mfs counts until they are sealed, a mount with a
backend until that has them. Beyond ``max_bytes`` writers of this volume wait, and hear NoSpace
where nothing moves; deletes and other volumes never ask.

Belongs to the event loop's thread. Counting never fails and never waits.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from unifs.errors import NoSpace
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.treeinode import TreeInode

#: How long a writer waits for space; below the driver's deadline for writes, so that it hears why.
ADMIT_S = 20.0
MAX_BYTES = 10 << 30
#: Small contents of so many records are counted off together: 1,000 closes a second, which wait 5 s
#: for their flush round, are a handful of numbers.
TOGETHER = 1024


class Unsynced:
    """Bytes of one volume that exist only here."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.size_bytes = 0
        self.max_bytes = MAX_BYTES
        #: Asked to bring bytes where they belong, now; returns at once.
        self.hurry: Callable[[], None] = _nothing
        self._less = trio.Event()
        #: Small contents that wait for a flush round: (first record, last record, bytes).
        self._closed: deque[tuple[int, int, int]] = deque()

    def is_pressed(self) -> bool:
        """Whether so much is here that nobody should wait until a file comes to rest."""
        return self.size_bytes > self.max_bytes // 2

    def admit(self, size: int) -> None:
        """WouldBlock while too much is here; NoSpace where that does not pass."""
        if self.size_bytes + size > self.max_bytes and self.size_bytes:
            raise WouldBlock(self._wait, self._name)

    async def _wait(self) -> object:
        self.hurry()
        with trio.move_on_after(ADMIT_S):
            await self._less.wait()
            return RETRY
        raise NoSpace(
            f"{self.size_bytes} bytes of {self._name} wait to be stored, journal.dirty_bytes_max"
            f" is {self.max_bytes}"
        )

    def wrote(self, inode: TreeInode, size: int) -> None:
        """Count what was written; of one inode never more than its size.

        What has no name is not kept for anybody and not counted.
        """
        if inode.is_gone:
            return
        held = inode.unsynced_bytes
        room = inode.attributes.st_size - held
        if size > room:
            size = room if room > 0 else 0
        inode.unsynced_bytes = held + size
        self.size_bytes += size

    def cut(self, inode: TreeInode) -> None:
        """The inode was cut off at its present size."""
        self.reached(inode, max(0, inode.unsynced_bytes - inode.attributes.st_size))

    def reached(self, inode: TreeInode, size: int) -> None:
        """That many of an inode's bytes are where they belong, or gone."""
        size = min(size, inode.unsynced_bytes)
        inode.unsynced_bytes -= size
        self._fell(size)

    def closed(self, inode: TreeInode, seq: int) -> None:
        """The inode's bytes stand in a segment: the flush round that covers ``seq`` stores them."""
        size, inode.unsynced_bytes = inode.unsynced_bytes, 0
        if not size:
            return
        first = seq
        if self._closed and seq - self._closed[-1][0] < TOGETHER:
            first, _, before = self._closed.pop()
            size += before
        self._closed.append((first, seq, size))

    def flushed(self, seq: int) -> None:
        """Flush rounds have stored the small contents of all records up to ``seq``."""
        while self._closed and self._closed[0][1] <= seq:
            self._fell(self._closed.popleft()[2])

    def _fell(self, size: int) -> None:
        if size:
            self.size_bytes -= size
            self._less.set()
            self._less = trio.Event()


def _nothing() -> None:
    pass

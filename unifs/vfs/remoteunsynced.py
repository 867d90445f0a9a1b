"""Unsynced: how much of a remote volume exists only here, and who has to wait because of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.errors import NoSpace
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume

#: How long a writer waits for space; below the driver's deadline for writes, so that it hears why.
ADMIT_S = 20.0


class Unsynced:
    """Bytes of one volume that have not reached the backend."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume
        self.size_bytes = 0
        self.max_bytes = 10 << 30
        self._less = trio.Event()

    def admit(self, size: int) -> None:
        """WouldBlock while too much is unsynced; NoSpace where that does not pass."""
        if self.size_bytes + size > self.max_bytes and self.size_bytes:
            raise WouldBlock(self._wait, self._volume.name)

    async def _wait(self) -> object:
        self._volume.sync.hurry_all()
        with trio.move_on_after(ADMIT_S):
            await self._less.wait()
            return RETRY
        raise NoSpace(f"{self.size_bytes} bytes have not reached {self._volume.name} yet")

    def wrote(self, inode: RemoteInode, size: int) -> None:
        """Count what was written; of one inode never more than its size."""
        more = min(size, max(0, inode.attributes.st_size - inode.unsynced_bytes))
        inode.unsynced_bytes += more
        self.size_bytes += more

    def reached(self, inode: RemoteInode, size: int) -> None:
        """That many of an inode's bytes are at the backend, or gone."""
        size = min(size, inode.unsynced_bytes)
        inode.unsynced_bytes -= size
        self.size_bytes -= size
        if size:
            self._less.set()
            self._less = trio.Event()

"""Bases: the bytes of a remote file, brought into an overlay before its first write.

The copying outlives whoever waits for it: a caller that gives up and asks again joins what is under
way. It runs in the volume's nursery, one per inode.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import Stale, TryAgain, UnifsError, from_os_error
from unifs.journal.overlay import Overlay
from unifs.vfs.remotefile import is_remote
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume

PIECE_BYTES = 1 << 20


class Bases:
    """Brings bases for one volume."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume
        self.nursery: trio.Nursery | None = None
        self._running: dict[int, trio.Event] = {}
        #: What became of the last attempt, for the caller that looks next.
        self._failures: dict[int, UnifsError | OSError] = {}

    def need(self, inode: RemoteInode) -> None:
        """Always raises: WouldBlock, or why the bytes could not be had."""
        failure = self._failures.pop(inode.ino, None)
        if failure is not None:
            raise failure
        raise WouldBlock(partial(self._wait, inode), self._volume.name)

    async def _wait(self, inode: RemoteInode) -> object:
        running = self._running.get(inode.ino)
        if running is None:
            if self.nursery is None:
                raise TryAgain("the mount is not served now")
            running = self._running[inode.ino] = trio.Event()
            self.nursery.start_soon(self._bring, inode, running)
        await running.wait()
        return RETRY

    async def _bring(self, inode: RemoteInode, done: trio.Event) -> None:
        overlays = self._volume.overlays
        overlay = Overlay()
        version = inode.version
        inode.opens += 1
        try:
            await self._copy(inode, overlay)
        except (UnifsError, OSError) as error:
            overlays.discard(overlay)
            self._failures[inode.ino] = (
                from_os_error(error) if isinstance(error, OSError) else error
            )
        except BaseException:
            overlays.discard(overlay)
            raise
        else:
            overlay.is_dirty = False
            if inode.overlay is None and is_remote(inode) and inode.version == version:
                inode.based_on = version
                self._volume.writer.attach(inode, overlay)
            else:
                overlays.discard(overlay)
        finally:
            inode.opens -= 1
            del self._running[inode.ino]
            done.set()

    async def _copy(self, inode: RemoteInode, overlay: Overlay) -> None:
        volume = self._volume
        version, path, size = inode.version, inode.path or "", inode.attributes.st_size
        offset = 0
        while offset < size:
            length = min(PIECE_BYTES, size - offset)
            piece = await volume.mount.read(path, version, offset, length)
            if not piece:
                raise Stale(f"{path} is shorter than its backend said")
            volume.overlays.write(overlay, offset, piece)
            offset += len(piece)

"""fsync that waits for the backend too: ``durability = "backend"``.

Called by handles of remote volumes. What was written is durable on this machine first; then this
waits until the backend has confirmed it. It fails with the reason where the backend refuses, and
where nothing has moved for ``STALL_S``: neither a byte nor a confirmation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from unifs.errors import DeadlineExceeded, UnifsError
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.vfs.remoterows import RemoteInode
    from unifs.vfs.remotevolume import RemoteVolume

STALL_S = 60.0
LOOK_S = 1.0


async def sync_file(volume: RemoteVolume, inode: RemoteInode) -> None:
    """Return when the backend has the file as it is now, or newer."""
    await volume.writer.durability.make_durable(inode)
    version, confirmed = inode.version, 0

    def is_there() -> bool:
        # Somebody goes on writing. One confirmation may be of an upload that began before; the
        # second one is not.
        nonlocal version, confirmed
        if inode.version != version:
            version, confirmed = inode.version, confirmed + 1
        return confirmed >= 2

    await _wait(volume, [inode.ino], is_there)


async def sync_directory(volume: RemoteVolume, inode: RemoteInode) -> None:
    """Return when the backend has every change made before at and below a directory."""
    await complete(volume.commit_names, inode.ino)
    await volume.storage.flusher.flush()
    top = None if inode.ino == volume.root else inode.ino
    await _wait(volume, volume.status.inos(top), lambda: False)


async def _wait(volume: RemoteVolume, inos: list[int], is_there: Callable[[], bool]) -> None:
    is_stalled = False
    failure: UnifsError | None = None

    async def watch() -> None:
        nonlocal is_stalled
        moved, moved_at = _moved(volume), trio.current_time()
        while not is_there() and not is_stalled:
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            if _moved(volume) != moved:
                moved, moved_at = _moved(volume), now
            is_stalled = now - moved_at > STALL_S
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        try:
            await volume.writeback.sync(inos)
        except UnifsError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is None and is_stalled:
        dues = volume.writeback.dues
        reasons = [dues[ino].error for ino in inos if ino in dues]
        failure = next(filter(None, reasons), None) or DeadlineExceeded(
            f"nothing moved to {volume.name} for {STALL_S:g} s"
        )
    if failure is not None:
        raise failure


def _moved(volume: RemoteVolume) -> tuple[int, int]:
    return volume.writeback.confirmed, volume.moved_bytes()

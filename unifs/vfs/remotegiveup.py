"""Giving a change up by hand: what the backend has takes its place.

For a quarantined change that can never succeed, or that its owner does not want any more. The local
object leaves the tree (whoever has it open keeps it until then); where the backend has an object of
its own, the next look-up or listing brings it back. Nothing is sent to the backend.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unifs.errors import Unsynced
from unifs.vfs.remotedrop import drop

if TYPE_CHECKING:
    from unifs.vfs.remotevolume import RemoteVolume


def give_up(volume: RemoteVolume, ino: int) -> None:
    """Forget the change of one inode.

    Unsynced for a directory with changes below it that are not given up themselves, or are being
    made: they would go with it.
    """
    sync, tree = volume.sync, volume.tree
    known, wanted = sync.known(ino), sync.wanted(ino)
    if known is not None and known.attempt is not None:
        sync.end(ino)
    if wanted is not None and known is not None and known.path is not None:
        is_same_place = sync.heir(known.path) == ino
        if is_same_place and (wanted.key is None or wanted.key == known.synced):
            # Attributes that the backend does not keep: they stay here, and it is not told.
            sync.told(ino)
            volume.writeback.retry(ino)
            return
    if wanted is not None:
        _end_below(volume, ino)
        inode = volume.hot_or_row(ino)
        if inode is not None:
            volume.unsynced.reached(inode, inode.unsynced_bytes)
        for parent, _ in tree.names_of(ino):
            _unlist(volume, parent)
        drop(volume, ino)
    else:
        sync.removed(ino, False)
    if known is not None and known.path is not None:
        above = known.path.rpartition("/")[0]
        _unlist(volume, sync.at(above) if above else volume.root)
    # Tree and backend agree now: writeback finds nothing to do and settles the records.
    volume.writeback.retry(ino)


def _end_below(volume: RemoteVolume, ino: int) -> None:
    """The attempts of what is given up with a directory have ended; Unsynced as ``give_up``."""
    sync, tree = volume.sync, volume.tree
    if any(tree.is_below(above, ino) for above in sync.uncommitted_in()):
        raise Unsynced("a file below it is being written to")
    dues = volume.writeback.dues.values()
    below = [due for due in dues if due.ino != ino and tree.is_below(due.ino, ino)]
    others = sum(not due.is_quarantined for due in below)
    if others:
        raise Unsynced(f"{others} changes below it wait for the backend and would be lost")
    for due in below:
        known = sync.known(due.ino)
        if known is not None and known.attempt is not None:
            sync.end(due.ino)


def _unlist(volume: RemoteVolume, ino: int) -> None:
    inode = volume.hot_or_row(ino) if ino else None
    if inode is not None:
        inode.unlist()
        volume.tree.commit([volume.remotes.store(inode)])
        volume.tell_inode(ino)

"""What of a remote volume has not reached its backend; and the bound of its rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unifs.vfs.remoterows import UNLISTED

if TYPE_CHECKING:
    from unifs.journal.writeback_due import Due
    from unifs.vfs.remotevolume import RemoteVolume

OLDEST = "select min(time_ns) from journal where ino=? and state is not null"
#: Rows that the backend can give again, the longest unasked first.
TRIMMABLE = (
    "select r.ino,i.parent from remote r join inode i on i.ino=r.ino where r.mount=? and"
    " not r.local and r.path<>x'' and i.parent<>0 and not exists"
    " (select 1 from dentry d where d.parent=r.ino) limit ?"
)


@dataclass(frozen=True, slots=True)
class Waiting:
    """One inode that the backend does not have as it is here.

    ``state`` is open, closed, sealed or quarantined; ``path`` the mount's own with a leading slash,
    None where no name is left (the removal is what waits); ``reason`` the last failure, "" if none.
    """

    ino: int
    sequence: int
    state: str
    path: bytes | None
    size_bytes: int
    time_s: float
    reason: str


class RemoteStatus:
    """Answers for one volume. ``top`` is the inode below which to look, None: all of it."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume

    def count(self) -> int:
        """How many inodes wait, quarantined ones included; 0 means that nothing would be lost."""
        self._volume.writeback.collect()
        return len(self._volume.writeback.dues)

    def waiting(self, top: int | None = None) -> list[Waiting]:
        """All that waits, the oldest first."""
        found = [self._waiting(due) for due in self._dues(top)]
        return sorted(found, key=lambda waiting: waiting.sequence)

    def quarantined(self) -> list[Waiting]:
        """What was given up, and why."""
        return [waiting for waiting in self.waiting() if waiting.state == "quarantined"]

    def inos(self, top: int | None = None) -> list[int]:
        """The inodes that wait, as ``Writeback.sync`` takes them."""
        return [due.ino for due in self._dues(top)]

    def _dues(self, top: int | None) -> list[Due]:
        writeback = self._volume.writeback
        writeback.collect()
        return [due for due in writeback.dues.values() if self._volume.tree.is_below(due.ino, top)]

    def _waiting(self, due: Due) -> Waiting:
        volume = self._volume
        inode = volume.hot_or_row(due.ino)
        state = "quarantined" if due.is_quarantined else "closed"
        if inode is not None and not due.is_quarantined:
            state = volume.state_of(inode)
        oldest = volume.tree.database.one(OLDEST, (due.ino,))[0]
        return Waiting(
            due.ino,
            due.seq,
            state,
            volume.tree.path(due.ino),
            0 if inode is None else inode.attributes.st_size,
            (oldest or time.time_ns()) / 1e9,
            str(due.error or ""),
        )


def trim(volume: RemoteVolume, limit: int) -> int:
    """Drop up to ``limit`` rows that the backend can give again; how many went."""
    rows = volume.tree.database.all(TRIMMABLE, (volume.mount_id, limit))
    count = 0
    for ino, parent in rows:
        hot = volume.inodes.hot.get(ino)
        if volume.inodes.count(ino) or (hot is not None and hot.is_busy()):
            continue
        if volume.writeback.is_due(ino) or volume.tree.xattrs(ino):
            continue
        above = volume.hot_or_row(parent)
        if above is None:
            continue
        for where, name in list(volume.tree.parents(ino, parent)):
            above.listing, above.cursor = UNLISTED, None
            volume.tree.commit([volume.remotes.store(above)])
            volume.merge.drop(where, name, ino)
            count += 1
    return count

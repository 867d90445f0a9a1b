"""What of a remote volume has not reached its backend; and the bound of its rows."""

from __future__ import annotations

import heapq
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unifs.journal.content import SEALED
from unifs.vfs.remotedrop import drop
from unifs.vfs.tree import ATTRIBUTES
from unifs.vfs.treeinode import TreeInode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.journal.writeback_due import Due
    from unifs.vfs.remotevolume import RemoteVolume

OLDEST = "select min(time_ns) from journal where ino=? and state is not null"
FIRST = (
    "select min(j.time_ns) from journal j join inode i on i.ino=j.ino"
    " where j.state is not null and i.mount=?"
)
#: Looked at in one piece where the caller has time: some 3 ms.
STEP_DUES = 256
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


@dataclass(slots=True)
class Counts:
    """How many inodes wait in each state, their bytes, and when the oldest change was made.

    ``sent_bytes`` are those of large objects on their way of which the backend has stored parts.
    """

    open: int = 0
    closed: int = 0
    sealed: int = 0
    quarantined: int = 0
    size_bytes: int = 0
    sent_bytes: int = 0
    oldest_s: float | None = None


class Below:
    """Whether inodes are, or lie below, one; each directory is looked at once.

    What has no name any more is where the backend has it.
    """

    def __init__(self, volume: RemoteVolume, top: int) -> None:
        self._volume = volume
        self._known = {top: True, volume.root: top == volume.root}
        inode = volume.hot_or_row(top)
        self._path = None if inode is None or inode.path is None else f"{inode.path}/"

    def __call__(self, ino: int) -> bool:
        known = self._known.get(ino)
        if known is not None:
            return known
        tree = self._volume.tree
        row = tree.inode_row(ino)
        if row is None or row[3] is not None:
            there = self._volume.remotes.known(ino)
            path = None if there is None else there.path
            return path is not None and self._path is not None and path.startswith(self._path)
        is_below = any(self(parent) for parent, _ in tree.parents(ino, row[1]))
        if stat.S_ISDIR(ATTRIBUTES.unpack(row[4])[0]):
            self._known[ino] = is_below
        return is_below


def _seq(due: Due) -> int:
    return due.seq


class RemoteStatus:
    """Answers for one volume. ``top`` is the inode below which to look, None: all of it."""

    def __init__(self, volume: RemoteVolume) -> None:
        self._volume = volume

    def count(self) -> int:
        """How many inodes wait, quarantined ones included; 0 means that nothing would be lost."""
        self._volume.writeback.collect()
        return len(self._volume.writeback.dues)

    def waiting(self, top: int | None = None, limit: int | None = None) -> list[Waiting]:
        """What waits, the oldest first: all of it, or the first ``limit``."""
        dues = self._dues(top)
        chosen = sorted(dues, key=_seq) if limit is None else heapq.nsmallest(limit, dues, _seq)
        return [self._waiting(due) for due in chosen]

    def quarantined(self, top: int | None = None) -> list[Waiting]:
        """What was given up, and why, the oldest first."""
        dues = [due for due in self._dues(top) if due.is_quarantined]
        return [self._waiting(due) for due in sorted(dues, key=_seq)]

    def inos(self, top: int | None = None) -> list[int]:
        """The inodes that wait, as ``Writeback.sync`` takes them."""
        return [due.ino for due in self._dues(top)]

    def counts(self, top: int | None = None) -> Counts:
        """How many wait in which state: 1 µs each where ``top`` is None, some 10 µs else."""
        counts = Counts()
        for _ in self.counting(counts, top):
            continue
        return counts

    def counting(self, counts: Counts, top: int | None) -> Iterator[None]:
        """Do what ``counts`` says, with a pause after some of them, for whoever has the time."""
        writeback = self._volume.writeback
        writeback.collect()
        is_below = None if top is None else Below(self._volume, top)
        for number, due in enumerate(list(writeback.dues.values()), 1):
            if number % STEP_DUES == 0:
                yield
            if is_below is not None:
                if not is_below(due.ino):
                    continue
                counts.size_bytes += self._size(due.ino)
            counts.sent_bytes += self.sent(due) or 0
            setattr(counts, state := self._state(due), getattr(counts, state) + 1)
        if top is None:
            counts.size_bytes = self._volume.unsynced.size_bytes
        row = self._volume.tree.database.one(FIRST, (self._volume.mount_id,))
        counts.oldest_s = None if row[0] is None else row[0] / 1e9

    def sent(self, due: Due) -> int | None:
        """How many bytes of its large object the backend has stored; None: none is on its way."""
        if due.step is None or due.step.verb != "put":
            return None
        return self._volume.mount.sent(due.step.path)

    def _state(self, due: Due) -> str:
        if due.is_quarantined:
            return "quarantined"
        inode = self._volume.inodes.hot.get(due.ino)
        if isinstance(inode, TreeInode):
            if inode.is_dirty() or inode.writers:
                return "open"
            if getattr(inode.content, "state", SEALED) != SEALED:
                return "closed"
        is_sealed = due.seq <= self._volume.storage.flusher.sealed_seq
        return "sealed" if is_sealed else "closed"

    def _size(self, ino: int) -> int:
        row = self._volume.tree.inode_row(ino)
        return 0 if row is None else int(ATTRIBUTES.unpack(row[4])[4])

    def _dues(self, top: int | None) -> list[Due]:
        writeback = self._volume.writeback
        writeback.collect()
        if top is None:
            return list(writeback.dues.values())
        is_below = Below(self._volume, top)
        return [due for due in writeback.dues.values() if is_below(due.ino)]

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
        above.unlist()
        volume.tree.commit([volume.remotes.store(above)])
        drop(volume, ino)
        count += 1
    return count

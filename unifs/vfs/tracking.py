"""Tracking: of which directories a past is kept.

Everything in /mfs is tracked but what a user took out, with all that lies below it. Mounts whose
names and bytes are a backend's are not: what they were is the backend's to say.

``Tree`` asks before it keeps a row. The answer comes from memory; who moves a directory or changes
what is tracked calls ``forget``.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unifs.state.database import Database
    from unifs.vfs.treeinode import TreeInode

#: Directories whose answer is remembered: 1 MiB.
KNOWN_MAX = 10_000


class Tracking:
    """Belongs to the event loop's thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Directories that are not tracked (None) or were not until that epoch.
        self._until: dict[int, int | None] = dict(database.all("select ino,until from untracked"))
        #: Those that are not tracked, by inode number.
        self.untracked = {ino for ino, until in self._until.items() if until is None}
        self._mounts: set[int] = set()
        self._known: dict[int, bool] = {}

    def leave_out(self, mount_id: int) -> None:
        """Keep no past of a whole mount."""
        self._mounts.add(mount_id)
        self.forget()

    def set_until(self, ino: int, until: int | None) -> None:
        """A directory is not tracked (None), or is again from that epoch on."""
        self._until[ino] = until
        self.untracked.discard(ino)
        if until is None:
            self.untracked.add(ino)
        self.forget()

    def hidden(self, epoch: int) -> frozenset[int]:
        """Directories of whose past in an epoch not everything was kept."""
        return frozenset(
            ino for ino, until in self._until.items() if until is None or epoch < until
        )

    def forget(self) -> None:
        """A directory moved, or what is tracked changed."""
        self._known.clear()

    def keeps(self, directory: int) -> bool:
        """Whether a past of the names in a directory is kept."""
        known = self._known.get(directory)
        if known is None:
            known = self._look(directory)
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[directory] = known
        return known

    def keeps_inode(self, inode: TreeInode) -> bool:
        """Whether a past of an inode is kept; with several names one that is tracked is enough."""
        if stat.S_ISDIR(inode.attributes.st_mode):
            return self.keeps(inode.ino)
        if inode.parent:
            return self.keeps(inode.parent)
        query = "select distinct parent from link where ino=?"
        parents = [parent for (parent,) in self._database.all(query, (inode.ino,))]
        return not parents or any(self.keeps(parent) for parent in parents)

    def _look(self, directory: int) -> bool:
        ino = directory
        while ino and ino not in self.untracked:
            row = self._database.one("select mount,parent from inode where ino=?", (ino,))
            if row is None:
                return True
            if row[0] in self._mounts:
                return False
            if not self.untracked:
                return True
            ino = row[1]
        return not ino

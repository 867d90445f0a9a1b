"""Renaming in a tree volume: replace, exchange, and what may not move where.

One transaction with the rows of both inodes and one journal record; an exchange has one for each.
The inode that loses its name to another stays, with the bytes that it had, until that one's bytes
are sealed (``guards``): after a power cut it may have to come back.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from unifs.errors import (
    Exists,
    InvalidArgument,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
)
from unifs.journal.log import Op, Renamed, pack_rename
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treenames import DELETE_LINK, INSERT_LINK, TreeNames

if TYPE_CHECKING:
    from unifs.vfs.tree import Batch
    from unifs.vfs.volume import Inode

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


class TreeRename(TreeNames):
    """The names of one tree volume, with rename."""

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        inode = self._need(parent, name)
        target = self.find(new_parent, new_name)
        self._check_rename(inode, target, new_parent, flags)
        if target is not None and flags & RENAME_EXCHANGE:
            self._check_above(target, parent)
        if target is inode:
            return
        for one in (inode, target):
            if one is not None and (one.pending is not None or (one is inode and one.is_dirty())):
                self.writer.commit(one)
        now = time.time_ns()
        batch: Batch = []
        tree = self.tree
        undo = None
        is_exchange = target is not None and bool(flags & RENAME_EXCHANGE)
        if target is None and parent is new_parent:
            tree.change_name(batch, parent.ino, name, new_name)
        elif target is None:
            tree.drop_name(batch, parent.ino, name)
            batch.append(tree.add_name(new_parent.ino, new_name, inode.ino))
        else:
            tree.change_target(batch, new_parent.ino, new_name, inode.ino)
            if is_exchange:
                undo = (target.attributes.st_nlink, target.attributes.st_ctime_ns)
                target.attributes.st_ctime_ns = now
                tree.change_target(batch, parent.ino, name, target.ino)
                self._move(target, (new_parent.ino, new_name), (parent.ino, name), batch)
            else:
                tree.drop_name(batch, parent.ino, name)
                undo = self._drop_link(target, new_parent.ino, new_name, now, batch)
        ctime, inode.attributes.st_ctime_ns = inode.attributes.st_ctime_ns, now
        self._move(inode, (parent.ino, name), (new_parent.ino, new_name), batch)
        displaced = 0 if target is None else target.ino
        renamed = Renamed(new_parent.ino, displaced, is_exchange, name, new_name)
        self._record(inode, target, parent.ino, renamed, batch)
        try:
            tree.commit(batch, frees=displaced != 0 and not is_exchange)
        except BaseException:
            inode.attributes.st_ctime_ns = ctime
            if target is not None and undo is not None:
                target.attributes.st_nlink, target.attributes.st_ctime_ns = undo
            raise
        self._renamed(inode, target, parent, new_parent, flags)
        inode.name = new_name
        self.writer.mark(self.mount_id, parent.ino, name)
        self.writer.mark(self.mount_id, new_parent.ino, new_name)

    def _record(
        self,
        inode: TreeInode,
        target: TreeInode | None,
        old_parent: int,
        renamed: Renamed,
        batch: Batch,
    ) -> None:
        now = inode.attributes.st_ctime_ns
        batch.append(self.log.row(Op.RENAME, inode.ino, old_parent, pack_rename(renamed), now))
        if target is None:
            return
        if renamed.is_exchange:
            back = Renamed(old_parent, inode.ino, True, renamed.new_name, renamed.name)
            packed = pack_rename(back)
            batch.append(self.log.row(Op.RENAME, target.ino, renamed.new_parent, packed, now))
        else:
            self.note_displaced(target, renamed.new_parent, renamed.new_name, batch)

    def note_displaced(self, target: TreeInode, parent: int, name: bytes, batch: Batch) -> None:
        """Statements of its own for an inode whose name a rename took."""

    def _move(
        self, inode: TreeInode, old: tuple[int, bytes], new: tuple[int, bytes], batch: Batch
    ) -> None:
        """Statements that tell an inode's row and links its new name."""
        if inode.parent:
            self._update(inode, new[0], batch)
        else:
            batch.append((DELETE_LINK, (inode.ino, *old)))
            batch.append((INSERT_LINK, (inode.ino, *new)))
            self._update(inode, 0, batch)

    def _renamed(
        self,
        inode: TreeInode,
        target: TreeInode | None,
        parent: Inode,
        new_parent: Inode,
        flags: int,
    ) -> None:
        now = inode.attributes.st_ctime_ns
        moved = [(inode, parent, new_parent)]
        if target is not None:
            _guard(target, inode)
            if flags & RENAME_EXCHANGE:
                moved.append((target, new_parent, parent))
                _guard(inode, target)
            else:
                if stat.S_ISDIR(target.attributes.st_mode):
                    new_parent.attributes.st_nlink -= 1
                if target.attributes.st_nlink == 0:
                    self._lost_name(target, now)
                else:
                    self._updated(target)
        for one, before, after in moved:
            if one.parent:
                one.parent = after.ino
            if before is not after and stat.S_ISDIR(one.attributes.st_mode):
                self.tree.tracking.forget()
                before.attributes.st_nlink -= 1
                after.attributes.st_nlink += 1
            self._updated(one)
        self.writer.touch(parent, now)  # type: ignore[arg-type]
        self.writer.touch(new_parent, now)  # type: ignore[arg-type]

    def _check_rename(
        self, inode: TreeInode, target: TreeInode | None, new_parent: Inode, flags: int
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise InvalidArgument
        if new_parent.is_gone:  # type: ignore[attr-defined]
            raise NotFound
        is_directory = stat.S_ISDIR(inode.attributes.st_mode)
        if target is None:
            if flags & RENAME_EXCHANGE:
                raise NotFound
        elif flags & RENAME_NOREPLACE:
            raise Exists
        elif not flags and target is not inode:
            if stat.S_ISDIR(target.attributes.st_mode):
                if not is_directory:
                    raise IsADirectory
                if not self.is_empty(target):
                    raise NotEmpty
            elif is_directory:
                raise NotADirectory
        self._check_above(inode, new_parent)

    def _check_above(self, inode: TreeInode, directory: Inode) -> None:
        """A directory cannot move into itself."""
        if not stat.S_ISDIR(inode.attributes.st_mode):
            return
        above: Inode = directory
        while isinstance(above, TreeInode):
            if above is inode:
                raise InvalidArgument
            if not above.parent:
                return
            above = self.inodes.get(above.parent)


def _guard(inode: TreeInode, guard: TreeInode) -> None:
    """``guard`` has a name that was the inode's."""
    if guard not in inode.guards:
        inode.guards.append(guard)

"""Name operations of a tree volume: create, unlink, link (``treerename`` has rename).

Each is one transaction: the rows of all inodes concerned and the journal's record, committed inline
before the kernel hears of it; memory changes after the commit. An inode that is still pending
(created, not committed) gets its rows first. Only a created regular file may stay pending: nothing
was promised about it yet.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from unifs.errors import (
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooManyLinks,
)
from unifs.journal.content import symlink_blob
from unifs.journal.log import Op
from unifs.vfs.tree import SET_GONE, UPDATE_INODE, pack_attributes, with_bytes_of
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.unsynced import Unsynced
from unifs.vfs.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.journal.log import Log, WaitingLog
    from unifs.types import Attributes, Caller
    from unifs.vfs.inodes import Inodes
    from unifs.vfs.tree import Batch, Statement
    from unifs.vfs.volume import Inode
    from unifs.vfs.writer import Writer

#: As ext4: st_nlink of some programs is 16 bits wide.
LINKS_MAX = 65_000

INSERT_LINK = "insert or ignore into link values(?,?,?)"
DELETE_LINK = "delete from link where ino=? and parent=? and name=?"


class TreeNames(Volume):
    """The names of one tree volume."""

    #: What this volume's inodes are.
    inode_type: type[TreeInode] = TreeInode

    def __init__(
        self, name: str, mount_id: int, writer: Writer, factory: Callable[[], Attributes]
    ) -> None:
        super().__init__(name)
        self.mount_id = mount_id
        self.writer = writer
        self.storage = writer.storage
        self.tree = writer.tree
        #: Where this volume's records go; a mount with a backend has them wait for it.
        self.log: Log | WaitingLog = writer.log
        self.contents = writer.contents
        self.overlays = writer.overlays
        self.unsynced = Unsynced(name)
        self.inodes: Inodes = writer.inodes
        self.factory = factory
        #: How long the kernel keeps names and attributes: all changes go through us.
        self.timeout_s = 3600.0

    # --- finding ----------------------------------------------------------------------------------

    def find(self, parent: Inode, name: bytes) -> TreeInode | None:
        """The inode of a name, pending ones included."""
        inode = self.writer.pending.get((parent.ino, name))
        if inode is not None:
            return inode
        ino = self.tree.find(parent.ino, name)
        if not ino:
            return None
        found: TreeInode = self.inodes.get(ino)  # type: ignore[assignment]
        found.name = name
        return found

    def _need(self, parent: Inode, name: bytes) -> TreeInode:
        inode = self.find(parent, name)
        if inode is None:
            raise NotFound
        return inode

    def lookup(self, parent: Inode, name: bytes) -> TreeInode:
        return self.counted(self._need(parent, name))

    def counted(self, inode: TreeInode) -> TreeInode:
        """The inode, the blocks of what its writers have written so far counted.

        Whoever is told attributes keeps them for long, and a file without blocks is taken for one
        hole: `tar -S` stores zeros for it.
        """
        overlay = inode.overlay
        if overlay is not None and overlay.is_dirty:
            self.writer.set_blocks(inode)
        return inode

    def getattr(self, inode: Inode) -> Attributes:
        return self.counted(inode).attributes  # type: ignore[arg-type]

    def is_empty(self, inode: TreeInode) -> bool:
        """Whether a directory has no names, pending ones included."""
        if any(parent == inode.ino for parent, _ in self.writer.pending):
            return False
        return self.tree.is_empty(inode.ino)

    def commit_names(self, ino: int) -> None:
        """Give rows to everything pending in a directory that a listing or fsync will show."""
        writer = self.writer
        if writer.pending:
            for inode in [held for key, held in writer.pending.items() if key[0] == ino]:
                writer.commit(inode)

    # --- making -----------------------------------------------------------------------------------

    def new_inode(self, parent: Inode, mode: int, caller: Caller, rdev: int = 0) -> TreeInode:
        """An inode in memory, with the owner and mode that POSIX gives it."""
        attributes = self.factory()
        now = time.time_ns()
        ino = self.tree.new_ino()
        above = parent.attributes
        attributes.st_gid = caller.gid
        if above.st_mode & stat.S_ISGID:
            attributes.st_gid = above.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        attributes.st_ino = ino
        attributes.st_mode = mode
        attributes.st_uid = caller.uid
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_rdev = rdev
        attributes.st_blksize = 1 << 20
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now
        attributes.entry_timeout = attributes.attr_timeout = self.timeout_s
        inode = self.inode_type(ino, self, attributes)
        inode.epoch = self.tree.epoch
        return inode

    def check_new(self, parent: Inode, name: bytes, kind: int = stat.S_IFREG) -> None:
        """NotFound or Exists where that name cannot be made; ``kind`` is that of its mode."""
        if parent.is_gone:  # type: ignore[attr-defined]
            raise NotFound
        if self.find(parent, name) is not None:
            raise Exists

    def add_pending(self, parent: TreeInode, name: bytes, inode: TreeInode) -> None:
        """The name exists from now on, in memory."""
        inode.pending = (parent.ino, name)
        inode.name = name
        inode.parent = parent.ino
        inode.changed_at = time.monotonic()
        self.writer.pending[inode.pending] = inode
        self.inodes.add(inode)
        self.writer.touch(parent, inode.attributes.st_mtime_ns)

    def make_inode(
        self, parent: Inode, name: bytes, inode: TreeInode, also: Sequence[Statement] = ()
    ) -> TreeInode:
        """Commit a new inode at once, with statements of its own."""
        writer = self.writer
        batch: Batch = []
        inode.pending = (parent.ino, name)
        inode.name = name
        blob, inode.stored = inode.stored, b""
        writer.rows(inode, blob, batch)
        batch += also
        self.tree.commit(batch)
        writer.pending[inode.pending] = inode
        writer.committed(inode, None, blob)
        self.inodes.add(inode)
        writer.touch(parent, inode.attributes.st_mtime_ns)  # type: ignore[arg-type]
        return inode

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller) -> TreeInode:
        self.check_new(parent, name, stat.S_IFMT(mode) or stat.S_IFREG)
        return self.make_inode(parent, name, self.new_inode(parent, mode, caller, rdev))

    def mkdir(self, parent: Inode, name: bytes, mode: int, caller: Caller) -> TreeInode:
        self.check_new(parent, name, stat.S_IFDIR)
        made = self.make_inode(parent, name, self.new_inode(parent, mode | stat.S_IFDIR, caller))
        self.tree.directory_made(made.ino)
        parent.attributes.st_nlink += 1
        return made

    def symlink(self, parent: Inode, name: bytes, target: bytes, caller: Caller) -> TreeInode:
        self.check_new(parent, name, stat.S_IFLNK)
        inode = self.new_inode(parent, stat.S_IFLNK | 0o777, caller)
        inode.attributes.st_size = len(target)
        inode.stored = symlink_blob(target)
        return self.make_inode(parent, name, inode)

    def link(self, inode: Inode, parent: Inode, name: bytes, caller: Caller) -> TreeInode:
        assert isinstance(inode, TreeInode)
        attributes = inode.attributes
        if stat.S_ISDIR(attributes.st_mode):
            raise NotPermitted
        if inode.is_gone:
            raise NotFound
        if attributes.st_nlink >= LINKS_MAX:
            raise TooManyLinks
        self.check_new(parent, name)
        if inode.is_dirty():
            self.writer.commit(inode)
        batch: Batch = []
        now = time.time_ns()
        if inode.parent:
            for directory, known in self.tree.parents(inode.ino, inode.parent):
                batch.append((INSERT_LINK, (inode.ino, directory, known)))
        batch.append((INSERT_LINK, (inode.ino, parent.ino, name)))
        batch.append(self.tree.add_name(parent.ino, name, inode.ino))
        before = (attributes.st_nlink, attributes.st_ctime_ns)
        attributes.st_nlink, attributes.st_ctime_ns = before[0] + 1, now
        try:
            self._update(inode, 0, batch)
            batch.append(self.log.row(Op.LINK, inode.ino, parent.ino, name, now))
            self.tree.commit(batch)
        except BaseException:
            attributes.st_nlink, attributes.st_ctime_ns = before
            raise
        inode.parent = 0
        self._updated(inode)
        self.writer.touch(parent, now)  # type: ignore[arg-type]
        return inode

    def _update(self, inode: TreeInode, parent: int, batch: Batch) -> None:
        """The statement that writes an inode's attributes and directory, past form kept."""
        tree = self.tree
        if inode.epoch != tree.epoch:
            tree.keep_inode(batch, inode)
        packed = pack_attributes(inode.attributes)
        if inode.is_dirty():
            # The row goes on naming the bytes before: their size and time stay with them.
            packed = with_bytes_of(packed, tree.inode_row(inode.ino)[4])
        batch.append((UPDATE_INODE, (parent, tree.epoch, packed, inode.stored, inode.ino)))

    def _updated(self, inode: TreeInode) -> None:
        inode.epoch = self.tree.epoch
        inode.is_touched = False
        self.writer.touched.pop(inode.ino, None)
        self.writer.mark_changed(inode)

    # --- removing ---------------------------------------------------------------------------------

    def unlink(self, parent: Inode, name: bytes, caller: Caller) -> None:
        inode = self._need(parent, name)
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory
        now = time.time_ns()
        if inode.pending is not None:
            del self.writer.pending[inode.pending]
            inode.pending = None
            self._lost_name(inode, now)
        else:
            batch: Batch = []
            self.tree.drop_name(batch, parent.ino, name)
            undo = self._drop_link(inode, parent.ino, name, now, batch)
            batch.append(self.log.row(Op.UNLINK, inode.ino, parent.ino, name, now))
            self._commit_drop(inode, batch, undo)
        self.writer.touch(parent, now)  # type: ignore[arg-type]
        self.writer.mark(self.mount_id, parent.ino, name)

    def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        inode = self._need(parent, name)
        if not stat.S_ISDIR(inode.attributes.st_mode):
            raise NotADirectory
        if not self.is_empty(inode):
            raise NotEmpty
        now = time.time_ns()
        batch: Batch = []
        self.tree.drop_name(batch, parent.ino, name)
        undo = self._drop_link(inode, parent.ino, name, now, batch)
        batch.append(self.log.row(Op.RMDIR, inode.ino, parent.ino, name, now))
        self._commit_drop(inode, batch, undo)
        parent.attributes.st_nlink -= 1
        self.writer.touch(parent, now)  # type: ignore[arg-type]
        self.writer.mark(self.mount_id, parent.ino, name)

    def _drop_link(
        self, inode: TreeInode, parent: int, name: bytes, now: int, batch: Batch
    ) -> tuple[int, int]:
        """Statements for one name less; changes the attributes, returns (nlink, ctime) before."""
        attributes = inode.attributes
        before = (attributes.st_nlink, attributes.st_ctime_ns)
        attributes.st_ctime_ns = now
        if attributes.st_nlink > 1 and not stat.S_ISDIR(attributes.st_mode):
            attributes.st_nlink -= 1
            batch.append((DELETE_LINK, (inode.ino, parent, name)))
            self._update(inode, 0, batch)
        else:
            attributes.st_nlink = 0
            if not inode.parent:
                # It had several names once.
                batch.append((DELETE_LINK, (inode.ino, parent, name)))
            batch.append((SET_GONE, (self.tree.epoch, inode.ino)))
        return before

    def _commit_drop(self, inode: TreeInode, batch: Batch, before: tuple[int, int]) -> None:
        attributes = inode.attributes
        try:
            self.tree.commit(batch, frees=True)
        except BaseException:
            attributes.st_nlink, attributes.st_ctime_ns = before
            raise
        if attributes.st_nlink == 0:
            self._lost_name(inode, attributes.st_ctime_ns)
        else:
            self._updated(inode)

    def _lost_name(self, inode: TreeInode, now: int) -> None:
        """No name is left; the object stays until the kernel forgets it."""
        inode.attributes.st_nlink = 0
        inode.attributes.st_ctime_ns = now
        inode.is_gone = True
        self.unsynced.reached(inode, inode.unsynced_bytes)
        inode.is_touched = False
        self.writer.touched.pop(inode.ino, None)
        if not inode.opens and not self.inodes.count(inode.ino):
            self.forgotten(inode.ino)

    def forgotten(self, ino: int) -> None:
        """Nobody refers to this inode any more: an object without a name can go, with its row."""
        inode = self.inodes.hot.get(ino)
        if not isinstance(inode, TreeInode) or not inode.is_gone or inode.opens:
            return
        if self.inodes.count(ino):
            # Closed, but the kernel can open it again through a descriptor without access.
            return
        if inode.overlay is not None:
            self.writer.detach(inode)
        self.inodes.drop(ino)
        self.writer.forgotten.append(inode)

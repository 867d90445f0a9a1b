"""TreeVolume: a mount whose names, attributes and bytes unifs itself keeps (/mfs).

Names stand in ``treenames``, handles in ``treefile``; here are inodes, attributes and opening.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any

from unifs.errors import (
    AttributeNamespace,
    Exists,
    InvalidArgument,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotAvailableOffline,
    NotPermitted,
    Stale,
    TooLarge,
    Unsupported,
)
from unifs.journal.content import SEALED, SYMLINK, LargeContent, SmallContent
from unifs.journal.log import Op
from unifs.vfs.tree import (
    DROP_XATTR,
    INSERT_INODE,
    SET_XATTR,
    clamp_time,
    fill_attributes,
    pack_attributes,
)
from unifs.vfs.treefile import FILE_BYTES_MAX, TreeDirectory, TreeHandle
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treerename import TreeRename
from unifs.vfs.volume import DirectoryHandle, Handle, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.types import Attributes, Caller, SetAttributes
    from unifs.vfs.tree import Batch
    from unifs.vfs.volume import Inode
    from unifs.vfs.writer import Writer

XATTR_BYTES_MAX = 64 << 10

CID_XATTR = b"ipfs.cid"
USER_PREFIX = b"user."
STATE_XATTR = b"user.unifs.state"
VIRTUAL_PREFIX = b"user.unifs."


def _is_write(changes: SetAttributes, handle: Handle | None) -> bool:
    """Whether this is a size, and no more, from who writes to the file and will close it."""
    is_size = changes.size_bytes is not None and changes.mode is changes.uid is changes.gid is None
    return is_size and isinstance(handle, TreeHandle) and handle.can_write


def _check_namespace(name: bytes) -> None:
    if not name.startswith(USER_PREFIX):
        raise AttributeNamespace
    if name == USER_PREFIX:
        raise InvalidArgument("an extended attribute has a name behind its namespace")


class TreeLoader(Volume):
    """All inodes of prefix 0: finds the volume of a row by its mount number."""

    def __init__(self, writer: Writer, factory: Callable[[], Attributes]) -> None:
        super().__init__("tree")
        self.writer = writer
        self.factory = factory
        self.volumes: dict[int, TreeVolume] = {}
        writer.inodes.volumes[0] = self

    def add(self, name: str, kind: str, make: type[TreeVolume]) -> TreeVolume:
        """The volume of a mount, its number and root made at its first use; never two of a name."""
        tree = self.writer.tree
        query = "select id,kind,root from mount where name=?"
        row = tree.database.one(query, (name,))
        if row is None:
            row = self._new_mount(name, kind)
        if row[1] != kind:
            raise Exists(f"{name} was a mount of kind {row[1]} here before")
        volume = make(name, row[0], self.writer, self.factory)
        if not volume.keeps_history:
            tree.tracking.leave_out(row[0])
        volume.root = row[2]
        self.volumes[row[0]] = volume
        return volume

    def _new_mount(self, name: str, kind: str) -> tuple[int, str, int]:
        tree = self.writer.tree
        number = 1 + tree.database.one("select coalesce(max(id),0) from mount")[0]
        root = tree.new_ino()
        attributes = self.factory()
        attributes.st_mode = stat.S_IFDIR | 0o755
        attributes.st_nlink = 2
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        attributes.st_size = attributes.st_rdev = 0
        now = time.time_ns()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now
        packed = pack_attributes(attributes)
        batch: Batch = [("insert into mount values(?,?,?,?)", (number, name, kind, root))]
        batch.append((INSERT_INODE, (root, number, 0, tree.epoch, packed, b"")))
        tree.commit(batch)
        return number, kind, root

    def load(self, ino: int) -> TreeInode:
        row = self.writer.tree.inode_row(ino)
        if row is None or row[0] not in self.volumes:
            raise Stale
        return self.volumes[row[0]].load_row(ino, row)


class TreeVolume(TreeRename):
    """A writable volume of the tree."""

    #: Whether what its rows were is kept.
    keeps_history = True
    #: What opening a file and a directory gives.
    handle_type: type[TreeHandle] = TreeHandle
    directory_type: type[TreeDirectory] = TreeDirectory

    def __init__(
        self, name: str, mount_id: int, writer: Writer, factory: Callable[[], Attributes]
    ) -> None:
        super().__init__(name, mount_id, writer, factory)
        self.scratch = factory()
        #: The inode number of this volume's root directory.
        self.root = 0

    # --- inodes -----------------------------------------------------------------------------------

    def load_row(self, ino: int, row: Any) -> TreeInode:
        """The inode of a row as ``Tree.inode_row`` gives it."""
        _, parent, epoch, gone, packed, content = row
        attributes = self.factory()
        fill_attributes(attributes, ino, packed, self.timeout_s)
        inode = self.inode_type(ino, self, attributes)
        inode.parent = parent
        inode.epoch = epoch
        inode.is_gone = gone is not None
        inode.stored = content
        # Its record may be any up to now: it counts as sealed when all of these are.
        inode.seq = self.log.seq
        return inode

    def setattr(
        self, inode: Inode, changes: SetAttributes, handle: Handle | None, caller: Caller
    ) -> Attributes:
        assert isinstance(inode, TreeInode)
        attributes = inode.attributes
        if inode.pending is not None or inode.is_gone:
            self._change(inode, changes)
            return attributes
        is_resized = changes.size_bytes not in (None, attributes.st_size)
        if _is_write(changes, handle) and (is_resized or inode.is_dirty()):
            # Part of what is being written, as with O_TRUNC: a file that is cut and written anew is
            # old or new after a power cut, and not what it was in between.
            self._change(inode, changes)
            return attributes
        if is_resized and inode.is_dirty():
            # What is cut off or added can be undone only down to what is committed.
            self.writer.commit(inode, is_interim=True)
        self.writer.ready(inode)
        if changes.mtime_ns is not None and stat.S_ISDIR(attributes.st_mode):
            # Recovery dates a directory by its records: what came before the new time has to stand
            # before it in the journal.
            self.commit_names(inode.ino)
        before = pack_attributes(attributes)
        try:
            self._change(inode, changes)
            self.writer.commit(inode)
        except BaseException:
            if is_resized:
                self.writer.undo(inode)
            fill_attributes(attributes, inode.ino, before, self.timeout_s)
            raise
        if not inode.opens:
            self.writer.detach(inode)
        return attributes

    def _change(self, inode: TreeInode, changes: SetAttributes) -> None:
        """Change the attributes in memory; again and again comes to the same."""
        attributes = inode.attributes
        if changes.size_bytes is not None:
            self._resize(inode, changes.size_bytes)
        if changes.mode is not None:
            attributes.st_mode = stat.S_IFMT(attributes.st_mode) | stat.S_IMODE(changes.mode)
        if changes.uid is not None:
            attributes.st_uid = changes.uid
        if changes.gid is not None:
            attributes.st_gid = changes.gid
        if changes.atime_ns is not None:
            attributes.st_atime_ns = clamp_time(changes.atime_ns)
        if changes.mtime_ns is not None:
            attributes.st_mtime_ns = clamp_time(changes.mtime_ns)
        attributes.st_ctime_ns = time.time_ns()
        self.counted(inode)

    def _resize(self, inode: TreeInode, size: int) -> None:
        attributes = inode.attributes
        if stat.S_ISDIR(attributes.st_mode):
            raise IsADirectory
        if not stat.S_ISREG(attributes.st_mode):
            raise InvalidArgument
        if size > FILE_BYTES_MAX:
            raise TooLarge(f"a file may have up to {FILE_BYTES_MAX} bytes")
        if size != attributes.st_size:
            self.overlays.resize(self.writer.overlay_to_cut(inode, size), size)
        attributes.st_size = size
        self.unsynced.cut(inode)
        self.writer.set_blocks(inode)
        attributes.st_mtime_ns = time.time_ns()

    def readlink(self, inode: Inode) -> bytes:
        assert isinstance(inode, TreeInode)
        if not inode.stored or inode.stored[0] != SYMLINK:
            raise InvalidArgument
        return inode.stored[1:]

    # --- bytes on their way -----------------------------------------------------------------------

    def sealed(self, inode: TreeInode, size_bytes: int) -> None:
        """So many of the bytes written to an inode are sealed, or will never be."""
        self.unsynced.reached(inode, size_bytes)

    def closed_small(self, inode: TreeInode, seq: int) -> None:
        """All of the inode's bytes stand in a segment, under the record ``seq``."""
        self.unsynced.closed(inode, seq)

    def found_unsealed(self, inode: TreeInode) -> None:
        """An earlier daemon closed the inode's content and did not seal it."""
        self.unsynced.wrote(inode, inode.attributes.st_size)

    # --- opening ----------------------------------------------------------------------------------

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        assert isinstance(inode, TreeInode)
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory
        access = flags & os.O_ACCMODE
        can_write = access != os.O_RDONLY
        if flags & os.O_TRUNC:
            self._truncate(inode, caller)
        return self.handle_type(inode, self, access != os.O_WRONLY, can_write)

    def _truncate(self, inode: TreeInode, caller: Caller) -> None:
        """What opening with O_TRUNC does; times and set-ID bits move for an empty file as well."""
        attributes = inode.attributes
        mode = attributes.st_mode
        is_privileged = bool(caller.uid and mode & (stat.S_ISUID | stat.S_ISGID))
        if attributes.st_size:
            self._resize(inode, 0)
        else:
            attributes.st_mtime_ns = time.time_ns()
            if inode.pending is None and not inode.is_gone:
                inode.is_touched = True
                self.writer.touched[inode.ino] = inode
        attributes.st_ctime_ns = attributes.st_mtime_ns
        if is_privileged:
            # The kernel clears these on write and truncate, not on open(O_TRUNC).
            cleared = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
            attributes.st_mode = mode & ~cleared

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[TreeInode, TreeHandle]:
        assert isinstance(parent, TreeInode)
        self.check_new(parent, name)
        inode = self.new_inode(parent, mode | stat.S_IFREG, caller)
        self.add_pending(parent, name, inode)
        access = flags & os.O_ACCMODE
        return inode, self.handle_type(inode, self, access != os.O_WRONLY, access != os.O_RDONLY)

    def opendir(self, inode: Inode) -> DirectoryHandle:
        if not stat.S_ISDIR(inode.attributes.st_mode):
            raise NotADirectory
        return self.directory_type(inode, self)  # type: ignore[arg-type]

    def read_linked(self, stored: bytes, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Bytes of a file that is linked by its CID, by its content column; a volume with a node
        knows them.
        """
        raise NotAvailableOffline

    def expand(self, inode: Inode) -> None:
        """Before anybody looks at the names of a directory that is linked by its CID: WouldBlock
        makes rows for them.
        """

    def materialize(self, inode: TreeInode) -> None:
        """Before the first write to a file linked by its CID: its bytes become our own.

        Always raises; WouldBlock's wait leaves the inode with an overlay that holds the bytes.
        """
        raise Unsupported("this volume has no node behind it")

    # --- extended attributes ----------------------------------------------------------------------

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        assert isinstance(inode, TreeInode)
        if name == CID_XATTR:
            return self.cid_of(inode).encode()
        if name == STATE_XATTR:
            return self.state_of(inode).encode()
        _check_namespace(name)
        value = self.tree.xattr(inode.ino, name)
        if value is None:
            raise NoAttribute
        return value

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        self._check_xattr(name)
        if len(value) > XATTR_BYTES_MAX:
            raise TooLarge("an extended attribute may have 64 KiB")
        row = (inode.ino, name, value, self.tree.epoch)
        self._change_xattr(inode, name, (SET_XATTR, row))

    def removexattr(self, inode: Inode, name: bytes) -> None:
        self._check_xattr(name)
        if self.tree.xattr(inode.ino, name) is None:
            raise NoAttribute
        self._change_xattr(inode, name, (DROP_XATTR, (inode.ino, name)))

    def _check_xattr(self, name: bytes) -> None:
        if name == CID_XATTR or name.startswith(VIRTUAL_PREFIX):
            raise NotPermitted
        _check_namespace(name)

    def _change_xattr(
        self, inode: Inode, name: bytes, statement: tuple[str, tuple[object, ...]]
    ) -> None:
        assert isinstance(inode, TreeInode)
        if inode.is_dirty():
            self.writer.commit(inode)
        batch: Batch = []
        self.tree.keep_xattr(batch, inode, name)
        batch.append(statement)
        batch.append(self.log.row(Op.XATTR, inode.ino, inode.parent, name))
        self.tree.commit(batch)
        inode.attributes.st_ctime_ns = time.time_ns()
        if not inode.is_gone:
            inode.is_touched = True
            self.writer.touched[inode.ino] = inode

    def listxattr(self, inode: Inode) -> list[bytes]:
        # Virtual names are never listed: rsync -aX would try to copy them and fail.
        return self.tree.xattrs(inode.ino)

    # --- what a user may ask ----------------------------------------------------------------------

    def cid_of(self, inode: TreeInode) -> str:
        """The CID of a file or directory as text; NoAttribute while it has none."""
        raise NoAttribute

    def state_of(self, inode: TreeInode) -> str:
        """open, closed or sealed."""
        if inode.is_dirty() or inode.writers:
            return "open"
        content = self.writer.content_of(inode)
        if isinstance(content, SmallContent) and inode.seq > self.storage.flusher.sealed_seq:
            return "closed"
        if isinstance(content, LargeContent) and content.state != SEALED:
            return "closed"
        return "sealed"

"""RemoteVolume: a mount whose truth lies at a backend, seen through the tree.

Names and attributes that the backend told are rows like any others; what is known of the object
behind a row (its path there, its version, when that was checked, how far a directory is listed)
stands in ``remote``. A look-up that the rows cannot answer waits for one ``stat``; a listing waits
for one page. Absence is answered only from a complete, fresh listing or by the backend itself.

Rows of immutable mounts (/ipfs) are fresh for ever, others for the mount's time. A handle pins the
version that it opened: its reads never mix two.
"""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING, Any

from unifs.cache.reads import Source
from unifs.errors import (
    BadHandle,
    IsADirectory,
    NoAttribute,
    NotFound,
    ReadOnly,
)
from unifs.journal.content import symlink_blob
from unifs.types import NAME_MAX_BYTES, Version
from unifs.vfs.tree import INSERT_INODE, UPDATE_INODE, fill_attributes, pack_attributes
from unifs.vfs.treefile import PAGE
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treevolume import TreeVolume
from unifs.vfs.volume import DirectoryHandle, Handle
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.cache.reads import ReadCache
    from unifs.mounts.base import Mount
    from unifs.types import Attributes, Caller, Entry, Node, SetAttributes
    from unifs.vfs.tree import Batch
    from unifs.vfs.volume import Emit, Inode
    from unifs.vfs.writer import Writer

UNLISTED, PARTIAL, COMPLETE = 0, 1, 2

INSERT_REMOTE = (
    "insert or replace into remote(ino,path,version,checked_ns,listing,cursor,listed_ns)"
    " values(?,?,?,?,?,?,?)"
)
SET_LISTING = "update remote set listing=?,cursor=?,listed_ns=? where ino=?"


class RemoteInode(TreeInode):
    """A row of the tree and what is known of the object behind it."""

    __slots__ = ("checked_ns", "cursor", "listed_ns", "listing", "path", "scanning", "version")

    def __init__(self, ino: int, volume: RemoteVolume, attributes: Attributes) -> None:
        super().__init__(ino, volume, attributes)
        self.path = ""
        self.version = Version("")
        self.checked_ns = 0
        self.listing = UNLISTED
        self.cursor: str | None = None
        self.listed_ns = 0


class RemoteHandle(Handle):
    """An open remote file: reads exactly the version that it was opened with."""

    __slots__ = ("source", "volume")

    def __init__(self, inode: RemoteInode, volume: RemoteVolume) -> None:
        super().__init__(inode)
        self.volume = volume
        self.source = Source.of(
            volume.name, volume.mount, inode.path, inode.version, inode.attributes.st_size
        )
        inode.opens += 1

    def read(self, offset: int, size: int) -> bytes | memoryview:
        return self.volume.cache.read_nowait(self.source, offset, size)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        raise BadHandle

    def release(self) -> None:
        self.inode.opens -= 1


class RemoteDirectory(DirectoryHandle):
    """A listing that waits for one page at a time."""

    __slots__ = ("volume",)

    def __init__(self, inode: RemoteInode, volume: RemoteVolume) -> None:
        super().__init__(inode)
        self.volume = volume

    def readdir(self, offset: int, emit: Emit) -> None:
        volume = self.volume
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if offset == 0 and not volume.is_listed(inode) and inode.listing == COMPLETE:
            inode.listing, inode.cursor = UNLISTED, None
        has_emitted = False
        while True:
            for row_id, name, ino, packed in volume.tree.listing(inode.ino, offset, PAGE):
                hot = volume.inodes.hot.get(ino)
                attributes = volume.scratch
                if hot is not None:
                    attributes = hot.attributes
                else:
                    fill_attributes(attributes, ino, packed, volume.timeout_s)
                if not emit(name, attributes, row_id):
                    return
                volume.inodes.remember(ino)
                has_emitted = True
                offset = row_id
            if volume.tree.names(inode.ino, offset, 1):
                continue
            if inode.listing == COMPLETE or has_emitted:
                return
            raise WouldBlock(lambda: volume.scan_page(inode), volume.name)


class RemoteVolume(TreeVolume):
    """The read side of a remote mount."""

    def __init__(
        self, name: str, mount_id: int, writer: Writer, factory: Callable[[], Attributes]
    ) -> None:
        super().__init__(name, mount_id, writer, factory)
        self.mount: Mount
        self.cache: ReadCache
        #: How long what the backend said is believed.
        self.fresh_s = 30.0

    def connect(self, mount: Mount, cache: ReadCache, fresh_s: float) -> None:
        """Tell the volume its backend; before the first request."""
        self.mount = mount
        self.cache = cache
        self.fresh_s = fresh_s
        self.timeout_s = fresh_s

    # --- inodes -----------------------------------------------------------------------------------

    def load_row(self, ino: int, row: Any) -> RemoteInode:
        _, parent, epoch, gone, packed, content = row
        attributes = self.factory()
        fill_attributes(attributes, ino, packed, self.timeout_s)
        inode = RemoteInode(ino, self, attributes)
        inode.parent, inode.epoch, inode.stored = parent, epoch, content
        inode.is_gone = gone is not None
        known = self.tree.database.one(
            "select path,version,checked_ns,listing,cursor,listed_ns from remote where ino=?",
            (ino,),
        )
        if known is not None:
            path, version, inode.checked_ns, inode.listing, inode.cursor, inode.listed_ns = known
            inode.path = os.fsdecode(path)
            inode.version = Version(version or "")
        return inode

    def is_fresh(self, checked_ns: int) -> bool:
        """Whether what was learnt then is still believed."""
        if self.mount.is_immutable:
            return checked_ns > 0
        return time.time_ns() - checked_ns < self.fresh_s * 1e9

    def is_listed(self, inode: RemoteInode) -> bool:
        """Whether the rows are the whole directory, as far as is believed."""
        return inode.listing == COMPLETE and self.is_fresh(inode.listed_ns)

    # --- look-up ----------------------------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> TreeInode:
        assert isinstance(parent, RemoteInode)
        inode = self.find(parent, name)
        if inode is not None:
            assert isinstance(inode, RemoteInode)
            if self.is_fresh(inode.checked_ns):
                return inode
        elif self.is_listed(parent):
            raise NotFound
        if len(name) > NAME_MAX_BYTES:
            raise NotFound
        raise WouldBlock(lambda: self._stat(parent, name), self.name)

    async def _stat(self, parent: RemoteInode, name: bytes) -> object:
        path = _join(parent.path, name)
        try:
            node = await self.mount.stat(path)
        except NotFound:
            self._forget_name(parent, name)
            raise
        self._merge(parent, [(name, node)])
        return RETRY

    def getattr(self, inode: Inode) -> Attributes:
        assert isinstance(inode, RemoteInode)
        if inode.checked_ns == 0 or self.is_fresh(inode.checked_ns) or not inode.path:
            return inode.attributes
        raise WouldBlock(lambda: self._refresh(inode), self.name)

    async def _refresh(self, inode: RemoteInode) -> object:
        node = await self.mount.stat(inode.path)
        batch: Batch = []
        self._update_known(inode, node, batch)
        self.tree.commit(batch)
        return RETRY

    # --- listing ----------------------------------------------------------------------------------

    async def scan_page(self, inode: RemoteInode) -> object:
        """Bring one more page of the directory into the tree."""
        page = await self.mount.scan(inode.path, inode.cursor)
        self._merge(inode, [(entry.name, entry.node) for entry in _shown(page.entries)])
        now = time.time_ns()
        inode.listing = COMPLETE if page.after is None else PARTIAL
        inode.cursor = page.after
        if page.after is None:
            inode.listed_ns = now
        bindings = (inode.listing, inode.cursor, inode.listed_ns, inode.ino)
        self.tree.commit([(SET_LISTING, bindings)])
        return RETRY

    def learn(self, parent: RemoteInode, entries: list[Entry]) -> None:
        """Bring entries that the backend named into the tree."""
        self._merge(parent, [(entry.name, entry.node) for entry in _shown(tuple(entries))])

    def _merge(self, parent: RemoteInode, entries: list[tuple[bytes, Node]]) -> None:
        """Insert or update rows in place: a name that stays keeps its row id and its inode."""
        batch: Batch = []
        made: list[RemoteInode] = []
        for name, node in entries:
            known = self.find(parent, name)
            if isinstance(known, RemoteInode) and _same_kind(known, node):
                self._update_known(known, node, batch)
                continue
            if known is not None:
                self.tree.drop_name(batch, parent.ino, name)
            made.append(self._insert(parent, name, node, batch))
        if batch:
            self.tree.commit(batch)
        for inode in made:
            self.inodes.add(inode)

    def _insert(self, parent: RemoteInode, name: bytes, node: Node, batch: Batch) -> RemoteInode:
        attributes = self.factory()
        inode = RemoteInode(self.tree.new_ino(), self, attributes)
        attributes.st_ino = inode.ino
        attributes.st_nlink = 2 if stat.S_ISDIR(node.mode) else 1
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        attributes.st_rdev = node.rdev
        attributes.st_blksize = 1 << 20
        attributes.entry_timeout = attributes.attr_timeout = self.timeout_s
        inode.parent = parent.ino
        inode.epoch = self.tree.epoch
        inode.path = _join(parent.path, name)
        if node.target is not None:
            inode.stored = symlink_blob(node.target)
        self._take(inode, node)
        packed = pack_attributes(attributes)
        row = (inode.ino, self.mount_id, parent.ino, inode.epoch, packed, inode.stored)
        batch.append((INSERT_INODE, row))
        batch.append(self.tree.add_name(parent.ino, name, inode.ino))
        batch.append((INSERT_REMOTE, _remote_row(inode)))
        return inode

    def _update_known(self, inode: RemoteInode, node: Node, batch: Batch) -> None:
        before = (inode.version, pack_attributes(inode.attributes))
        self._take(inode, node)
        packed = pack_attributes(inode.attributes)
        if (inode.version, packed) != before:
            row = (inode.parent, self.tree.epoch, packed, inode.stored, inode.ino)
            batch.append((UPDATE_INODE, row))
        batch.append((INSERT_REMOTE, _remote_row(inode)))

    def _take(self, inode: RemoteInode, node: Node) -> None:
        """Memory follows what the backend says of an object."""
        attributes = inode.attributes
        permissions = stat.S_IMODE(node.mode)
        if not node.has_permissions:
            permissions = 0o755 if stat.S_ISDIR(node.mode) else 0o644
            if self.mount.is_immutable or not self.mount.supports("put"):
                permissions &= 0o555
        attributes.st_mode = stat.S_IFMT(node.mode) | permissions
        attributes.st_size = node.size_bytes
        attributes.st_blocks = (node.size_bytes + 511) >> 9
        moment = node.mtime_ns if node.mtime_ns is not None else 0
        attributes.st_mtime_ns = attributes.st_ctime_ns = attributes.st_atime_ns = moment
        inode.version = node.version or Version("")
        inode.checked_ns = time.time_ns()

    def _forget_name(self, parent: RemoteInode, name: bytes) -> None:
        if self.tree.find(parent.ino, name):
            batch: Batch = []
            self.tree.drop_name(batch, parent.ino, name)
            self.tree.commit(batch, frees=True)

    # --- opening ----------------------------------------------------------------------------------

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        assert isinstance(inode, RemoteInode)
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise ReadOnly
        return RemoteHandle(inode, self)

    def opendir(self, inode: Inode) -> DirectoryHandle:
        assert isinstance(inode, RemoteInode)
        return RemoteDirectory(inode, self)

    # --- what a read-only mount refuses
    # -------------------------------------------------------------

    def setattr(
        self, inode: Inode, changes: SetAttributes, handle: Handle | None, caller: Caller
    ) -> Attributes:
        raise ReadOnly

    def _check_new(self, parent: Inode, name: bytes) -> None:
        raise ReadOnly

    def unlink(self, parent: Inode, name: bytes, caller: Caller) -> None:
        raise ReadOnly

    def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        raise ReadOnly

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        raise ReadOnly

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        self._check_xattr(name)
        raise ReadOnly

    def removexattr(self, inode: Inode, name: bytes) -> None:
        self._check_xattr(name)
        raise ReadOnly

    def state_of(self, inode: TreeInode) -> str:
        return "verified" if self.mount.is_immutable else "synced"

    def cid_of(self, inode: TreeInode) -> str:
        raise NoAttribute


def _join(parent: str, name: bytes) -> str:
    text = os.fsdecode(name)
    return f"{parent}/{text}" if parent else text


def _remote_row(inode: RemoteInode) -> tuple[object, ...]:
    return (
        inode.ino,
        os.fsencode(inode.path),
        inode.version,
        inode.checked_ns,
        inode.listing,
        inode.cursor,
        inode.listed_ns,
    )


def _same_kind(inode: RemoteInode, node: Node) -> bool:
    return stat.S_IFMT(inode.attributes.st_mode) == stat.S_IFMT(node.mode)


def _shown(entries: tuple[Entry, ...]) -> list[Entry]:
    """Entries whose names can be names here; the rest cannot be asked for by anybody."""
    return [
        entry
        for entry in entries
        if 0 < len(entry.name) <= NAME_MAX_BYTES
        and entry.name not in (b".", b"..")
        and b"/" not in entry.name
        and b"\0" not in entry.name
    ]

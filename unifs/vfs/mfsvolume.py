"""MfsVolume: the tree volume that is a UnixFS directory too: all that is in it has a CID."""

from __future__ import annotations

import stat
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import NoAttribute, NotAvailableOffline, TryAgain
from unifs.ipfs.cid import DAG_PB, RAW, Cid
from unifs.ipfs.dagpb import decode
from unifs.ipfs.unixfs.builder import FileBuilder, build_symlink, hash_leaf, leaf_cid
from unifs.ipfs.unixfs.reader import UnixfsStat
from unifs.journal.content import (
    EXPANDED,
    LINKED,
    SEALED,
    LargeContent,
    SmallContent,
    linked_blob,
    symlink_blob,
)
from unifs.journal.overlay import Overlay
from unifs.types import PlainCaller
from unifs.vfs.roots import MfsRoots, unpack_link
from unifs.vfs.tree import INSERT_INODE, blocks_of, pack_attributes
from unifs.vfs.treeinode import TreeInode
from unifs.vfs.treevolume import TreeVolume
from unifs.waiting import RETRY, WouldBlock, complete

if TYPE_CHECKING:
    from unifs.ipfs.node import LsEntry, Node
    from unifs.types import Caller
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.tree import Batch
    from unifs.vfs.volume import Inode

#: How long a CID may take to be computed before the caller is told to try again.
CID_S = 5.0

#: What UnixFS calls its nodes, as file types.
KINDS = {
    "file": stat.S_IFREG,
    "raw": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "hamt": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
}
#: Where a node tells no mode (UnixFS specification, "mode").
DEFAULT_MODES = {stat.S_IFREG: 0o644, stat.S_IFDIR: 0o755, stat.S_IFLNK: 0o777}


class MfsVolume(TreeVolume):
    """/mfs."""

    sealer: Sealer
    roots: MfsRoots
    node: Node

    def connect(self, sealer: Sealer, roots: MfsRoots, node: Node) -> None:
        """Tell the volume who seals its contents, builds its roots and keeps linked blocks."""
        self.sealer = sealer
        sealer.connect(self.unsynced)
        self.roots = roots
        self.node = node

    # --- CIDs -------------------------------------------------------------------------------------

    def cid_of(self, inode: TreeInode) -> str:
        return str(self.cid(inode))

    def cid(self, inode: TreeInode) -> Cid:
        """The CID of the inode's bytes as they are now, never an older one.

        NoAttribute for special files and for files with bytes that nobody has closed yet.
        WouldBlock, for at most ``CID_S`` and then TryAgain, where a root has to be built or a
        content sealed.
        """
        mode = stat.S_IFMT(inode.attributes.st_mode)
        if inode.stored and inode.stored[0] == LINKED:
            return unpack_link(inode.stored[1:]).cid
        if mode == stat.S_IFDIR:
            raise WouldBlock(partial(self._directory_cid, inode))
        profile = self.contents.profile
        if mode == stat.S_IFLNK:
            return build_symlink(inode.stored[1:], profile, None).cid
        if mode != stat.S_IFREG or inode.is_dirty():
            raise NoAttribute
        content = self.writer.content_of(inode)
        if isinstance(content, SmallContent):
            if profile.has_raw_leaves:
                return Cid.raw(content.digest)
            whole = self.contents.read_small(content, 0, content.length)
            return leaf_cid(profile, hash_leaf(profile, whole))
        if isinstance(content, LargeContent):
            if content.state == SEALED and content.cid is not None:
                return unpack_link(content.cid).cid
            raise WouldBlock(partial(self._seal, inode))
        return FileBuilder(profile, None).finish().cid

    async def _directory_cid(self, inode: TreeInode) -> object:
        with trio.move_on_after(CID_S):
            cid = await self.roots.cid_of_directory(inode.ino)
            if cid is not None:
                return str(cid).encode()
        raise TryAgain

    async def _seal(self, inode: TreeInode) -> object:
        with trio.move_on_after(CID_S):
            await self.sealer.seal(inode)
            return RETRY
        raise TryAgain

    # --- contents linked by their CID -------------------------------------------------------------

    async def link_node(self, parent: TreeInode, name: bytes, cid: Cid, caller: Caller) -> None:
        """Show a DAG under a new name without copying it: O(1), whatever its size.

        Exists if the name is taken; NotAvailableOffline if the root block is not here, Corrupt if
        it is no file and no directory. The DAG is protected from collection from now on; a block
        that is missing below is named when somebody comes to it.
        """
        async with self.node.hold(cid):
            found = await self.node.stat(str(cid))
            block = await self.node.block_get(cid)
            # A block of 2 MiB has 40,000 links: 50 ms.
            tsize = await trio.to_thread.run_sync(_tsize, cid, block)
            await complete(self._link, parent, name, cid, tsize, found.node, caller)

    def _link(
        self,
        parent: TreeInode,
        name: bytes,
        cid: Cid,
        tsize: int,
        node: UnixfsStat,
        caller: Caller,
    ) -> None:
        self.check_new(parent, name)
        inode = self._linked_inode(parent, cid, tsize, node, caller)
        self.make_inode(parent, name, inode)
        if stat.S_ISDIR(inode.attributes.st_mode):
            parent.attributes.st_nlink += 1

    def _linked_inode(
        self, parent: TreeInode, cid: Cid, tsize: int, node: UnixfsStat, caller: Caller
    ) -> TreeInode:
        kind = KINDS[node.kind]
        permissions = node.mode if node.mode is not None else DEFAULT_MODES[kind]
        inode = self.new_inode(parent, kind | stat.S_IMODE(permissions), caller)
        attributes = inode.attributes
        if node.kind == "symlink":
            inode.stored = symlink_blob(node.target or b"")
            attributes.st_size = len(node.target or b"")
            return inode
        inode.stored = linked_blob(tsize.to_bytes(8, "little") + cid.binary)
        if kind == stat.S_IFREG:
            attributes.st_size = node.size_bytes
            attributes.st_blocks = blocks_of(node.size_bytes)
        return inode

    def find(self, parent: Inode, name: bytes) -> TreeInode | None:
        stored: bytes = parent.stored  # type: ignore[attr-defined]
        if stored and stored[0] == LINKED:
            self.expand(parent)
        return super().find(parent, name)

    def is_empty(self, inode: TreeInode) -> bool:
        self.expand(inode)
        return super().is_empty(inode)

    def commit_names(self, ino: int) -> None:
        self.expand(self.inodes.get(ino))
        super().commit_names(ino)

    def expand(self, inode: Inode) -> None:
        """A directory linked by its CID gets rows for its names before anybody looks at them."""
        assert isinstance(inode, TreeInode)
        if inode.stored and inode.stored[0] == LINKED:
            raise WouldBlock(partial(self._expand, inode), self.name)

    async def _expand(self, inode: TreeInode) -> object:
        cid = unpack_link(inode.stored[1:]).cid
        entries: list[LsEntry] = []
        async for page in self.node.ls(str(cid)):
            entries += map(_known, page)
        for entry in entries:
            if entry.node is None:
                raise NotAvailableOffline(f"{entry.cid}, a part of {cid}, is not on this machine")
        if inode.stored and inode.stored[0] == LINKED:
            await complete(self._record_names, inode, entries)
        return RETRY

    def _record_names(self, inode: TreeInode, entries: list[LsEntry]) -> None:
        """One transaction: rows for all names, and the directory is one like any other."""
        tree = self.tree
        caller = PlainCaller(inode.attributes.st_uid, inode.attributes.st_gid)
        batch: Batch = []
        link = inode.stored[1:]
        directories = 0
        for entry in entries:
            assert entry.node is not None
            made = self._linked_inode(inode, entry.cid, entry.tsize, entry.node, caller)
            packed = pack_attributes(made.attributes)
            # As old as anything: whatever past the directory has, it had these names.
            row = (made.ino, self.mount_id, inode.ino, 0, packed, made.stored)
            batch.append((INSERT_INODE, row))
            batch.append(tree.add_name(inode.ino, entry.name, made.ino, 0))
            if entry.node.kind in ("directory", "hamt"):
                directories += 1
                batch.append(("update inode set cid=? where ino=?", (made.stored[1:], made.ino)))
        statement = "update inode set content=?,cid=? where ino=?"
        stored = bytes((EXPANDED,))
        batch.append((statement, (stored, link, inode.ino)))
        tree.commit(batch)
        inode.stored = stored
        inode.attributes.st_nlink = 2 + directories
        inode.is_touched = True
        self.writer.touched[inode.ino] = inode

    def read_linked(self, stored: bytes, offset: int, size: int) -> bytes | bytearray | memoryview:
        return self.node.read_nowait(unpack_link(stored[1:]).cid, offset, size)

    def materialize(self, inode: TreeInode) -> None:
        raise WouldBlock(partial(self._materialize, inode), self.name)

    async def _materialize(self, inode: TreeInode) -> object:
        """The bytes of a linked file, copied into an overlay that nobody has changed yet."""
        overlay = Overlay()
        offset = 0
        try:
            async for piece in self.node.cat(str(unpack_link(inode.stored[1:]).cid)):
                self.overlays.write(overlay, offset, piece)
                offset += len(piece)
                await trio.lowlevel.checkpoint()
        except BaseException:
            self.overlays.discard(overlay)
            raise
        overlay.is_dirty = False
        if inode.overlay is None and inode.stored and inode.stored[0] == LINKED:
            self.writer.attach(inode, overlay)
            self.unsynced.wrote(inode, offset)
        else:
            self.overlays.discard(overlay)
        return RETRY


def _known(entry: LsEntry) -> LsEntry:
    """A raw block is a file of its link's size, here or not: reading it tells what is missing."""
    if entry.node is not None or entry.cid.codec != RAW:
        return entry
    return replace(entry, node=UnixfsStat("raw", entry.tsize))


def _tsize(cid: Cid, block: bytes) -> int:
    """What a link to this DAG says of its size: its blocks, each as often as it is linked."""
    if cid.codec != DAG_PB:
        return len(block)
    return len(block) + sum(link.tsize or 0 for link in decode(block).links)

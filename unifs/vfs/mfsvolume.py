"""MfsVolume: the tree volume that is a UnixFS directory too: all that is in it has a CID."""

from __future__ import annotations

import stat
from functools import partial
from typing import TYPE_CHECKING

import trio

from unifs.errors import NoAttribute, TryAgain
from unifs.ipfs.cid import Cid
from unifs.ipfs.unixfs.builder import FileBuilder, build_symlink, hash_leaf, leaf_cid
from unifs.journal.content import LINKED, SEALED, SYMLINK, LargeContent, SmallContent
from unifs.vfs.roots import MfsRoots, unpack_link
from unifs.vfs.treevolume import TreeVolume
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.vfs.sealing import Sealer
    from unifs.vfs.treeinode import TreeInode

#: How long a CID may take to be computed before the caller is told to try again.
CID_S = 5.0


class MfsVolume(TreeVolume):
    """/mfs."""

    sealer: Sealer
    roots: MfsRoots

    def connect(self, sealer: Sealer, roots: MfsRoots) -> None:
        """Tell the volume who seals its contents and builds its roots."""
        self.sealer = sealer
        self.roots = roots

    def cid_of(self, inode: TreeInode) -> str:
        return str(self.cid(inode))

    def cid(self, inode: TreeInode) -> Cid:
        """The CID of the inode's bytes as they are now, never an older one.

        NoAttribute for special files and for files with bytes that nobody has closed yet.
        WouldBlock, for at most ``CID_S`` and then TryAgain, where a root has to be built or a
        content sealed.
        """
        mode = stat.S_IFMT(inode.attributes.st_mode)
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
                return unpack_link(content.cid)[0]
            raise WouldBlock(partial(self._seal, inode))
        if inode.stored and inode.stored[0] == LINKED:
            return unpack_link(inode.stored[1:])[0]
        assert not inode.stored or inode.stored[0] != SYMLINK
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

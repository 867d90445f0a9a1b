"""IpfsVolume: /ipfs. A remote volume whose backend is the node in this process.

Its bytes lie on this machine: the read cache hands reads on to the node (verified there, in the
page cache, 5 µs for 4 KiB) and keeps no second copy. The root is open: it shows pinned roots and
those used lately, and answers for every other CID when asked, so absence there is the node's to
tell.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.errors import InvalidCid, NoAttribute, NotFound
from unifs.ipfs.cid import Cid
from unifs.vfs.remotefile import RemoteDirectory, RemoteHandle
from unifs.vfs.remoterows import RemoteInode
from unifs.vfs.remotevolume import RemoteVolume
from unifs.vfs.volume import DirectoryHandle
from unifs.waiting import RETRY, WouldBlock, complete

if TYPE_CHECKING:
    from unifs.mounts.ipfs import IpfsMount
    from unifs.types import Entry
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Emit, Inode


class IpfsHandle(RemoteHandle):
    """An open file: what it reads is not collected meanwhile."""

    __slots__ = ("held",)

    volume: IpfsVolume

    def __init__(
        self, inode: TreeInode, volume: TreeVolume, can_read: bool, can_write: bool
    ) -> None:
        super().__init__(inode, volume, can_read, can_write)
        self.held = self.pinned
        if self.held:
            self.volume.mount.hold(self.held)

    def _close(self, inode: TreeInode) -> None:
        super()._close(inode)
        if self.held:
            self.volume.mount.let_go(self.held)


class IpfsDirectory(RemoteDirectory):
    """An open directory: it and what is below it are not collected meanwhile."""

    __slots__ = ("held",)

    volume: IpfsVolume

    def __init__(self, inode: TreeInode, volume: TreeVolume) -> None:
        super().__init__(inode, volume)
        assert isinstance(inode, RemoteInode)
        self.held = inode.version
        if self.held:
            self.volume.mount.hold(self.held)

    def release(self) -> None:
        super().release()
        if self.held:
            self.volume.mount.let_go(self.held)


class IpfsRoot(DirectoryHandle):
    """The root's listing: what the node named when the stream was opened or rewound."""

    __slots__ = ("_entries", "volume")

    def __init__(self, inode: RemoteInode, volume: IpfsVolume) -> None:
        super().__init__(inode)
        self.volume = volume
        self._entries: list[Entry] | None = None

    def readdir(self, offset: int, emit: Emit) -> None:
        entries = self._entries
        if entries is None:
            raise WouldBlock(self._look, self.volume.name)
        for position in range(offset, len(entries)):
            inode = self.volume.find(self.inode, entries[position].name)
            if inode is None:
                continue
            if not emit(entries[position].name, inode.attributes, position + 1):
                return
            self.volume.inodes.remember(inode.ino)
        if offset >= len(entries):
            self._entries = None

    async def _look(self) -> object:
        assert isinstance(self.inode, RemoteInode)
        entries: list[Entry] = []
        after: str | None = None
        while True:
            page = await self.volume.mount.scan("", after)
            entries += page.entries
            after = page.after
            if after is None:
                break
        known = [(entry.name, os.fsdecode(entry.name), entry.node) for entry in entries]
        await complete(self.volume.merge.take, self.inode, known)
        self._entries = entries
        return RETRY


class IpfsVolume(RemoteVolume):
    """/ipfs."""

    mount: IpfsMount
    handle_type = IpfsHandle
    directory_type = IpfsDirectory
    refusal = "what lies in /ipfs is named by its hash and never changes; write below /mfs"

    def is_listed(self, inode: RemoteInode) -> bool:
        return inode.ino != self.root and super().is_listed(inode)

    def lookup(self, parent: Inode, name: bytes) -> TreeInode:
        if parent.ino == self.root:
            _check_cid(name)
        return super().lookup(parent, name)

    def opendir(self, inode: Inode) -> DirectoryHandle:
        assert isinstance(inode, RemoteInode)
        if inode.ino == self.root:
            return IpfsRoot(inode, self)
        return super().opendir(inode)

    def cid_of(self, inode: TreeInode) -> str:
        assert isinstance(inode, RemoteInode)
        if not inode.version:
            raise NoAttribute
        return inode.version


def _check_cid(name: bytes) -> None:
    """A name that is no CID is answered without asking anybody, and the kernel may remember."""
    try:
        Cid.parse(name.decode("ascii"))
    except (UnicodeDecodeError, InvalidCid):
        raise NotFound(negative_timeout_s=3600.0) from None

"""Handles of remote files and directories."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from unifs.cache.readahead import Window
from unifs.cache.source import Source
from unifs.errors import BadHandle, Stale
from unifs.journal.content import REMOTE
from unifs.vfs.remotefsync import sync_directory, sync_file
from unifs.vfs.remoterows import COMPLETE, UNLISTED, RemoteInode
from unifs.vfs.tree import fill_attributes
from unifs.vfs.treefile import PAGE, TreeDirectory, TreeHandle
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from unifs.mounts.base import LocalReader
    from unifs.types import Version
    from unifs.vfs.remotevolume import RemoteVolume
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Emit


class RemoteHandle(TreeHandle):
    """An open file of a remote mount.

    While ``pinned`` names a version, reads give exactly that version's bytes, whatever the backend
    has meanwhile. A handle whose version is the one that local changes are laid over follows them;
    one that is pinned to an older version keeps it, and to write or cut through it is Stale.
    """

    __slots__ = ("local", "pinned", "size_bytes", "source", "window")

    volume: RemoteVolume

    def __init__(
        self, inode: TreeInode, volume: TreeVolume, can_read: bool, can_write: bool
    ) -> None:
        super().__init__(inode, volume, can_read, can_write)
        self.pinned: Version | None = None
        self.source: Source | None = None
        self.window = Window()
        self.local: LocalReader | None = None
        assert isinstance(inode, RemoteInode)
        if inode.overlay is None and is_remote(inode):
            self._pin(inode)

    def _pin(self, inode: RemoteInode) -> None:
        mount = self.volume.mount
        path = inode.path or ""
        self.pinned = inode.version
        self.size_bytes = inode.attributes.st_size
        if mount.supports("open_nowait"):
            self.local = mount.open_nowait(path, inode.version)
        else:
            name = self.volume.name
            self.source = Source.of(name, mount, path, inode.version, self.size_bytes)

    def _follows(self, inode: RemoteInode) -> bool:
        """Whether this handle sees the inode's local bytes; once it does, it always does."""
        if self.pinned is None:
            return True
        if inode.overlay is None and is_remote(inode):
            return False
        if inode.based_on != self.pinned:
            return False
        self.pinned = self.source = self.local = None
        self.volume.cache.close(self.window)
        return True

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if self._follows(inode):
            return super().read(offset, size)
        if not self.can_read:
            raise BadHandle
        if self.local is not None:
            return self.local.read_nowait(offset, size)
        assert self.source is not None
        return self.volume.cache.read_nowait(self.source, offset, size, self.window)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        if not self.can_write:
            raise BadHandle
        self.check_version()
        return super().write(offset, data)

    def check_version(self) -> None:
        """Stale where another version than the one that was opened would be changed."""
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if not self._follows(inode) and self.pinned != inode.version:
            raise Stale("the file changed at its backend since it was opened")

    def fsync(self, datasync: bool) -> None:
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if not self.volume.waits_for_backend:
            super().fsync(datasync)
        raise WouldBlock(partial(sync_file, self.volume, inode), self.volume.name)

    def _close(self, inode: TreeInode) -> None:
        had_writers = self.can_write
        self.volume.cache.close(self.window)
        super()._close(inode)
        if had_writers and inode.writers == 0:
            self.volume.closed(inode.ino)


class RemoteDirectory(TreeDirectory):
    """A listing that waits for one page at a time."""

    __slots__ = ()

    is_prompt = False
    volume: RemoteVolume

    def rewind(self) -> None:
        """``readdir`` waits by itself, for the backend too."""

    def readdir(self, offset: int, emit: Emit) -> None:
        volume = self.volume
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if inode.path is None:
            super().readdir(offset, emit)
            return
        if offset == 0:
            volume.commit_names(inode.ino)
            if inode.listing == COMPLETE and not volume.is_listed(inode):
                inode.listing, inode.cursor = UNLISTED, None
                raise WouldBlock(lambda: volume.merge.scan_page(inode), volume.name)
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
            raise WouldBlock(lambda: volume.merge.scan_page(inode), volume.name)

    def fsync(self, datasync: bool) -> None:
        inode = self.inode
        assert isinstance(inode, RemoteInode)
        if not self.volume.waits_for_backend:
            super().fsync(datasync)
        raise WouldBlock(partial(sync_directory, self.volume, inode), self.volume.name)


def is_remote(inode: TreeInode) -> bool:
    """Whether the inode's bytes are the backend's."""
    return bool(inode.stored) and inode.stored[0] == REMOTE

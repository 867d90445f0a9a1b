"""Handles of files and directories of the tree."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from unifs.errors import BadHandle, JournalFailed, TooLarge, UnifsError
from unifs.journal.content import SMALL_BYTES, SmallContent
from unifs.journal.overlay import is_full
from unifs.vfs.tree import fill_attributes
from unifs.vfs.volume import DirectoryHandle, Handle
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from unifs.vfs.treeinode import TreeInode
    from unifs.vfs.treevolume import TreeVolume
    from unifs.vfs.volume import Emit

#: A sparse file of this size has a million leaves; beyond it, sealing would take hours.
FILE_BYTES_MAX = 1 << 40
PAGE = 256
#: relatime: a read moves atime if it is not newer than mtime or is older than a day.
RELATIME_NS = 86_400_000_000_000


class TreeHandle(Handle):
    """An open regular file of a writable tree volume."""

    __slots__ = ("can_read", "can_write", "has_read", "volume")

    def __init__(
        self, inode: TreeInode, volume: TreeVolume, can_read: bool, can_write: bool
    ) -> None:
        self.inode = inode
        self.fh = 0
        self.volume = volume
        self.can_read = can_read
        self.can_write = can_write
        self.has_read = False
        inode.opens += 1
        if can_write:
            inode.writers += 1

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        inode: TreeInode = self.inode  # type: ignore[assignment]
        if not self.can_read:
            raise BadHandle
        if not self.has_read:
            self._touch_atime(inode)
        overlay = inode.overlay
        contents = self.volume.contents
        if overlay is not None:
            if overlay.buffer is not None:
                return bytes(memoryview(overlay.buffer)[offset : offset + size])
            end = min(offset + size, inode.attributes.st_size)
            return contents.read_extents(overlay.extents, offset, end) if offset < end else b""
        content = inode.content
        if content is None:
            if not inode.stored:
                return b""
            content = self.volume.writer.content_of(inode)
        if isinstance(content, SmallContent):
            return contents.read_small(content, offset, size)
        if content is not None:
            return contents.read_large(content, offset, size)
        return self.volume.read_linked(inode.stored, offset, size)

    def _touch_atime(self, inode: TreeInode) -> None:
        self.has_read = True
        if self.volume.refuses_changes:
            return
        attributes = inode.attributes
        now = time.time_ns()
        last = attributes.st_atime_ns
        if last <= attributes.st_mtime_ns or now - last > RELATIME_NS:
            attributes.st_atime_ns = now
            if inode.pending is None and not inode.is_gone:
                inode.is_touched = True
                self.volume.writer.touched[inode.ino] = inode

    def write(self, offset: int, data: bytes | memoryview) -> int:
        inode: TreeInode = self.inode  # type: ignore[assignment]
        if not self.can_write:
            raise BadHandle
        size = len(data)
        end = offset + size
        if end > FILE_BYTES_MAX:
            raise TooLarge(f"a file may have up to {FILE_BYTES_MAX} bytes")
        volume = self.volume
        unsynced = volume.unsynced
        unsynced.admit(size)
        overlay = inode.overlay
        if overlay is None or inode.is_gone:
            overlay = volume.writer.overlay_of(inode)
        buffer = overlay.buffer
        if buffer is not None and offset == len(buffer) and end <= SMALL_BYTES:
            # What nearly every write to a small file does.
            buffer += data
            overlay.is_dirty = True
            volume.overlays.appended = overlay
        else:
            volume.overlays.write(overlay, offset, data)
        attributes = inode.attributes
        if end > attributes.st_size:
            attributes.st_size = end
        attributes.st_mtime_ns = attributes.st_ctime_ns = time.time_ns()
        unsynced.wrote(inode, size)
        return size

    def flush(self) -> None:
        inode: TreeInode = self.inode  # type: ignore[assignment]
        # A reader's close commits where nobody else will: it opened with O_TRUNC.
        if (self.can_write or not inode.writers) and inode.is_dirty():
            self.volume.writer.commit(inode)

    def release(self) -> None:
        inode: TreeInode = self.inode  # type: ignore[assignment]
        try:
            self.flush()
        except WouldBlock:
            raise
        except BaseException:
            self._close(inode)
            raise
        self._close(inode)

    def _close(self, inode: TreeInode) -> None:
        inode.opens -= 1
        if self.can_write:
            inode.writers -= 1
        # No row knows what was written to a file without a name: its readers need the overlay.
        is_needed = inode.writers or inode.is_dirty() or (inode.is_gone and inode.opens)
        if inode.overlay is not None and not is_needed:
            self.volume.writer.detach(inode)
        if inode.opens == 0 and inode.is_gone:
            self.volume.forgotten(inode.ino)

    def fsync(self, datasync: bool) -> None:
        inode: TreeInode = self.inode  # type: ignore[assignment]
        self.volume.writer.durability.make_durable_nowait(inode)


class TreeDirectory(DirectoryHandle):
    """An open directory: a range query by row id, ``PAGE`` rows at a time.

    The row id is the offset, so a stream is stable under concurrent create and unlink and needs no
    snapshot. Names that came after its start are left out: a program that makes one for each that
    it reads would never end. Rows fetched ahead are dropped when the reader seeks and when anything
    was committed since: the kernel would keep a name that is gone.
    """

    __slots__ = ("_at", "_commits", "_has_all", "_last", "_rows", "volume")

    is_prompt = True

    def __init__(self, inode: TreeInode, volume: TreeVolume) -> None:
        super().__init__(inode)
        self.volume = volume
        self._rows: list[tuple[int, bytes, int, bytes]] = []
        self._at = -1
        self._last = 1 << 62
        self._commits = -1
        #: No row follows ``_rows``.
        self._has_all = False

    def rewind(self) -> None:
        self._commit_names()

    def _commit_names(self) -> None:
        try:
            self.volume.commit_names(self.inode.ino)
        except (UnifsError, OSError) as error:
            # On a full disk people list what they may delete, in a tree that is read-only by now
            # what they have; a name that cannot be committed is not shown.
            if not is_full(error) and not isinstance(error, JournalFailed):
                raise

    def readdir(self, offset: int, emit: Emit) -> None:
        if offset == 0:
            self._commit_names()
            self._last = self.volume.tree.last_dentry
        commits = self.volume.storage.database.commits
        if self._at != offset or self._commits != commits:
            self._rows = []
            self._has_all = False
            self._at = offset
            self._commits = commits
        volume = self.volume
        hot = volume.inodes.hot
        remember = volume.inodes.remember
        while True:
            rows = self._rows
            if not rows:
                if self._has_all:
                    return
                rows = self._rows = volume.tree.listing(self.inode.ino, self._at, PAGE)
                self._has_all = len(rows) < PAGE
                rows.reverse()
            while rows:
                row_id, name, ino, packed = rows[-1]
                if row_id > self._last:
                    return
                inode = hot.get(ino)
                if inode is not None:
                    if inode.overlay is not None:  # type: ignore[attr-defined]
                        volume.counted(inode)  # type: ignore[arg-type]
                    attributes = inode.attributes
                else:
                    attributes = volume.scratch
                    fill_attributes(attributes, ino, packed, volume.timeout_s)
                if not emit(name, attributes, row_id):
                    return
                remember(ino)
                rows.pop()
                self._at = row_id

    def fsync(self, datasync: bool) -> None:
        volume = self.volume
        volume.commit_names(self.inode.ino)
        volume.storage.flusher.flush_nowait()

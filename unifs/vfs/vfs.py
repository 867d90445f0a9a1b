"""The vfs: what a system call means, for every volume and every front end.

It checks names and flags, finds the inode and its volume, owns handles and the kernel's look-up
counts. It knows no FUSE and no backend. All operations follow ``unifs.waiting``: plain functions
that raise WouldBlock, before anything has changed, where they would have to wait.

Belongs to the event loop's thread; holds no lock.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from unifs.errors import (
    BadHandle,
    CrossMount,
    InvalidArgument,
    NameTooLong,
    TooManyHandles,
)
from unifs.types import NAME_MAX_BYTES, SYMLINK_MAX_BYTES, PlainAttributes, SetAttributes, Space
from unifs.vfs.inodes import Inodes
from unifs.vfs.namespace import Namespace
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from unifs.types import Attributes, Caller
    from unifs.vfs.volume import DirectoryHandle, Emit, Handle, Inode

HANDLES_MAX = 1 << 20
#: Offsets behind "." and "..", where no volume's own offsets are.
DOT, DOT_DOT = (1 << 62) + 1, (1 << 62) + 2
ALLOWED_TYPES = frozenset((0o100000, 0o010000, 0o140000, 0o020000, 0o060000))
#: Flags of open(2) that ask for a change.
WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC


class Vfs:
    """The tree as one file system."""

    def __init__(
        self, state: Path, factory: Callable[[], Attributes] = PlainAttributes, reserve: int = 0
    ) -> None:
        """``state``: whose disk statfs answers for, less ``reserve`` bytes."""
        self.factory = factory
        self.inodes = Inodes()
        self.namespace = Namespace(self.inodes, factory)
        self._state = state
        self._reserve = reserve
        self._handles: dict[int, Handle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._last_fh = 0

    # --- names ------------------------------------------------------------------------------------

    @staticmethod
    def check_name(name: bytes) -> None:
        """Refuse what cannot be a new name."""
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong
        if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
            raise InvalidArgument(f"{os.fsdecode(name)!r} cannot be a name")

    def to_change(self, ino: int) -> Inode:
        """The inode, where something is to be changed in or of it; ReadOnly where nothing may."""
        inode = self.inodes.get(ino)
        if inode.volume.refuses_changes:
            raise inode.volume.refused()
        return inode

    def lookup(self, parent: int, name: bytes, caller: Caller) -> Attributes:
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong
        inodes = self.inodes
        above = inodes.get(parent)
        inode = above.volume.lookup(above, name)
        if inode.ino not in inodes.hot:
            inodes.add(inode)
        inodes.remember(inode.ino)
        return inode.attributes

    def forget(self, pairs: Sequence[tuple[int, int]]) -> None:
        for ino, lookups in pairs:
            self.inodes.forget(ino, lookups)

    def getattr(self, ino: int) -> Attributes:
        inode = self.inodes.get(ino)
        return inode.volume.getattr(inode)

    def setattr(
        self, ino: int, changes: SetAttributes, fh: int | None, caller: Caller
    ) -> Attributes:
        if changes.size_bytes is not None and changes.size_bytes < 0:
            raise InvalidArgument
        inode = self.to_change(ino)
        handle = self._handles.get(fh) if fh is not None else None
        return inode.volume.setattr(inode, changes, handle, caller)

    def readlink(self, ino: int) -> bytes:
        inode = self.inodes.get(ino)
        return inode.volume.readlink(inode)

    def _made(self, inode: Inode) -> Attributes:
        if inode.ino not in self.inodes.hot:
            self.inodes.add(inode)
        self.inodes.remember(inode.ino)
        return inode.attributes

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attributes:
        self.check_name(name)
        if mode & 0o170000 not in ALLOWED_TYPES:
            raise InvalidArgument
        above = self.to_change(parent)
        return self._made(above.volume.mknod(above, name, mode, rdev, caller))

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attributes:
        self.check_name(name)
        above = self.to_change(parent)
        return self._made(above.volume.mkdir(above, name, mode, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attributes:
        self.check_name(name)
        if len(target) > SYMLINK_MAX_BYTES:
            raise NameTooLong("the target of a symlink may have 4,095 bytes")
        above = self.to_change(parent)
        return self._made(above.volume.symlink(above, name, target, caller))

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Attributes:
        self.check_name(name)
        inode = self.inodes.get(ino)
        above = self.to_change(parent)
        if inode.volume is not above.volume:
            raise CrossMount
        return self._made(above.volume.link(inode, above, name, caller))

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        above = self.to_change(parent)
        above.volume.unlink(above, name, caller)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        above = self.to_change(parent)
        above.volume.rmdir(above, name, caller)

    def rename(
        self,
        parent: int,
        name: bytes,
        new_parent: int,
        new_name: bytes,
        flags: int,
        caller: Caller,
    ) -> None:
        self.check_name(new_name)
        above = self.to_change(parent)
        below = self.inodes.get(new_parent)
        if above.volume is not below.volume:
            raise CrossMount
        above.volume.rename(above, name, below, new_name, flags)

    # --- files ------------------------------------------------------------------------------------

    def open(self, ino: int, flags: int, caller: Caller) -> Handle:
        inode = self.to_change(ino) if flags & WRITING else self.inodes.get(ino)
        if len(self._handles) >= HANDLES_MAX:
            raise TooManyHandles
        return self._opened(inode.volume.open(inode, flags, caller))

    def _opened(self, handle: Handle) -> Handle:
        self._last_fh += 1
        handle.fh = self._last_fh
        self._handles[handle.fh] = handle
        return handle

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Handle, Attributes]:
        self.check_name(name)
        if len(self._handles) >= HANDLES_MAX:
            raise TooManyHandles
        above = self.to_change(parent)
        inode, handle = above.volume.create(above, name, mode, flags, caller)
        return self._opened(handle), self._made(inode)

    def handle(self, fh: int) -> Handle:
        """The open file of that number; BadHandle if there is none."""
        try:
            return self._handles[fh]
        except KeyError:
            raise BadHandle from None

    def read(self, fh: int, offset: int, size: int) -> bytes | bytearray | memoryview:
        try:
            handle = self._handles[fh]
        except KeyError:
            raise BadHandle from None
        return handle.read(offset, size)

    def write(self, fh: int, offset: int, data: bytes | memoryview) -> int:
        try:
            handle = self._handles[fh]
        except KeyError:
            raise BadHandle from None
        return handle.write(offset, data)

    def flush(self, fh: int) -> None:
        try:
            handle = self._handles[fh]
        except KeyError:
            raise BadHandle from None
        handle.flush()

    def release(self, fh: int) -> None:
        handle = self.handle(fh)
        try:
            handle.release()
        except WouldBlock:
            raise
        except BaseException:
            # The kernel does not ask twice.
            self._handles.pop(fh, None)
            raise
        del self._handles[fh]

    def inode_of(self, fh: int) -> int:
        """The inode of an open file or directory, 0 where it is gone."""
        opened = self._handles.get(fh) or self._directories.get(fh)
        return opened.inode.ino if opened is not None else 0

    def fsync(self, fh: int, datasync: bool) -> None:
        self.handle(fh).fsync(datasync)

    # --- directories ------------------------------------------------------------------------------

    def opendir(self, ino: int, caller: Caller) -> int:
        inode = self.inodes.get(ino)
        directory = inode.volume.opendir(inode)
        self._last_fh += 1
        directory.fh = self._last_fh
        self._directories[directory.fh] = directory
        return directory.fh

    def _directory(self, fh: int) -> DirectoryHandle:
        try:
            return self._directories[fh]
        except KeyError:
            raise BadHandle from None

    def readdir(self, fh: int, offset: int, emit: Emit) -> None:
        directory = self._directory(fh)
        if offset == 0 or offset == DOT:
            directory.rewind()
            attributes = directory.inode.attributes
            if offset == 0 and not emit(b".", attributes, DOT):
                return
            # A volume waits only before it has emitted anything. A request costs 40 µs: its reply's
            # buffer is new memory.
            if not emit(b"..", attributes, DOT_DOT) or not directory.is_prompt:
                return
            offset = DOT_DOT
        directory.readdir(0 if offset == DOT_DOT else offset, emit)

    def releasedir(self, fh: int) -> None:
        self._directory(fh).release()
        del self._directories[fh]

    def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._directory(fh).fsync(datasync)

    # --- the rest ---------------------------------------------------------------------------------

    def statfs(self) -> Space:
        disk = os.statvfs(self._state)
        size = disk.f_frsize
        return Space(
            total_bytes=disk.f_blocks * size,
            free_bytes=max(0, disk.f_bfree * size - self._reserve),
            available_bytes=max(0, disk.f_bavail * size - self._reserve),
            files=disk.f_files,
            files_free=disk.f_ffree,
        )

    def getxattr(self, ino: int, name: bytes) -> bytes:
        inode = self.inodes.get(ino)
        return inode.volume.getxattr(inode, name)

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        if not name or b"\0" in name:
            raise InvalidArgument
        if len(name) > NAME_MAX_BYTES:
            raise NameTooLong
        inode = self.to_change(ino)
        inode.volume.setxattr(inode, name, value)

    def listxattr(self, ino: int) -> list[bytes]:
        inode = self.inodes.get(ino)
        return inode.volume.listxattr(inode)

    def removexattr(self, ino: int, name: bytes) -> None:
        inode = self.to_change(ino)
        inode.volume.removexattr(inode, name)

    def statistics(self) -> dict[str, int]:
        return {
            "handles": len(self._handles),
            "directories": len(self._directories),
            **self.inodes.statistics(),
        }

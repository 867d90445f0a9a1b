"""Open files and directories of the host.

``HostVolume`` makes them. They write through: what a write returns for is in the host's file,
where every other program sees it. Reads try ``preadv(RWF_NOWAIT)`` inline and go to a thread only
for what the page cache does not hold; writes over 128 KiB, synchronous writes and fsync go to a
thread. A thread is never abandoned: a deadline that passes meanwhile waits for the disk, so an
answer always says what happened.

A directory is read with getdents64, and the offsets handed out are the host's own cookies: telldir,
rewinddir and listings of any size work as on the host, with 32 KiB of memory and no snapshot.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from unifs.mounts.hostcalls import dirents, getdents
from unifs.vfs.volume import DirectoryHandle, Handle
from unifs.waiting import WouldBlock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from unifs.vfs.hostnodes import HostInode, HostNode
    from unifs.vfs.volume import Emit

#: pwrite of 128 KiB into the page cache takes 15 µs, a thread at least 57.
WRITE_INLINE_BYTES_MAX: Final = 128 << 10
#: One getdents64: about 800 entries of a usual directory.
DIRENTS_BYTES: Final = 32 << 10
_SYNC_FLAGS: Final = os.O_SYNC | os.O_DSYNC


class HostIo:
    """What the handles of one volume share: a limiter for threads, a buffer for reads."""

    __slots__ = ("_buffer", "_limiter", "_mount", "handles", "on_release")

    def __init__(self, mount: str, threads_max: int) -> None:
        #: Open files and directories.
        self.handles = 0
        #: Called after each of them was closed.
        self.on_release: Callable[[], None] = _nothing
        self._mount = mount
        self._limiter = trio.CapacityLimiter(threads_max)
        self._buffer = bytearray()

    def released(self) -> None:
        """A handle was closed."""
        self.handles -= 1
        self.on_release()

    def view(self, size: int) -> memoryview:
        """``size`` bytes to read into, valid until the next read; grows to 1 MiB."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        return memoryview(self._buffer)[:size]

    def would_block(self, call: Callable[..., object], *args: object) -> WouldBlock:
        """To be raised: its wait runs the call in a thread, and its result is the answer."""
        return WouldBlock(partial(self._run, call, *args), self._mount)

    def _run(self, call: Callable[..., object], *args: object) -> Awaitable[object]:
        return trio.to_thread.run_sync(call, *args, limiter=self._limiter)


class HostHandle(Handle):
    """An open host file. ``flags`` are those of its open(2), for O_APPEND and O_SYNC."""

    __slots__ = ("_io", "_is_dirty", "_is_sync", "fd", "is_writable", "keep_cache", "node")

    def __init__(self, inode: HostInode, fd: int, flags: int, io: HostIo) -> None:
        super().__init__(inode)
        self.node = node = inode.node
        self.fd = fd
        self.keep_cache = False
        self.is_writable = flags & os.O_ACCMODE != os.O_RDONLY
        self._io = io
        self._is_sync = bool(flags & _SYNC_FLAGS)
        self._is_dirty = False
        node.fds = [*(node.fds or ()), fd]
        inode.opens += 1
        io.handles += 1

    def read(self, offset: int, size: int) -> bytes | memoryview:
        view = self._io.view(size)
        try:
            count = os.preadv(self.fd, [view], offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
        else:
            # A short count means either the end of the file or a page that is not in memory.
            if count == size or offset + count >= os.fstat(self.fd).st_size:
                return view[:count]
        raise self._io.would_block(_pread_all, self.fd, size, offset)

    def write(self, offset: int, data: bytes | memoryview) -> int:
        self._is_dirty = True
        if self._is_sync or len(data) > WRITE_INLINE_BYTES_MAX:
            raise self._io.would_block(_pwrite_all, self.fd, data, offset)
        return _pwrite_all(self.fd, data, offset)

    def flush(self) -> None:
        if self._is_dirty:
            # Where the host's file system reports write errors at close (NFS), this is that close.
            os.close(os.dup(self.fd))
            self._is_dirty = False

    def release(self) -> None:
        fds = self.node.fds
        assert fds is not None
        fds.remove(self.fd)
        if not fds:
            self.node.fds = None
        self.inode.opens -= 1
        os.close(self.fd)
        self._io.released()

    def fsync(self, datasync: bool) -> None:
        raise self._io.would_block(os.fdatasync if datasync else os.fsync, self.fd)


class HostDirectoryHandle(DirectoryHandle):
    """An open host directory. ``emit_entry`` looks an entry up and emits it; False: full."""

    __slots__ = ("_at", "_emit_entry", "_fd", "_io", "_pending", "node")

    def __init__(
        self,
        inode: HostInode,
        fd: int,
        emit_entry: Callable[[HostNode, bytes, int, Emit], bool],
        io: HostIo,
    ) -> None:
        super().__init__(inode)
        self.node = inode.node
        self._fd = fd
        self._emit_entry = emit_entry
        self._io = io
        io.handles += 1
        #: Records read from the host and not emitted yet, next one last; ``_at`` is their offset.
        self._pending: list[tuple[bytes, int]] = []
        self._at = 0

    def readdir(self, offset: int, emit: Emit) -> None:
        if offset != self._at or offset == 0:
            os.lseek(self._fd, offset, os.SEEK_SET)
            self._pending.clear()
            self._at = offset
        while self._pending or self._fill():
            name, cookie = self._pending[-1]
            if name not in (b".", b"..") and not self._emit_entry(self.node, name, cookie, emit):
                return
            self._pending.pop()
            self._at = cookie

    def release(self) -> None:
        os.close(self._fd)
        self._io.released()

    def fsync(self, datasync: bool) -> None:
        raise self._io.would_block(os.fsync, self._fd)

    def _fill(self) -> bool:
        buffer = ctypes.create_string_buffer(DIRENTS_BYTES)
        count = getdents(self._fd, buffer)
        self._pending = list(dirents(ctypes.string_at(buffer, count)))[::-1]
        return count > 0


def _nothing() -> None:
    """Nobody wants to know."""


def _pread_all(fd: int, size: int, offset: int) -> bytes:
    parts: list[bytes] = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        size -= len(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> int:
    """All of ``data``; fewer where the disk filled up midway: the next write gets that error.

    With O_APPEND the host ignores the offset, also for what is left after a short write.
    """
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return written
    view = memoryview(data)
    while written < len(data):
        try:
            written += os.pwrite(fd, view[written:], offset + written)
        except OSError:
            return written
    return written

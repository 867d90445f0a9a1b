"""The subject below FUSE: the vfs in this process, called as the kernel would call it.

``InProcess`` runs ``tests.vfs.harness.FileSystem`` in a thread of its own, because hypothesis calls
plain functions. What Linux does before it asks a file system is done here: it walks paths, looks
the last name up, refuses what is open for something else, and moves O_APPEND to the end.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from tests.model.operations import RENAME_EXCHANGE, RENAME_NOREPLACE, Status, kind_of
from tests.vfs import invariants
from tests.vfs.harness import ROOT, File, FileSystem, Stat
from unifs.errors import UnifsError
from unifs.types import SetAttributes
from unifs.vfs.sealing import Sealer
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

WRITABLE = os.O_WRONLY | os.O_RDWR


@dataclass
class Opened:
    """A handle: of a file, or (``file`` None) of a directory opened to read."""

    file: File | None
    flags: int
    ino: int


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class InProcess:
    """A state directory mounted in this process. ``end`` stops it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._serve,))
        self._thread.start()
        self._is_up.wait()

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._has_ended = trio.Event()
        async with FileSystem(self._directory, upkeep=False) as self._fs:
            self._started()
            self._is_up.set()
            await self._has_ended.wait()

    def _started(self) -> None:
        fs = self._fs
        self._sealer = Sealer(fs.writer, fs.storage.blocks, fs.storage.profile)

    def end(self) -> None:
        """Stop cleanly, wait for the thread, and leave nothing: a state has 8 MiB of reserve."""
        self._token.run_sync_soon(self._has_ended.set)
        self._thread.join()
        shutil.rmtree(self._directory)

    def _run(self, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        try:
            return trio.from_thread.run(function, *arguments, trio_token=self._token)
        except UnifsError as error:
            raise _error(error.errno) from error

    # --- paths ------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _directory_of(self, path: bytes) -> AsyncIterator[tuple[int, bytes]]:
        """(inode of the directory, last name); look-ups are forgotten at the end."""
        *above, name = path.split(b"/")
        async with self._walk(above) as ino:
            yield ino, name

    @asynccontextmanager
    async def _walk(self, names: list[bytes]) -> AsyncIterator[int]:
        vfs = self._fs.vfs
        ino, seen = self._fs.volume.root, []
        try:
            for name in names:
                found = await complete(vfs.lookup, ino, name, ROOT)
                seen.append((found.st_ino, 1))
                ino = found.st_ino
                if stat.S_ISLNK(found.st_mode):
                    raise _error(errno.ENOENT)
                if not stat.S_ISDIR(found.st_mode):
                    raise _error(errno.ENOTDIR)
            yield ino
        finally:
            vfs.forget(seen)

    async def _look(self, parent: int, name: bytes) -> Stat | None:
        """What a name leads to now."""
        try:
            found = Stat.of(await complete(self._fs.vfs.lookup, parent, name, ROOT))
        except UnifsError as error:
            if error.errno != errno.ENOENT:
                raise
            return None
        self._fs.vfs.forget([(found.ino, 1)])
        return found

    async def _item(self, path: bytes) -> Stat:
        if not path:
            return await self._fs.stat("")
        async with self._directory_of(path) as (parent, name):
            found = await self._look(parent, name)
        if found is None:
            raise _error(errno.ENOENT)
        return found

    async def _followed(self, path: bytes) -> Stat:
        found = await self._item(path)
        if stat.S_ISLNK(found.mode):
            raise _error(errno.ENOENT)
        return found

    async def _check_vacant(self, path: bytes) -> None:
        async with self._directory_of(path) as (parent, name):
            if await self._look(parent, name) is not None:
                raise _error(errno.EEXIST)

    # --- handles ----------------------------------------------------------------------------------

    def open(self, path: bytes, flags: int) -> Opened:
        return self._run(self._open, path, flags)

    async def _open(self, path: bytes, flags: int) -> Opened:
        async with self._directory_of(path) as (parent, name):
            found = await self._look(parent, name)
        if found is not None:
            if flags & os.O_CREAT and flags & os.O_EXCL:
                raise _error(errno.EEXIST)
            if stat.S_ISLNK(found.mode):
                raise _error(errno.ELOOP)
            if stat.S_ISDIR(found.mode):
                if flags & (WRITABLE | os.O_CREAT | os.O_TRUNC):
                    raise _error(errno.EISDIR)
                self._fs.vfs.inodes.remember(found.ino)
                return Opened(None, flags, found.ino)
        file = await self._fs.open_file(path, flags)
        return Opened(file, flags, file.ino)

    def close(self, handle: Opened) -> None:
        self._run(self._close, handle)

    async def _close(self, handle: Opened) -> None:
        if handle.file is not None:
            await handle.file.close()
        else:
            self._fs.vfs.forget([(handle.ino, 1)])

    def flush(self, handle: Opened) -> None:
        """close(2) of one of several descriptors."""
        if handle.file is not None:
            self._run(handle.file.flush)

    def pread(self, handle: Opened, offset: int, size: int) -> bytes:
        if handle.flags & os.O_WRONLY:
            raise _error(errno.EBADF)
        if handle.file is None:
            raise _error(errno.EISDIR)
        found: bytes = self._run(handle.file.read, offset, size)
        return found

    def pwrite(self, handle: Opened, offset: int, data: bytes) -> int:
        if not handle.flags & WRITABLE or handle.file is None:
            raise _error(errno.EBADF)
        if not data:
            return 0
        if handle.flags & os.O_APPEND:
            offset = self._run(self._size, handle.file)
        written: int = self._run(handle.file.write, offset, data)
        return written

    async def _size(self, file: File) -> int:
        return file.stat().size

    def ftruncate(self, handle: Opened, size: int) -> None:
        if not handle.flags & WRITABLE or handle.file is None:
            raise _error(errno.EINVAL)
        self._run(handle.file.truncate, size)

    def fsync(self, handle: Opened) -> None:
        if handle.file is not None:
            self._run(handle.file.fsync)

    def fstat(self, handle: Opened) -> Status:
        return self._status(self._run(self._stat_of, handle.ino))

    async def _stat_of(self, ino: int) -> Stat:
        return Stat.of(await complete(self._fs.vfs.getattr, ino))

    @staticmethod
    def _status(found: Stat) -> Status:
        kind = kind_of(found.mode)
        is_directory = kind == "dir"
        size, nlink = (0, 0) if is_directory else (found.size, found.nlink)
        return Status(kind, stat.S_IMODE(found.mode), size, nlink, found.mtime_ns)

    # --- names ------------------------------------------------------------------------------------

    def lstat(self, path: bytes) -> Status:
        return self._status(self._run(self._item, path))

    def truncate(self, path: bytes, size: int) -> None:
        self._run(self._truncate, path, size)

    async def _truncate(self, path: bytes, size: int) -> None:
        if stat.S_ISDIR((await self._followed(path)).mode):
            raise _error(errno.EISDIR)
        await self._fs.truncate(path, size)

    def listdir(self, path: bytes) -> list[bytes]:
        names: list[bytes] = self._run(self._listdir, path)
        return sorted(names)

    async def _listdir(self, path: bytes) -> list[bytes]:
        if not stat.S_ISDIR((await self._followed(path)).mode):
            raise _error(errno.ENOTDIR)
        return await self._fs.listdir(path)

    def mkdir(self, path: bytes) -> None:
        self._run(self._make, path, self._fs.mkdir, path)

    def symlink(self, target: bytes, path: bytes) -> None:
        self._run(self._make, path, self._fs.symlink, target, path)

    async def _make(self, path: bytes, make: Callable[..., Awaitable[Any]], *what: bytes) -> None:
        await self._check_vacant(path)
        await make(*what)

    def link(self, old: bytes, new: bytes) -> None:
        self._run(self._link, old, new)

    async def _link(self, old: bytes, new: bytes) -> None:
        await self._item(old)
        await self._check_vacant(new)
        await self._fs.link(old, new)

    def rmdir(self, path: bytes) -> None:
        self._run(self._remove, path, self._fs.rmdir)

    def unlink(self, path: bytes) -> None:
        self._run(self._remove, path, self._fs.unlink)

    async def _remove(self, path: bytes, remove: Callable[[bytes], Awaitable[None]]) -> None:
        await self._item(path)
        await remove(path)

    def readlink(self, path: bytes) -> bytes:
        found: bytes = self._run(self._readlink, path)
        return found

    async def _readlink(self, path: bytes) -> bytes:
        if not stat.S_ISLNK((await self._item(path)).mode):
            raise _error(errno.EINVAL)
        return await self._fs.readlink(path)

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self._run(self._rename, old, new, flags)

    async def _rename(self, old: bytes, new: bytes, flags: int) -> None:
        one, other = self._directory_of(old), self._directory_of(new)
        async with one as (source, name), other as (target, new_name):
            if await self._look(source, name) is None:
                raise _error(errno.ENOENT)
            there = await self._look(target, new_name)
        if flags & RENAME_NOREPLACE and there is not None:
            raise _error(errno.EEXIST)
        if flags & RENAME_EXCHANGE and there is None:
            raise _error(errno.ENOENT)
        if new.startswith(old + b"/"):
            raise _error(errno.EINVAL)
        if old.startswith(new + b"/"):
            raise _error(errno.EINVAL if flags & RENAME_EXCHANGE else errno.ENOTEMPTY)
        await self._fs.rename(old, new, flags)

    # --- attributes -------------------------------------------------------------------------------

    def chmod(self, path: bytes, mode: int) -> None:
        self._run(self._set, path, SetAttributes(mode=mode))

    def utime(self, path: bytes, mtime_ns: int) -> None:
        self._run(self._set, path, SetAttributes(mtime_ns=mtime_ns, atime_ns=mtime_ns))

    async def _set(self, path: bytes, changes: SetAttributes) -> None:
        found = await self._followed(path)
        await complete(self._fs.vfs.setattr, found.ino, changes, None, ROOT)

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        self._run(self._setxattr, path, name, value, flags)

    async def _setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        await self._followed(path)
        has_it = name.encode() in await self._fs.listxattr(path)
        if flags & os.XATTR_CREATE and has_it:
            raise _error(errno.EEXIST)
        if flags & os.XATTR_REPLACE and not has_it:
            raise _error(errno.ENODATA)
        await self._fs.setxattr(path, name.encode(), value)

    def getxattr(self, path: bytes, name: str) -> bytes:
        found: bytes = self._run(self._xattr, self._fs.getxattr, path, name.encode())
        return found

    def removexattr(self, path: bytes, name: str) -> None:
        self._run(self._xattr, self._fs.removexattr, path, name.encode())

    def listxattr(self, path: bytes) -> list[str]:
        names: list[bytes] = self._run(self._xattr, self._fs.listxattr, path)
        return sorted(name.decode() for name in names)

    async def _xattr(self, call: Callable[..., Awaitable[Any]], path: bytes, *name: bytes) -> Any:
        await self._followed(path)
        return await call(path, *name)

    # --- what happens behind ----------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that upkeep would do in an hour."""
        self._run(self._tick)

    async def _tick(self) -> None:
        self._fs.tick()

    def seal(self) -> None:
        """Every closed content, whoever still writes to it."""
        self._run(self._seal)

    async def _seal(self) -> None:
        for inode in list(self._fs.writer.unsealed.values()):
            await self._sealer.seal(inode)

    def flush_all(self) -> None:
        """A flush round, and what may be released after it."""
        self._run(self._flush_all)

    async def _flush_all(self) -> None:
        await self._fs.storage.flusher.flush()
        self._fs.tick()

    def check(self, *, at_rest: bool = False) -> None:
        """The invariants of rows and memory; AssertionError says which do not hold."""
        self._run(self._check, at_rest)

    async def _check(self, at_rest: bool) -> None:
        invariants.check(self._fs, at_rest=at_rest)

    def remount(self) -> None:
        """A clean end and a new start."""
        self._run(self._remount)

    async def _remount(self) -> None:
        await self._fs.remount()
        self._started()

    def kill(self) -> None:
        """What ``kill -9`` leaves, and a new start in the same boot."""
        self._run(self._kill)

    async def _kill(self) -> None:
        await self._fs.kill()
        self._started()

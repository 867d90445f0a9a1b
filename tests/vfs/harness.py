"""A file system in this process: the whole write side without FUSE, with calls by path.

Over 400 lines because every system call has a method here, and they share the walk of a path.

``FileSystem`` composes Storage, Vfs, Writer, a TreeVolume at /mfs and Upkeep as the daemon does and
speaks to them like the kernel: it looks names up component by component, holds look-up counts while
something is open and forgets them afterwards. Paths are relative to /mfs ("" is its root, "a/b" a
child of "a"), ``str`` with surrogateescape or ``bytes``. Failures are what the vfs raises:
``unifs.errors`` or OSError.

    async with FileSystem(tmp_path) as fs:
        async with fs.open("a", os.O_RDWR | os.O_CREAT) as file:
            await file.write(0, b"x")
            await file.fsync()
        await fs.remount()          # clean stop and start
        await fs.kill()             # as after kill -9, then start
        await fs.kill(start=False)  # … and damage the bytes before fs.start(boot="another")

``boot`` names the boot that the state directory believes in; starting with another one after a kill
is what a power cut looks like. With ``upkeep=False`` nothing happens behind the caller's back and
``tick`` runs one round of it.
"""

from __future__ import annotations

import ctypes
import os
import stat
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from unittest import mock

import apsw
import trio

from unifs.errors import Exists, NotFound
from unifs.types import PlainAttributes, PlainCaller, SetAttributes
from unifs.vfs.sealing import Sealer
from unifs.vfs.storage import Storage
from unifs.vfs.treevolume import TreeLoader, TreeVolume
from unifs.vfs.upkeep import Upkeep
from unifs.vfs.vfs import DOT_DOT, Vfs
from unifs.vfs.writer import Writer
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from unifs.journal.recovery import Receipt
    from unifs.types import Attributes, Caller

ROOT = PlainCaller()
BOOT = "boot-1"


@dataclass(frozen=True)
class Stat:
    """A copy of an inode's attributes at one moment."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    rdev: int

    @classmethod
    def of(cls, a: Attributes) -> Stat:
        times = (a.st_atime_ns, a.st_mtime_ns, a.st_ctime_ns)
        return cls(
            a.st_ino, a.st_mode, a.st_nlink, a.st_uid, a.st_gid, a.st_size, *times, a.st_rdev
        )


class File:
    """An open file. ``close`` is close(2) of the last descriptor: flush, then release."""

    def __init__(self, system: FileSystem, fh: int, ino: int) -> None:
        self._system = system
        self.fh = fh
        self.ino = ino

    async def read(self, offset: int = 0, size: int = 1 << 20) -> bytes:
        return bytes(await complete(self._system.vfs.read, self.fh, offset, size))

    async def write(self, offset: int, data: bytes) -> int:
        return await complete(self._system.vfs.write, self.fh, offset, data)

    async def truncate(self, size: int) -> None:
        changes = SetAttributes(size_bytes=size)
        await complete(self._system.vfs.setattr, self.ino, changes, self.fh, ROOT)

    async def flush(self) -> None:
        """close(2) of one of several descriptors of this handle."""
        await complete(self._system.vfs.flush, self.fh)

    async def fsync(self, datasync: bool = False) -> None:
        await complete(self._system.vfs.fsync, self.fh, datasync)

    def stat(self) -> Stat:
        return Stat.of(self._system.vfs.getattr(self.ino))

    async def close(self) -> None:
        """Close; as with the kernel, the handle is gone even where this fails."""
        vfs = self._system.vfs
        try:
            await complete(vfs.flush, self.fh)
        finally:
            try:
                await complete(vfs.release, self.fh)
            finally:
                vfs.forget([(self.ino, 1)])


class FileSystem:
    """A mounted state directory; see the module's text."""

    def __init__(
        self, path: Path, *, upkeep: bool = True, boot: str = BOOT, holds: bool = False
    ) -> None:
        self.path = path
        #: Changes are held as in the request loop, here until somebody settles.
        self.holds = holds
        self.boot = boot
        self.caller: Caller = ROOT
        self.has_upkeep = upkeep
        self.receipt: Receipt | None = None
        self._scope: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._ahead_s = 0.0

    async def __aenter__(self) -> Self:
        self._tasks = trio.open_nursery()
        self._nursery = await self._tasks.__aenter__()
        try:
            await self.start()
        except BaseException:
            await self._tasks.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(self, *error: Any) -> None:
        """A clean stop, or the end of everything where the body failed."""
        try:
            with trio.CancelScope(shield=True):
                if self._scope is not None:
                    await (self.stop() if error[0] is None else self.kill(start=False))
        finally:
            await self._tasks.__aexit__(None, None, None)

    # --- life -------------------------------------------------------------------------------------

    async def start(self, boot: str | None = None) -> None:
        """Open the state directory (recovery runs; ``receipt`` is what it says) and mount it."""
        self.boot = boot or self.boot
        with mock.patch("unifs.state.directory.boot_id", return_value=self.boot):
            self.storage = Storage(self.path)
        self.storage.database.held.is_allowed = self.holds
        self.receipt = self.storage.receipt
        self.vfs = Vfs(self.path)
        self.writer = Writer(self.storage, self.vfs.inodes)
        self.loader = TreeLoader(self.writer, PlainAttributes)
        self.volume = self.loader.add("mfs", "mfs", TreeVolume)
        self.vfs.namespace.add(self.vfs.namespace.root, b"mfs", self.volume.root)
        self.upkeep = Upkeep(self.writer)
        self._ended = trio.Event()
        await self._nursery.start(self._session)

    async def _session(self, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        with trio.CancelScope() as self._scope:
            async with self.storage.serve():
                task_status.started()
                if self.has_upkeep:
                    await self.upkeep.run()
                await trio.sleep_forever()
        self._ended.set()

    async def _end_session(self) -> None:
        assert self._scope is not None
        self._scope.cancel()
        self._scope = None
        await self._ended.wait()

    async def stop(self) -> None:
        """Clean stop: everything committed and flushed. Open handles end like closed ones."""
        await self.upkeep.finish()
        await self._end_session()
        self.storage.close()

    async def remount(self) -> None:
        await self.stop()
        await self.start()

    async def kill(self, *, start: bool = True, boot: str | None = None) -> None:
        """What kill -9 leaves: no commit, no checkpoint, no footer, the lock released."""
        await self._end_session()
        _drop(self.storage)
        if start:
            await self.start(boot)

    def tick(self) -> None:
        """Everything that upkeep has to do, however soon it would be due."""
        self._ahead_s += 3600
        self.upkeep.tick(time.monotonic() + self._ahead_s)

    async def seal(self) -> None:
        """Seal everything that is closed."""
        sealer = Sealer(self.writer, self.storage.blocks, self.storage.profile)
        for inode in list(self.writer.unsealed.values()):
            await sealer.seal(inode)

    # --- names ------------------------------------------------------------------------------------

    def _parts(self, path: str | bytes) -> list[bytes]:
        raw = os.fsencode(path)
        return raw.split(b"/") if raw else []

    @asynccontextmanager
    async def _walk(self, parts: list[bytes]) -> AsyncIterator[int]:
        """The inode number behind the names; its look-ups are forgotten at the end."""
        seen: list[tuple[int, int]] = []
        ino = self.volume.root
        try:
            for name in parts:
                found = await complete(self.vfs.lookup, ino, name, self.caller)
                ino = found.st_ino
                seen.append((ino, 1))
            yield ino
        finally:
            self.vfs.forget(seen)

    @asynccontextmanager
    async def _parent(self, path: str | bytes) -> AsyncIterator[tuple[int, bytes]]:
        *above, name = self._parts(path)
        async with self._walk(above) as ino:
            yield ino, name

    async def mkdir(self, path: str | bytes, mode: int = 0o755) -> Stat:
        async with self._parent(path) as (parent, name):
            return self._made(await complete(self.vfs.mkdir, parent, name, mode, self.caller))

    async def mknod(self, path: str | bytes, mode: int = 0o100644, rdev: int = 0) -> Stat:
        async with self._parent(path) as (parent, name):
            made = await complete(self.vfs.mknod, parent, name, mode, rdev, self.caller)
            return self._made(made)

    async def symlink(self, target: bytes, path: str | bytes) -> Stat:
        async with self._parent(path) as (parent, name):
            return self._made(await complete(self.vfs.symlink, parent, name, target, self.caller))

    async def link(self, path: str | bytes, new_path: str | bytes) -> Stat:
        async with self._walk(self._parts(path)) as ino, self._parent(new_path) as (parent, name):
            return self._made(await complete(self.vfs.link, ino, parent, name, self.caller))

    def _made(self, attributes: Attributes) -> Stat:
        made = Stat.of(attributes)
        self.vfs.forget([(made.ino, 1)])
        return made

    async def unlink(self, path: str | bytes) -> None:
        async with self._parent(path) as (parent, name):
            await complete(self.vfs.unlink, parent, name, self.caller)

    async def rmdir(self, path: str | bytes) -> None:
        async with self._parent(path) as (parent, name):
            await complete(self.vfs.rmdir, parent, name, self.caller)

    async def rename(self, path: str | bytes, new_path: str | bytes, flags: int = 0) -> None:
        async with self._parent(path) as (old, name), self._parent(new_path) as (new, new_name):
            await complete(self.vfs.rename, old, name, new, new_name, flags, self.caller)

    async def readlink(self, path: str | bytes) -> bytes:
        async with self._walk(self._parts(path)) as ino:
            return await complete(self.vfs.readlink, ino)

    async def listdir(self, path: str | bytes = "") -> list[bytes]:
        """Names in the order of the stream."""
        async with self._walk(self._parts(path)) as ino:
            names = await self._names(ino)
        return names

    async def _names(self, ino: int) -> list[bytes]:
        fh = self.vfs.opendir(ino, self.caller)
        names: list[bytes] = []
        seen: list[tuple[int, int]] = []

        def emit(name: bytes, attributes: Attributes, offset: int) -> bool:
            names.append(name)
            seen.append((attributes.st_ino, 1))
            return True

        try:
            await complete(self.vfs.readdir, fh, DOT_DOT, emit)
        finally:
            self.vfs.releasedir(fh)
            self.vfs.forget(seen)
        return names

    async def fsyncdir(self, path: str | bytes = "") -> None:
        async with self._walk(self._parts(path)) as ino:
            fh = self.vfs.opendir(ino, self.caller)
            try:
                await complete(self.vfs.fsyncdir, fh, False)
            finally:
                self.vfs.releasedir(fh)

    # --- attributes -------------------------------------------------------------------------------

    async def stat(self, path: str | bytes = "") -> Stat:
        """lstat: a symlink is not followed."""
        async with self._walk(self._parts(path)) as ino:
            return Stat.of(await complete(self.vfs.getattr, ino))

    async def exists(self, path: str | bytes) -> bool:
        try:
            await self.stat(path)
        except NotFound:
            return False
        return True

    async def setattr(self, path: str | bytes, **changes: Any) -> Stat:
        """``changes``: fields of SetAttributes."""
        async with self._walk(self._parts(path)) as ino:
            fields = SetAttributes(**changes)
            return Stat.of(await complete(self.vfs.setattr, ino, fields, None, self.caller))

    async def truncate(self, path: str | bytes, size: int) -> None:
        await self.setattr(path, size_bytes=size)

    async def getxattr(self, path: str | bytes, name: bytes) -> bytes:
        async with self._walk(self._parts(path)) as ino:
            return await complete(self.vfs.getxattr, ino, name)

    async def setxattr(self, path: str | bytes, name: bytes, value: bytes) -> None:
        async with self._walk(self._parts(path)) as ino:
            await complete(self.vfs.setxattr, ino, name, value)

    async def removexattr(self, path: str | bytes, name: bytes) -> None:
        async with self._walk(self._parts(path)) as ino:
            await complete(self.vfs.removexattr, ino, name)

    async def listxattr(self, path: str | bytes) -> list[bytes]:
        async with self._walk(self._parts(path)) as ino:
            return await complete(self.vfs.listxattr, ino)

    # --- files ------------------------------------------------------------------------------------

    async def open_file(
        self, path: str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644
    ) -> File:
        """open(2) with O_CREAT, O_EXCL and O_TRUNC; whoever calls it closes the file."""
        vfs = self.vfs
        async with self._parent(path) as (parent, name):
            try:
                found = await complete(vfs.lookup, parent, name, self.caller)
            except NotFound:
                if not flags & os.O_CREAT:
                    raise
                made = await complete(vfs.create, parent, name, mode, flags, self.caller)
                return File(self, made[0].fh, made[1].st_ino)
            if flags & os.O_CREAT and flags & os.O_EXCL:
                vfs.forget([(found.st_ino, 1)])
                raise Exists
            try:
                handle = await complete(vfs.open, found.st_ino, flags, self.caller)
            except BaseException:
                vfs.forget([(found.st_ino, 1)])
                raise
            return File(self, handle.fh, found.st_ino)

    @asynccontextmanager
    async def open(
        self, path: str | bytes, flags: int = os.O_RDONLY, mode: int = 0o644
    ) -> AsyncIterator[File]:
        file = await self.open_file(path, flags, mode)
        try:
            yield file
        finally:
            await file.close()

    async def read(self, path: str | bytes) -> bytes:
        """The whole file."""
        async with self.open(path) as file:
            size = file.stat().size
            parts = [
                await file.read(start, min(1 << 20, size - start))
                for start in range(0, size, 1 << 20)
            ]
            return b"".join(parts)

    async def write(self, path: str | bytes, data: bytes, *, fsync: bool = False) -> None:
        """Make or replace the file's content: open(O_CREAT|O_TRUNC), write, close."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        async with self.open(path, flags) as file:
            for start in range(0, len(data), 1 << 20):
                await file.write(start, data[start : start + (1 << 20)])
            if fsync:
                await file.fsync()

    # --- everything -------------------------------------------------------------------------------

    async def tree(self) -> dict[bytes, tuple[Any, ...]]:
        """Every path with what a user can see of it, for comparing before and after.

        (mode, nlink, uid, gid, size, mtime_ns, xattrs, content or target). Directories have neither
        size nor time: a crash moves theirs by the microseconds between change and record.
        """
        found: dict[bytes, tuple[Any, ...]] = {}
        todo = [b""]
        while todo:
            path = todo.pop()
            here = await self.stat(path)
            kind = stat.S_IFMT(here.mode)
            data: bytes = b""
            if kind == stat.S_IFREG:
                data = await self.read(path)
            elif kind == stat.S_IFLNK:
                data = await self.readlink(path)
            elif kind == stat.S_IFDIR:
                todo += [path + b"/" + name if path else name for name in await self.listdir(path)]
            names = sorted(await self.listxattr(path))
            xattrs = tuple([(name, await self.getxattr(path, name)) for name in names])
            size, mtime_ns = (0, 0) if kind == stat.S_IFDIR else (here.size, here.mtime_ns)
            owner = (here.uid, here.gid)
            found[path] = (here.mode, here.nlink, *owner, size, mtime_ns, xattrs, data)
        return found


def _drop(storage: Storage) -> None:
    """Let go of every descriptor without writing anything, as the end of a process does."""
    database = storage.database
    database.stop_checkpoints()
    connection = database._connection
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    keep = ctypes.c_int(1)
    connection.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
    os.close(database.wal)
    connection.close(True)
    for segments in (storage.segments, storage.nodes):
        segments._open = segments._directory = None
        segments._files.clear()
        segments._descriptors.clear()
    # The block index is derived; what it had not committed is indexed again.
    storage.blocks.index._reader.close()
    storage.blocks.index._writer.close()
    storage.contents.close()
    storage.state.close()

"""Paths: file operations for callers that have a path and no kernel: control operations, tests.

They go through the vfs like a user's system calls, and tell the kernel what it may have cached of
what they change. Paths are absolute in the tree ("/mfs/docs/a.txt"), ``str`` with surrogateescape;
symlinks are not followed.
"""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from unifs.errors import (
    CrossMount,
    InvalidArgument,
    IsADirectory,
    JournalFailed,
    NotADirectory,
    NotEmpty,
    NotFound,
    ReadOnly,
    Stale,
)
from unifs.types import PlainCaller
from unifs.waiting import complete

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from unifs.types import Attributes
    from unifs.vfs.vfs import Vfs
    from unifs.vfs.volume import Inode, Invalidator, Volume

COPY_BYTES = 1 << 20
#: Directories that one operation holds at most, the newest.
HELD_MAX = 1024


@dataclass(frozen=True, slots=True)
class PathEntry:
    """One name and what it names."""

    name: bytes
    ino: int
    mode: int
    size_bytes: int
    mtime_ns: int
    nlink: int
    uid: int
    gid: int


def copied_mode(mode: int) -> int:
    """The permissions of a copy: those of its source as cp(1) takes them under umask 022.

    Its owner may write to it all the same: what lies in /ipfs nobody may write to.
    """
    return mode & 0o755 | (0o700 if stat.S_ISDIR(mode) else 0o600)


def _text(names: Sequence[bytes]) -> str:
    """The absolute path that these names make."""
    return "/" + "/".join(map(os.fsdecode, names))


@contextmanager
def naming(path: str, volume: Volume) -> Iterator[None]:
    """What a volume refuses because it is read-only is refused by the path, with the reason."""
    try:
        yield
    except JournalFailed:
        raise
    except ReadOnly as error:
        reason = str(error)
        if reason == ReadOnly.default_message:
            reason = volume.refusal or "this part of the tree is read-only"
        raise ReadOnly(f"{path}: {reason}") from error


class _Batch:
    """Takes what readdir emits, 256 names at a time."""

    def __init__(self) -> None:
        self.names: list[tuple[bytes, int]] = []
        self.offset = 0

    def emit(self, name: bytes, attributes: Attributes, offset: int) -> bool:
        if len(self.names) >= 256:
            return False
        self.offset = offset
        if name in (b".", b".."):
            return True
        self.names.append((name, attributes.st_ino))
        return True


class Paths:
    """File operations by path."""

    def __init__(self, vfs: Vfs, invalidator: Invalidator) -> None:
        self.vfs = vfs
        self._invalidator = invalidator
        self.caller = PlainCaller(os.getuid(), os.getgid(), os.getpid(), 0o022)
        #: Directories by their names, where an operation holds some.
        self._held: dict[bytes, int] | None = None

    @contextmanager
    def holding(self) -> Iterator[Paths]:
        """Paths for one operation on many: a walk begins at the nearest directory it was in before.

        From the root, each of n names that lie in one another would take n steps. Directories are
        held as a program holds them by descriptors: one that somebody renames meanwhile is the same
        one still.
        """
        paths = Paths(self.vfs, self._invalidator)
        held = paths._held = {}
        try:
            yield paths
        finally:
            self.vfs.forget([(ino, 1) for ino in held.values()])

    # --- finding ----------------------------------------------------------------------------------

    @staticmethod
    def split(path: str) -> list[bytes]:
        """The names of an absolute path; InvalidArgument if it is none."""
        if not path.startswith("/") or "\0" in path:
            raise InvalidArgument(f"{path!r} is no absolute path in the tree, like /mfs/docs")
        names = [name for name in os.fsencode(path).split(b"/") if name not in (b"", b".")]
        if b".." in names:
            raise InvalidArgument(f"{path!r} has '..' in it")
        return names

    async def find(self, path: str) -> Inode:
        """The inode at a path; NotFound names the first missing part."""
        return await self._walk(self.split(path), path)

    async def _walk(self, names: list[bytes], path: str) -> Inode:
        current, start = self._nearest(names)
        for depth, name in enumerate(names[start:], start + 1):
            if not stat.S_ISDIR(current.attributes.st_mode):
                raise NotADirectory(f"{path}: {_text(names[: depth - 1])} is not a directory")
            try:
                current = await complete(self._step, current, name)
            except (NotFound, FileNotFoundError):  # A host's directory answers with the latter.
                raise NotFound(f"{_text(names[:depth])} does not exist") from None
            self._hold(names[:depth], current)
        return current

    def _nearest(self, names: Sequence[bytes]) -> tuple[Inode, int]:
        """Where a walk begins, and how many of its names lead there."""
        if self._held is not None:
            for depth in (len(names), len(names) - 1):
                ino = self._held.get(b"/".join(names[:depth]))
                if ino is not None:
                    with suppress(Stale):  # Removed meanwhile: the walk names what is missing.
                        return self.vfs.inodes.get(ino), depth
        return self.vfs.namespace.root, 0

    def _hold(self, names: Sequence[bytes], inode: Inode) -> None:
        held = self._held
        if held is None or not stat.S_ISDIR(inode.attributes.st_mode):
            return
        self._let_go(names)
        if len(held) >= HELD_MAX:
            self.vfs.forget([(held.pop(next(iter(held))), 1)])
        held[b"/".join(names)] = inode.ino
        self.vfs.inodes.remember(inode.ino)

    def _let_go(self, names: Sequence[bytes]) -> None:
        ino = self._held.pop(b"/".join(names), None) if self._held else None
        if ino is not None:
            self.vfs.forget([(ino, 1)])

    def _step(self, parent: Inode, name: bytes) -> Inode:
        inode = parent.volume.lookup(parent, name)
        if inode.ino not in self.vfs.inodes.hot:
            self.vfs.inodes.add(inode)
        return inode

    async def parent_of(self, path: str) -> tuple[Inode, bytes]:
        """(directory, name) of a path that need not exist yet."""
        names = self.split(path)
        if not names:
            raise InvalidArgument("the root itself cannot be changed")
        above = await self._walk(names[:-1], path)
        # The kernel asks for no name in a file, so nobody below looks.
        if not stat.S_ISDIR(above.attributes.st_mode):
            raise NotADirectory(f"{path}: what it lies in is not a directory")
        return above, names[-1]

    async def stat(self, path: str) -> PathEntry:
        """What is at a path."""
        inode = await self.find(path)
        await complete(inode.volume.getattr, inode)
        names = self.split(path)
        return _entry(names[-1] if names else b"/", inode)

    async def scan(self, path: str) -> AsyncIterator[list[PathEntry]]:
        """A directory in batches, in its own order."""
        inode = await self.find(path)
        fh = await complete(self.vfs.opendir, inode.ino, self.caller)
        try:
            batch = _Batch()
            while True:
                offset = batch.offset
                batch.names.clear()
                await complete(self.vfs.readdir, fh, offset, batch.emit)
                if batch.offset == offset:
                    return
                yield [self._listed(name, ino) for name, ino in batch.names]
        finally:
            self.vfs.releasedir(fh)

    def _listed(self, name: bytes, ino: int) -> PathEntry:
        inode = self.vfs.inodes.get(ino)
        entry = _entry(name, inode)
        # The listing counted a look-up that no kernel will forget.
        self.vfs.forget([(ino, 1)])
        return entry

    # --- changing ---------------------------------------------------------------------------------

    async def mkdir(self, path: str, parents: bool = False, mode: int = 0o755) -> None:
        """Make a directory; with ``parents`` also those above, and one that exists is fine."""
        names = self.split(path)
        for depth in range(1 if parents else len(names), len(names) + 1):
            part = _text(names[:depth])
            if parents and await self._is_directory(part, depth == len(names)):
                continue
            above, name = await self.parent_of(part)
            with naming(part, above.volume):
                self._made(await complete(self.vfs.mkdir, above.ino, name, mode, self.caller))
            self._invalidator.entry(above.ino, name)
        self._invalidate(await self.find(path))

    async def _is_directory(self, path: str, is_last: bool) -> bool:
        """Whether it is there already; NotADirectory where something else bars the way."""
        try:
            inode = await self.find(path)
        except NotFound:
            return False
        is_directory = stat.S_ISDIR(inode.attributes.st_mode)
        if not is_directory and not is_last:
            raise NotADirectory(f"{path} is not a directory")
        return is_directory

    async def remove(self, path: str) -> None:
        """Remove a file, or a directory without names; NotEmpty where it has some."""
        above, name = await self.parent_of(path)
        inode = await self.find(path)
        is_directory = stat.S_ISDIR(inode.attributes.st_mode)
        change = self.vfs.rmdir if is_directory else self.vfs.unlink
        try:
            with naming(path, above.volume):
                await complete(change, above.ino, name, self.caller)
        except NotEmpty:
            raise NotEmpty(f"{path} is not empty: it takes `--recursive`") from None
        self._let_go(self.split(path))
        self._invalidator.entry(above.ino, name)
        self._invalidate(above)

    async def move(self, source: str, target: str) -> str:
        """Rename; into ``target`` if that is a directory. The new path. CrossMount."""
        self.check_apart(source, target)
        target = await self.into(source, target)
        self.check_apart(source, target)
        above, name = await self.parent_of(source)
        below, new_name = await self.parent_of(target)
        if above.volume is not below.volume:
            raise CrossMount(f"{source} and {target} lie in different mounts")
        await self.find(source)
        with naming(source, above.volume):
            await complete(self.vfs.rename, above.ino, name, below.ino, new_name, 0, self.caller)
        self._invalidator.entry(above.ino, name)
        self._invalidator.entry(below.ino, new_name)
        self._invalidate(above)
        self._invalidate(below)
        return target

    def check_apart(self, source: str, target: str) -> None:
        """InvalidArgument where ``target`` lies in ``source``, however the two are spelt."""
        names, below = self.split(source), self.split(target)
        if len(below) > len(names) and below[: len(names)] == names:
            raise InvalidArgument(f"{target} lies in {source}")

    async def into(self, source: str, target: str) -> str:
        """``target``, or the source's name in it where it is a directory."""
        names = self.split(source)
        if not names:
            raise InvalidArgument("the root itself cannot be copied or moved")
        try:
            inode = await self.find(target)
        except NotFound:
            return target
        if stat.S_ISDIR(inode.attributes.st_mode):
            return f"{target.rstrip('/')}/{os.fsdecode(names[-1])}"
        return target

    async def copy_file(self, source: str, target: str) -> int:
        """Copy a file's bytes and permissions; how many bytes. ``target`` must not exist."""
        inode = await self.find(source)
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory(f"{source} is a directory")
        below, name = await self.parent_of(target)
        vfs = self.vfs
        mode = copied_mode(inode.attributes.st_mode)
        reader = await complete(vfs.open, inode.ino, os.O_RDONLY, self.caller)
        try:
            with naming(target, below.volume):
                writing = (mode, os.O_WRONLY, self.caller)
                writer, _ = await complete(vfs.create, below.ino, name, *writing)
            try:
                offset = 0
                while data := bytes(await complete(vfs.read, reader.fh, offset, COPY_BYTES)):
                    # The kernel's requests are answered in between.
                    await trio.lowlevel.checkpoint()
                    offset += await complete(vfs.write, writer.fh, offset, data)
                await complete(vfs.flush, writer.fh)
            finally:
                await complete(vfs.release, writer.fh)
        finally:
            await complete(vfs.release, reader.fh)
        self._invalidator.entry(below.ino, name)
        self._invalidate(below)
        return offset

    async def copy_symlink(self, source: str, target: str) -> None:
        """Make a symlink with the same target as another."""
        inode = await self.find(source)
        text = await complete(inode.volume.readlink, inode)
        below, name = await self.parent_of(target)
        with naming(target, below.volume):
            self._made(await complete(self.vfs.symlink, below.ino, name, text, self.caller))
        self.invalidate(below, name)

    async def copy_node(self, source: str, target: str) -> None:
        """Make a FIFO, a socket or a device node like another."""
        like = (await self.find(source)).attributes
        mode = stat.S_IFMT(like.st_mode) | copied_mode(like.st_mode)
        below, name = await self.parent_of(target)
        make, rdev = self.vfs.mknod, like.st_rdev
        with naming(target, below.volume):
            self._made(await complete(make, below.ino, name, mode, rdev, self.caller))
        self.invalidate(below, name)

    def _made(self, attributes: Attributes) -> None:
        """What the vfs made it counts as looked up: no kernel will forget it."""
        self.vfs.forget([(attributes.st_ino, 1)])

    def invalidate(self, parent: Inode, name: bytes) -> None:
        """The kernel's idea of a name and its directory is out of date."""
        self._invalidator.entry(parent.ino, name)
        self._invalidate(parent)

    def _invalidate(self, inode: Inode) -> None:
        self._invalidator.inode(inode.ino, attributes_only=True)


def _entry(name: bytes, inode: Inode) -> PathEntry:
    attributes = inode.attributes
    return PathEntry(
        name=name,
        ino=inode.ino,
        mode=attributes.st_mode,
        size_bytes=attributes.st_size,
        mtime_ns=attributes.st_mtime_ns,
        nlink=attributes.st_nlink,
        uid=attributes.st_uid,
        gid=attributes.st_gid,
    )

"""ViewVolume: a mount that only reads, shown below ``/.unifs`` without a row in the tree.

What it shows are answers of a ``Mount`` (``stat``, ``scan``, ``read``), believed for a few seconds;
its inodes live in memory as long as the kernel remembers them. Bytes come through the read cache,
named by path and version. The daemon makes one for each view and hangs its root into ``Reserved``.
It changes nothing and never waits itself (``unifs.waiting``).
"""

from __future__ import annotations

import os
import stat
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import trio

from unifs.cache.source import Source
from unifs.errors import IsADirectory, NotADirectory, Stale
from unifs.types import NAME_MAX_BYTES, Node, Version
from unifs.vfs.tree import blocks_of
from unifs.vfs.volume import INO_SHIFT, DirectoryHandle, Handle, Inode, Volume
from unifs.waiting import RETRY, WouldBlock

if TYPE_CHECKING:
    from unifs.cache.reads import ReadCache
    from unifs.mounts.base import Mount
    from unifs.types import Attributes, Caller, Entry
    from unifs.vfs.reserved import Reserved
    from unifs.vfs.volume import Emit

#: How long an answer is believed, here and by the kernel.
FRESH_S: Final = 5.0
#: Inodes that nobody remembers make room beyond it.
INODES_MAX: Final = 50_000
#: Inodes that are looked at for one that can go.
LOOKED_AT: Final = 64


class ViewInode(Inode):
    """One object of the view; ``path`` is the mount's."""

    __slots__ = ("checked_s", "path", "version")

    def __init__(self, ino: int, volume: ViewVolume, attributes: Attributes, path: str) -> None:
        super().__init__(ino, volume, attributes)
        self.path = path
        self.version = Version("")
        self.checked_s = 0.0


class ViewHandle(Handle):
    """An open file: exactly the version that it was opened at."""

    __slots__ = ("_cache", "_source")

    def __init__(self, inode: ViewInode, volume: ViewVolume) -> None:
        super().__init__(inode)
        size_bytes = inode.attributes.st_size
        self._cache = volume.cache
        self._source = Source.of(volume.name, volume.mount, inode.path, inode.version, size_bytes)
        inode.opens += 1

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        return self._cache.read_nowait(self._source, offset, size)

    def release(self) -> None:
        self.inode.opens -= 1


class ViewDirectory(DirectoryHandle):
    """A listing, one page of it in memory; offsets count entries from the start."""

    __slots__ = ("_after", "_base", "_page", "_volume")

    def __init__(self, inode: ViewInode, volume: ViewVolume) -> None:
        super().__init__(inode)
        self._volume = volume
        self._begin()

    def _begin(self) -> None:
        self._page: tuple[Entry, ...] | None = None
        self._base = 0
        self._after: str | None = None

    def readdir(self, offset: int, emit: Emit) -> None:
        if offset < self._base:
            self._begin()
        if self._page is None:
            raise WouldBlock(self._bring, self._volume.name)
        has_emitted = False
        for entry in self._page[offset - self._base :]:
            offset += 1
            inode = self._volume.take(self.inode, entry)
            if not emit(entry.name, inode.attributes, offset):
                return
            self._volume.inodes.remember(inode.ino)
            has_emitted = True
        if has_emitted:
            return
        if self._after is not None:
            raise WouldBlock(self._bring, self._volume.name)
        # A stream that begins again is a new listing.
        self._begin()

    async def _bring(self) -> object:
        assert isinstance(self.inode, ViewInode)
        while True:
            page = await self._volume.mount.scan(self.inode.path, self._after)
            self._base += len(self._page or ())
            self._page, self._after = page.entries, page.after
            if page.entries or page.after is None:
                return RETRY


class ViewVolume(Volume):
    """One view. ``root`` is the number of its top directory."""

    refuses_changes = True
    refusal = "below /.unifs nothing can be changed; write to the object itself"

    def __init__(self, name: str, mount: Mount, cache: ReadCache, reserved: Reserved) -> None:
        super().__init__(name)
        self.mount = mount
        self.cache = cache
        self.inodes = reserved.inodes
        self._factory = reserved.factory
        self._by_path: dict[str, ViewInode] = {}
        self._by_ino: dict[int, ViewInode] = {}
        self._first = reserved.take_prefix(self) << INO_SHIFT
        self._last = 0
        self.root = self._new("", Node(stat.S_IFDIR | 0o555)).ino

    # --- inodes -----------------------------------------------------------------------------------

    def load(self, ino: int) -> Inode:
        inode = self._by_ino.get(ino)
        if inode is None:
            raise Stale
        return inode

    def forgotten(self, ino: int) -> None:
        inode = self._by_ino.get(ino)
        if inode is not None and not inode.opens and ino != self.root:
            self._drop(inode)

    def _drop(self, inode: ViewInode) -> None:
        del self._by_ino[inode.ino]
        if self._by_path.get(inode.path) is inode:
            del self._by_path[inode.path]
        self.inodes.drop(inode.ino)

    def take(self, parent: Inode, entry: Entry) -> ViewInode:
        """The inode of a name that a listing told."""
        assert isinstance(parent, ViewInode)
        return self._take(_join(parent.path, entry.name), entry.node)

    def _take(self, path: str, node: Node) -> ViewInode:
        inode = self._by_path.get(path)
        version = node.version or Version("")
        is_same = inode is not None and inode.version == version
        if inode is None or not is_same or _kind(inode) != stat.S_IFMT(node.mode):
            # Other bytes are another inode: the kernel keeps pages by number.
            inode = self._new(path, node)
        inode.checked_s = trio.current_time()
        return inode

    def _new(self, path: str, node: Node) -> ViewInode:
        if len(self._by_ino) >= INODES_MAX:
            self._make_room()
        self._last += 1
        attributes = self._factory()
        inode = ViewInode(self._first | self._last, self, attributes, path)
        is_directory = stat.S_ISDIR(node.mode)
        attributes.st_ino = inode.ino
        attributes.st_mode = stat.S_IFMT(node.mode) | (0o555 if is_directory else 0o444)
        attributes.st_nlink = 2 if is_directory else 1
        attributes.st_uid, attributes.st_gid = os.getuid(), os.getgid()
        attributes.st_size = node.size_bytes
        attributes.st_blocks = blocks_of(node.size_bytes)
        attributes.st_blksize = 1 << 20
        moment = node.mtime_ns or 0
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = moment
        attributes.entry_timeout = attributes.attr_timeout = FRESH_S
        inode.version = node.version or Version("")
        self._by_path[path] = self._by_ino[inode.ino] = inode
        self.inodes.add(inode)
        return inode

    def _make_room(self) -> None:
        """Drop the oldest that nobody remembers; who is remembered is looked at later again."""
        for ino in list(islice(self._by_ino, LOOKED_AT)):
            inode = self._by_ino.pop(ino)
            self._by_ino[ino] = inode
            if ino != self.root and not inode.opens and not self.inodes.count(ino):
                self._drop(inode)
                return

    # --- requests ---------------------------------------------------------------------------------

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        assert isinstance(parent, ViewInode)
        if not stat.S_ISDIR(parent.attributes.st_mode):
            raise NotADirectory
        path = _join(parent.path, name)
        known = self._by_path.get(path)
        if known is not None and trio.current_time() - known.checked_s < FRESH_S:
            return known
        raise WouldBlock(partial(self._stat, path), self.name)

    async def _stat(self, path: str) -> object:
        node = await self.mount.stat(path)
        self._take(path, node)
        return RETRY

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        assert isinstance(inode, ViewInode)
        if stat.S_ISDIR(inode.attributes.st_mode):
            raise IsADirectory
        return ViewHandle(inode, self)

    def opendir(self, inode: Inode) -> DirectoryHandle:
        assert isinstance(inode, ViewInode)
        if not stat.S_ISDIR(inode.attributes.st_mode):
            raise NotADirectory
        return ViewDirectory(inode, self)


def _kind(inode: ViewInode) -> int:
    return stat.S_IFMT(inode.attributes.st_mode)


def _join(parent: str, name: bytes) -> str:
    assert 0 < len(name) <= NAME_MAX_BYTES
    text = os.fsdecode(name)
    return f"{parent}/{text}" if parent else text

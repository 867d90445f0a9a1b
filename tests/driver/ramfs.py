"""A file system in memory behind the real driver: for its tests, and the benchmark's floor.

``python -m tests.driver.ramfs MNT`` serves one until it is unmounted: what remains of a request's
cost when the tree behind it costs nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyfuse3
import trio

from unifs.driver.mountinfo import resolved
from unifs.driver.notify import Notifications
from unifs.driver.replacing import remove_dead
from unifs.driver.session import Session, SessionOptions
from unifs.errors import (
    Exists,
    IsADirectory,
    NoAttribute,
    NotADirectory,
    NotEmpty,
    NotFound,
    Stale,
)
from unifs.telemetry import AccessLog, Metrics
from unifs.types import Space

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unifs.types import Caller, SetAttributes

ROOT = 1
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
BLOCK = 4096
#: Open directories are numbered from here, above every inode.
FIRST_LISTING = 1 << 32


class Node:
    """A file, directory or symlink. ``fh`` is its own number: handles have no state here."""

    __slots__ = ("attributes", "children", "data", "lookups", "xattrs")

    keep_cache = True
    direct_io = False

    def __init__(self, ino: int, mode: int, caller: Caller | None, timeout_s: float) -> None:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = ino
        attributes.st_mode = mode
        attributes.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        attributes.st_uid = caller.uid if caller else os.getuid()
        attributes.st_gid = caller.gid if caller else os.getgid()
        attributes.st_blksize = 1 << 20 if stat.S_ISREG(mode) else BLOCK
        attributes.entry_timeout = attributes.attr_timeout = timeout_s
        now = time.time_ns()
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now
        self.attributes = attributes
        self.children: dict[bytes, Node] = {}
        self.data = bytearray()
        self.xattrs: dict[bytes, bytes] = {}
        self.lookups = 0

    @property
    def fh(self) -> int:
        return self.attributes.st_ino

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.attributes.st_mode)


class RamFs:
    """What the driver serves (``unifs.driver.served.Served``)."""

    def __init__(self, timeout_s: float = 60.0) -> None:
        self.timeout_s = timeout_s
        self._last = ROOT
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}
        self._listing = FIRST_LISTING
        root = Node(ROOT, stat.S_IFDIR | 0o755, None, timeout_s)
        root.lookups = 1
        self._nodes = {ROOT: root}

    # --- inodes -----------------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes, caller: Caller) -> pyfuse3.EntryAttributes:
        node = self._nodes[parent].children.get(name)
        if node is None:
            raise NotFound
        node.lookups += 1
        return node.attributes

    def forget(self, pairs: Sequence[tuple[int, int]]) -> None:
        for ino, count in pairs:
            node = self._nodes[ino]
            node.lookups -= count
            if node.lookups == 0 and node.attributes.st_nlink == 0:
                del self._nodes[ino]

    def getattr(self, ino: int) -> pyfuse3.EntryAttributes:
        return self._node(ino).attributes

    def setattr(
        self, ino: int, changes: SetAttributes, fh: int | None, caller: Caller
    ) -> pyfuse3.EntryAttributes:
        node = self._node(ino)
        attributes = node.attributes
        if changes.mode is not None:
            attributes.st_mode = stat.S_IFMT(attributes.st_mode) | changes.mode
        if changes.uid is not None:
            attributes.st_uid = changes.uid
        if changes.gid is not None:
            attributes.st_gid = changes.gid
        if changes.size_bytes is not None:
            self._resize(node, changes.size_bytes)
        if changes.atime_ns is not None:
            attributes.st_atime_ns = changes.atime_ns
        if changes.mtime_ns is not None:
            attributes.st_mtime_ns = changes.mtime_ns
        attributes.st_ctime_ns = time.time_ns()
        return attributes

    def readlink(self, ino: int) -> bytes:
        return bytes(self._node(ino).data)

    # --- names ------------------------------------------------------------------------------------

    def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> pyfuse3.EntryAttributes:
        node = self._make(parent, name, mode, caller)
        node.attributes.st_rdev = rdev
        return node.attributes

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> pyfuse3.EntryAttributes:
        node = self._make(parent, name, mode, caller)
        self._nodes[parent].attributes.st_nlink += 1
        return node.attributes

    def symlink(
        self, parent: int, name: bytes, target: bytes, caller: Caller
    ) -> pyfuse3.EntryAttributes:
        node = self._make(parent, name, stat.S_IFLNK | 0o777, caller)
        node.data += target
        node.attributes.st_size = len(target)
        return node.attributes

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> pyfuse3.EntryAttributes:
        node, directory = self._node(ino), self._nodes[parent]
        if name in directory.children:
            raise Exists
        directory.children[name] = node
        node.attributes.st_nlink += 1
        node.lookups += 1
        self._touch(directory)
        return node.attributes

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        directory = self._nodes[parent]
        node = self._child(directory, name)
        if node.is_directory:
            raise IsADirectory
        del directory.children[name]
        node.attributes.st_nlink -= 1
        self._touch(directory)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        directory = self._nodes[parent]
        node = self._child(directory, name)
        if not node.is_directory:
            raise NotADirectory
        if node.children:
            raise NotEmpty
        del directory.children[name]
        node.attributes.st_nlink = 0
        directory.attributes.st_nlink -= 1
        self._touch(directory)

    def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        source, target = self._nodes[parent], self._nodes[new_parent]
        moved = self._child(source, name)
        replaced = target.children.get(new_name)
        if flags & RENAME_EXCHANGE:
            if replaced is None:
                raise NotFound
            source.children[name], target.children[new_name] = replaced, moved
            self._count_directories(source, target, moved)
            self._count_directories(target, source, replaced)
            return
        if replaced is moved:
            return
        if replaced is not None:
            if flags & RENAME_NOREPLACE:
                raise Exists
            if replaced.is_directory:
                self.rmdir(new_parent, new_name, caller)
            else:
                self.unlink(new_parent, new_name, caller)
        del source.children[name]
        target.children[new_name] = moved
        self._count_directories(source, target, moved)
        self._touch(source)
        self._touch(target)

    # --- files ------------------------------------------------------------------------------------

    def open(self, ino: int, flags: int, caller: Caller) -> Node:
        node = self._node(ino)
        if flags & os.O_TRUNC:
            self._resize(node, 0)
        return node

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, pyfuse3.EntryAttributes]:
        node = self._make(parent, name, mode, caller)
        return node, node.attributes

    def read(self, fh: int, offset: int, size: int) -> bytes | memoryview:
        return bytes(memoryview(self._nodes[fh].data)[offset : offset + size])

    def inode_of(self, fh: int) -> int:
        return fh if fh in self._nodes else 0

    def write(self, fh: int, offset: int, data: bytes) -> int:
        node = self._nodes[fh]
        content = node.data
        size = len(content)
        if offset == size:
            content += data
        else:
            if offset > size:
                content.extend(bytes(offset - size))
            content[offset : offset + len(data)] = data
        attributes = node.attributes
        if len(content) != size:
            attributes.st_size = len(content)
            attributes.st_blocks = (len(content) + 511) // 512
        attributes.st_mtime_ns = attributes.st_ctime_ns = time.time_ns()
        return len(data)

    def flush(self, fh: int) -> None:
        pass

    def release(self, fh: int) -> None:
        pass

    def fsync(self, fh: int, datasync: bool) -> None:
        pass

    # --- directories ------------------------------------------------------------------------------

    def opendir(self, ino: int, caller: Caller) -> int:
        self._listing += 1
        self._listings[self._listing] = list(self._node(ino).children.items())
        return self._listing

    def readdir(
        self, fh: int, offset: int, emit: Callable[[bytes, pyfuse3.EntryAttributes, int], bool]
    ) -> None:
        listing = self._listings[fh]
        while offset < len(listing):
            name, node = listing[offset]
            offset += 1
            if node.attributes.st_nlink == 0:
                continue
            if not emit(name, node.attributes, offset):
                return
            node.lookups += 1

    def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    # --- the whole, and extended attributes -------------------------------------------------------

    def statfs(self) -> Space:
        free = 1 << 40
        return Space(free, free, free, 1 << 20, 1 << 20)

    def getxattr(self, ino: int, name: bytes) -> bytes:
        try:
            return self._node(ino).xattrs[name]
        except KeyError:
            raise NoAttribute from None

    def setxattr(self, ino: int, name: bytes, value: bytes) -> None:
        self._node(ino).xattrs[name] = value

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self._node(ino).xattrs)

    def removexattr(self, ino: int, name: bytes) -> None:
        if self._node(ino).xattrs.pop(name, None) is None:
            raise NoAttribute

    # --- inside -----------------------------------------------------------------------------------

    def inode_count(self) -> int:
        """Inodes that exist, unlinked ones that the kernel remembers included."""
        return len(self._nodes)

    def _node(self, ino: int) -> Node:
        node = self._nodes.get(ino)
        if node is None:
            raise Stale
        return node

    def _child(self, directory: Node, name: bytes) -> Node:
        node = directory.children.get(name)
        if node is None:
            raise NotFound
        return node

    def _make(self, parent: int, name: bytes, mode: int, caller: Caller) -> Node:
        directory = self._nodes[parent]
        if name in directory.children:
            raise Exists
        if directory.attributes.st_nlink == 0:
            raise NotFound
        self._last += 1
        node = Node(self._last, mode, caller, self.timeout_s)
        node.lookups = 1
        self._nodes[self._last] = directory.children[name] = node
        self._touch(directory)
        return node

    def _resize(self, node: Node, size: int) -> None:
        if size < len(node.data):
            del node.data[size:]
        else:
            node.data.extend(bytes(size - len(node.data)))
        node.attributes.st_size = size
        node.attributes.st_blocks = (size + 511) // 512
        node.attributes.st_mtime_ns = time.time_ns()

    def _touch(self, directory: Node) -> None:
        attributes = directory.attributes
        attributes.st_mtime_ns = attributes.st_ctime_ns = time.time_ns()

    def _count_directories(self, source: Node, target: Node, moved: Node) -> None:
        if moved.is_directory:
            source.attributes.st_nlink -= 1
            target.attributes.st_nlink += 1


# --- served by the real driver -------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("mount_point", type=Path)
    arguments.add_argument("--timeout", type=float, default=60.0, help="kernel cache, seconds")
    arguments.add_argument("--stock-loop", action="store_true", help="pyfuse3's own request loop")
    return arguments


def serve(
    served: RamFs,
    mount_point: Path,
    options: SessionOptions,
    notifications: Notifications,
    ready: Callable[[], None] = lambda: print("ready", flush=True),
) -> int:
    """Serve until it is unmounted; says "ready" on standard output when it answers."""
    place = resolved(mount_point)
    remove_dead(place)
    session = Session(served, options, Metrics(), AccessLog(), notifications)
    trio.run(session.serve, place, ready)
    return 0


def main() -> int:
    chosen = parser().parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    options = SessionOptions(is_fast_loop_wanted=not chosen.stock_loop)
    return serve(RamFs(chosen.timeout), chosen.mount_point, options, Notifications())


if __name__ == "__main__":
    sys.exit(main())

"""The mount table as directories: the root, and directories whose children are volumes (/local).

``Namespace`` holds no files and is never written through the kernel: mounts come and go by control
operations. Its inodes live in memory for as long as the daemon runs.
"""

from __future__ import annotations

import stat
import time
from typing import TYPE_CHECKING

from unifs.errors import Busy, Exists, IsADirectory, NotFound, Stale
from unifs.vfs.volume import INO_SHIFT, DirectoryHandle, Inode, Volume

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.types import Attributes, Caller
    from unifs.vfs.inodes import Inodes
    from unifs.vfs.volume import Emit, Handle

ROOT_INO = 1
#: Numbers of the directories below the root that are the mount table's own.
NAMESPACE_PREFIX = 1


class NamespaceDirectory(Inode):
    """A directory of the mount table. Children: name -> inode number."""

    __slots__ = ("children", "unlisted")

    def __init__(self, ino: int, volume: Volume, attributes: Attributes) -> None:
        super().__init__(ino, volume, attributes)
        self.children: dict[bytes, int] = {}
        #: As ``children``, found by look-up only.
        self.unlisted: dict[bytes, int] = {}

    def is_busy(self) -> bool:
        return True


class NamespaceHandle(DirectoryHandle):
    """A listing by position: the table is small and changes rarely."""

    __slots__ = ("_inodes",)

    def __init__(self, inode: Inode, inodes: Inodes) -> None:
        super().__init__(inode)
        self._inodes = inodes

    def readdir(self, offset: int, emit: Emit) -> None:
        directory = self.inode
        assert isinstance(directory, NamespaceDirectory)
        for position, (name, ino) in enumerate(sorted(directory.children.items()), 1):
            if position <= offset:
                continue
            if not emit(name, self._inodes.get(ino).attributes, position):
                return
            self._inodes.remember(ino)


def table_attributes(factory: Callable[[], Attributes], ino: int, permissions: int) -> Attributes:
    """Those of a directory that no backend and no row has: root's, made now."""
    attributes = factory()
    now = time.time_ns()
    attributes.st_ino = ino
    attributes.st_mode = stat.S_IFDIR | permissions
    attributes.st_nlink = 2
    attributes.st_uid = attributes.st_gid = 0
    attributes.st_blksize = 4096
    attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = now
    attributes.entry_timeout = attributes.attr_timeout = 1.0
    return attributes


class Namespace(Volume):
    """The root directory and the directories of volumes below it."""

    refusal = "only mounts lie here; write below one of them"

    def __init__(self, inodes: Inodes, factory: Callable[[], Attributes]) -> None:
        super().__init__("")
        self._inodes = inodes
        self.factory = factory
        self._next = 0
        inodes.volumes[NAMESPACE_PREFIX] = self
        self.root = self._directory(ROOT_INO)

    def _directory(self, ino: int) -> NamespaceDirectory:
        directory = NamespaceDirectory(ino, self, table_attributes(self.factory, ino, 0o755))
        self._inodes.add(directory)
        return directory

    def add_directory(self, name: bytes) -> NamespaceDirectory:
        """A directory of volumes at the root."""
        directory = self._new_directory()
        self.add(self.root, name, directory.ino)
        return directory

    def add_unlisted(self, name: bytes) -> NamespaceDirectory:
        """A read-only directory of volumes at the root that no listing shows."""
        directory = self._new_directory()
        directory.attributes.st_mode = stat.S_IFDIR | 0o555
        self.root.unlisted[name] = directory.ino
        return directory

    def _new_directory(self) -> NamespaceDirectory:
        self._next += 1
        return self._directory(NAMESPACE_PREFIX << INO_SHIFT | self._next)

    def add(self, directory: NamespaceDirectory, name: bytes, ino: int) -> None:
        """Show an inode under a name; Exists if it is taken."""
        if name in directory.unlisted:
            raise Exists(f"the name {name.decode(errors='replace')} is reserved")
        if name in directory.children:
            raise Exists(f"there is a mount called {name.decode(errors='replace')} already")
        directory.children[name] = ino
        self._changed(directory, 1)

    def remove(self, directory: NamespaceDirectory, name: bytes) -> int:
        """Show it no longer; its inode number."""
        ino = directory.children.pop(name, None)
        if ino is None:
            raise NotFound(f"there is no mount called {name.decode(errors='replace')}")
        self._changed(directory, -1)
        return ino

    def _changed(self, directory: NamespaceDirectory, links: int) -> None:
        attributes = directory.attributes
        attributes.st_nlink += links
        attributes.st_mtime_ns = attributes.st_ctime_ns = time.time_ns()

    # --- as a volume ------------------------------------------------------------------------------

    def load(self, ino: int) -> Inode:
        raise Stale

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        assert isinstance(parent, NamespaceDirectory)
        ino = parent.children.get(name) or parent.unlisted.get(name)
        if ino is None:
            raise NotFound
        return self._inodes.get(ino)

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        raise IsADirectory

    def opendir(self, inode: Inode) -> NamespaceHandle:
        return NamespaceHandle(inode, self._inodes)

    def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        self.lookup(parent, name)
        raise Busy("it is a mount: `unifs ctl mounts remove` removes it")

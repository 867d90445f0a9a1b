"""The host objects that the kernel remembers: numbers, where they were last seen, descriptors.

``HostVolume`` and its handles own a ``NodeTable``. A node is a host object (device, inode) with a
number in this volume and the one name under which it was last seen. It is reached, in this order,
through

1. a descriptor of an open handle (an open file stays usable whatever happens to its names),
2. a *pin*: an O_PATH descriptor taken just before we remove the last known name,
3. its directory and name, checked: what is there must still be this object, else Stale; the kernel
   answers ESTALE with a fresh look-up, so a rename made outside costs one more request.

Directories keep O_PATH descriptors in an LRU; a cold one is opened again from the directory above
it. Every step takes one component with O_NOFOLLOW below the volume's directory, so nothing walks
out of it. Bounds: descriptors by ``DIRECTORY_FDS_MAX`` and ``PINS_MAX``; nodes by the kernel's own
memory (about 300 bytes for each inode that it remembers, far less than it spends itself). No
locks: it belongs to the event loop.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from unifs.errors import NotADirectory, Stale
from unifs.vfs.volume import Inode

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from unifs.types import Attributes
    from unifs.vfs.volume import Volume

DIRECTORY_FDS_MAX: Final = 128
PINS_MAX: Final = 128
ROOT_NUMBER: Final = 1
#: What makes GNU cp write 1 MiB at a time.
BLOCK_BYTES: Final = 1 << 20
#: Half of PATH_MAX. Directories moved about outside may seem to contain each other.
DEPTH_MAX: Final = 2048

_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: What a name that no longer leads to the object looks like.
_GONE: Final = (FileNotFoundError, NotADirectoryError)

#: What decides whether the kernel's cached pages still are the file: mtime, ctime, size.
Signature = tuple[int, int, int]


class HostNode:
    """One host object that the kernel may ask for by number."""

    __slots__ = ("dev", "fds", "ino", "name", "number", "parent", "seen", "type")

    def __init__(self, number: int, status: os.stat_result) -> None:
        self.number = number
        self.dev = status.st_dev
        self.ino = status.st_ino
        self.type = stat.S_IFMT(status.st_mode)
        #: Number of the directory and name there; no parent: no name is known.
        self.parent = 0
        self.name = b""
        #: Descriptors of open handles.
        self.fds: list[int] | None = None
        #: The file as of its last open; None where it was too young to tell two writes apart.
        self.seen: Signature | None = None

    def is_at(self, status: os.stat_result) -> bool:
        """Whether ``status`` is of this object."""
        return (
            status.st_ino == self.ino
            and status.st_dev == self.dev
            and stat.S_IFMT(status.st_mode) == self.type
        )


class HostInode(Inode):
    """A hot inode of a host object."""

    __slots__ = ("__weakref__", "node")

    def __init__(self, ino: int, volume: Volume, attributes: Attributes, node: HostNode) -> None:
        super().__init__(ino, volume, attributes)
        self.node = node


class NodeTable:
    """Nodes by number and by host identity, and the descriptors that lead to them."""

    def __init__(self, directory: Path, on_stale: Callable[[HostNode], None]) -> None:
        self._on_stale = on_stale
        self._root_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root = HostNode(ROOT_NUMBER, os.fstat(self._root_fd))
        self._last_number = ROOT_NUMBER
        self._nodes: dict[int, HostNode] = {ROOT_NUMBER: self.root}
        self._numbers: dict[int, int] = {_identity(self.root.dev, self.root.ino): ROOT_NUMBER}
        self._directories: OrderedDict[int, int] = OrderedDict()
        self._pins: OrderedDict[int, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def close(self) -> None:
        """Close every descriptor; the table is unusable afterwards."""
        for fd in (*self._directories.values(), *self._pins.values(), self._root_fd):
            os.close(fd)
        self._directories.clear()
        self._pins.clear()

    @property
    def descriptors(self) -> int:
        """How many descriptors the table holds."""
        return 1 + len(self._directories) + len(self._pins)

    # --- nodes ----------------------------------------------------------------------------------

    def get(self, number: int) -> HostNode:
        """The node of that number; Stale if it was forgotten."""
        node = self._nodes.get(number)
        if node is None:
            raise Stale
        return node

    def find(self, status: os.stat_result) -> HostNode | None:
        """The node for that host object, if the kernel was ever told of it."""
        number = self._numbers.get(_identity(status.st_dev, status.st_ino))
        node = self._nodes.get(number) if number is not None else None
        return node if node is not None and node.is_at(status) else None

    def admit(self, status: os.stat_result, parent: HostNode, name: bytes) -> HostNode:
        """The node for what was just seen under ``name``, made if it is new.

        A host inode number that now belongs to a file of another type gets a new number here: the
        kernel answers EIO when the type of an inode that it knows changes.
        """
        node = self.find(status)
        if node is None:
            self._last_number += 1
            node = HostNode(self._last_number, status)
            self._nodes[node.number] = node
            self._numbers[_identity(node.dev, node.ino)] = node.number
        if node is not self.root:
            node.parent = parent.number
            node.name = name
        return node

    def forget(self, number: int) -> bool:
        """The kernel does not remember that number any more; False if it is still in use."""
        node = self._nodes.get(number)
        if node is None or node is self.root or node.fds:
            return False
        del self._nodes[number]
        self._release_identity(node)
        for fds in (self._pins, self._directories):
            fd = fds.pop(number, None)
            if fd is not None:
                os.close(fd)
        return True

    def lose_name(self, node: HostNode, parent: HostNode, name: bytes, is_last: bool) -> None:
        """``name`` no longer leads to this node; ``is_last``: nothing does.

        Then its host inode number may come back for another file, which must get its own number.
        """
        if node.parent == parent.number and node.name == name:
            node.parent, node.name = 0, b""
        if is_last:
            self._release_identity(node)

    def _release_identity(self, node: HostNode) -> None:
        identity = _identity(node.dev, node.ino)
        if self._numbers.get(identity) == node.number:
            del self._numbers[identity]

    # --- reaching them --------------------------------------------------------------------------

    def status(self, node: HostNode) -> os.stat_result:
        """Fresh attributes of exactly this object; Stale if it cannot be reached."""
        fd = self._held_fd(node)
        if fd is not None:
            return os.fstat(fd)
        status = None
        try:
            directory = self.directory_fd(self._parent_of(node))
            status = os.stat(node.name, dir_fd=directory, follow_symlinks=False)
        except _GONE:
            pass
        if status is None or not node.is_at(status):
            raise self._stale(node)
        return status

    def open_path(self, node: HostNode) -> int:
        """A new O_PATH descriptor of exactly this object; the caller closes it. Stale as above."""
        fd = self._held_fd(node)
        if fd is not None:
            return os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
        return self._open_checked(node, _PATH_FLAGS)

    def open(self, node: HostNode, flags: int) -> int:
        """A new descriptor with these open(2) flags of exactly this object. Stale as above.

        O_NONBLOCK keeps a FIFO that took the name meanwhile from stopping the loop; it means
        nothing to a regular file.
        """
        fd = self._held_fd(node)
        if fd is not None:
            return os.open(f"/proc/self/fd/{fd}", flags | os.O_CLOEXEC | os.O_NONBLOCK)
        return self._open_checked(node, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)

    def directory_fd(self, node: HostNode) -> int:
        """An O_PATH descriptor of a directory, owned by the table, good until the next call."""
        if node is self.root:
            return self._root_fd
        if node.type != stat.S_IFDIR:
            raise NotADirectory
        fd = self._directories.get(node.number)
        if fd is not None:
            self._directories.move_to_end(node.number)
            return fd
        above = [node]
        while above[-1].number not in self._directories and above[-1] is not self.root:
            above.append(self._parent_of(above[-1]))
            if len(above) > DEPTH_MAX:
                raise self._stale(node)
        for directory in reversed(above):
            if directory.number not in self._directories and directory is not self.root:
                self._keep_directory(directory)
        return self._directories[node.number]

    def pin(self, node: HostNode, fd: int) -> None:
        """Take over an O_PATH descriptor of this object, which is about to lose its name."""
        if node.number in self._pins or node.fds or node.number in self._directories:
            os.close(fd)
            return
        if len(self._pins) >= PINS_MAX:
            os.close(self._pins.popitem(last=False)[1])
        self._pins[node.number] = fd

    def _held_fd(self, node: HostNode) -> int | None:
        if node.fds:
            return node.fds[0]
        if node is self.root:
            return self._root_fd
        fd = self._pins.get(node.number)
        return fd if fd is not None else self._directories.get(node.number)

    def _keep_directory(self, node: HostNode) -> None:
        fd = self._open_checked(node, _PATH_FLAGS | os.O_DIRECTORY)
        if len(self._directories) >= DIRECTORY_FDS_MAX:
            os.close(self._directories.popitem(last=False)[1])
        self._directories[node.number] = fd

    def _open_checked(self, node: HostNode, flags: int) -> int:
        parent = self._parent_of(node)
        above = self._root_fd if parent is self.root else self._directories.get(parent.number)
        if above is None:
            above = self.directory_fd(parent)
        try:
            fd = os.open(node.name, flags, dir_fd=above)
        except _GONE:
            raise self._stale(node) from None
        try:
            is_same = node.is_at(os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        if not is_same:
            os.close(fd)
            raise self._stale(node)
        return fd

    def _parent_of(self, node: HostNode) -> HostNode:
        parent = self._nodes.get(node.parent)
        if parent is None:
            raise Stale
        return parent

    def _stale(self, node: HostNode) -> Stale:
        self._on_stale(node)
        return Stale()


def _identity(dev: int, ino: int) -> int:
    return dev << 64 | ino


def fill(attributes: Attributes, ino: int, status: os.stat_result, timeout_s: float) -> None:
    """Put what the host says of an object into the shape of a reply."""
    attributes.st_ino = ino
    attributes.entry_timeout = attributes.attr_timeout = timeout_s
    attributes.st_mode = status.st_mode
    attributes.st_nlink = status.st_nlink
    attributes.st_uid = status.st_uid
    attributes.st_gid = status.st_gid
    attributes.st_rdev = status.st_rdev
    attributes.st_size = status.st_size
    attributes.st_blksize = BLOCK_BYTES
    attributes.st_blocks = status.st_blocks
    attributes.st_atime_ns = status.st_atime_ns
    attributes.st_mtime_ns = status.st_mtime_ns
    attributes.st_ctime_ns = status.st_ctime_ns

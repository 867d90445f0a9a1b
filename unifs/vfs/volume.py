"""What the vfs asks of each part of the tree: volumes, inodes, handles.

A volume is the vfs's side of a mount. Three kinds exist: ``TreeVolume`` (names and attributes in
the tree, bytes in contents and cache: /mfs and every remote mount), ``HostVolume`` (/local:
write-through to host descriptors) and ``Namespace`` (the mount table itself).

All methods are synchronous and follow ``unifs.waiting``: a method that would have to wait raises
WouldBlock before it has changed anything. Names are bytes, already checked by the vfs (1–255 bytes,
no slash, no NUL, not "." or ".."). Errors are ``unifs.errors`` or OSError.

The vfs owns the table of hot inodes and the kernel's look-up counts; a volume makes Inode objects
and must be able to make one again from its number (``load``) as long as the kernel remembers it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from unifs.errors import BadHandle, NoAttribute, ReadOnly

if TYPE_CHECKING:
    from collections.abc import Callable

    from unifs.types import Attributes, Caller, SetAttributes

#: An inode number is (volume prefix << INO_SHIFT) | local number. Prefix 0 is the tree's.
INO_SHIFT = 48

#: emit(name, attributes, next_offset) -> False when the reply is full.
if TYPE_CHECKING:
    Emit = Callable[[bytes, Attributes, int], bool]


class Invalidator(Protocol):
    """Tells the kernel to forget. Fire and forget: returns at once, never blocks, never raises."""

    def inode(self, ino: int, attributes_only: bool = False) -> None: ...

    def entry(self, parent: int, name: bytes) -> None: ...


class Inode:
    """A hot inode: its number, its volume, its attributes in reply form."""

    __slots__ = ("attributes", "ino", "opens", "volume")

    def __init__(self, ino: int, volume: Volume, attributes: Attributes) -> None:
        self.ino = ino
        self.volume = volume
        self.attributes = attributes
        self.opens = 0

    def is_busy(self) -> bool:
        """Whether the hot table must keep this object although the kernel has not asked lately."""
        return self.opens > 0


class Handle:
    """An open file. Volumes subclass it; the defaults refuse."""

    __slots__ = ("fh", "inode")

    #: The kernel may keep its cached pages when this handle opens.
    keep_cache = True
    direct_io = False

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.fh = 0

    def read(self, offset: int, size: int) -> bytes | bytearray | memoryview:
        """Up to ``size`` bytes; fewer only at the end of the file.

        A memoryview is valid until the next call on this volume: copy it or reply at once.
        """
        raise BadHandle

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Write all of ``data``; returns its length."""
        raise BadHandle

    def flush(self) -> None:
        """A descriptor of this handle was closed: the commit point of close()."""

    def release(self) -> None:
        """The last descriptor is gone. Commits once more (mmap stores arrive after flush)."""

    def fsync(self, datasync: bool) -> None:
        """Make everything written so far survive a power cut; returns when it does."""


class DirectoryHandle:
    """An open directory. ``offset`` is opaque to callers, 0 at the start."""

    __slots__ = ("fh", "inode")

    #: After ``rewind``, ``readdir`` from the start does not wait: "." and ".." need no reply of
    #: their own.
    is_prompt = False

    def __init__(self, inode: Inode) -> None:
        self.inode = inode
        self.fh = 0

    def rewind(self) -> None:
        """The stream begins: whatever it has to wait for, it waits for here."""

    def readdir(self, offset: int, emit: Emit) -> None:
        """Emit entries after ``offset`` until emit returns False or the directory ends.

        "." and ".." are not emitted. Each emitted entry counts as one look-up of its inode: the
        volume calls ``vfs.remember(ino)`` for it, when and only when emit returned True.
        """
        raise NotImplementedError

    def release(self) -> None:
        """Closed."""

    def fsync(self, datasync: bool) -> None:
        """Make names created, renamed and removed here survive a power cut."""


class Volume:
    """One part of the tree. The defaults are those of an empty, read-only one."""

    #: Set where the settings make this mount read-only: the vfs refuses every change below it.
    refuses_changes = False
    #: Why nothing here can be changed, for people, where the settings are not the reason.
    refusal = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def refused(self) -> ReadOnly:
        """What a change is refused with where ``refuses_changes`` is set."""
        return ReadOnly(self.refusal or f"{self.name} is read-only by its settings")

    # --- inodes ---------------------------------------------------------------------------------

    def load(self, ino: int) -> Inode:
        """The inode of that number; Stale if it is gone."""
        raise NotImplementedError

    def forgotten(self, ino: int) -> None:
        """The kernel's look-up count fell to zero and no handle is open."""

    def lookup(self, parent: Inode, name: bytes) -> Inode:
        raise NotImplementedError

    def getattr(self, inode: Inode) -> Attributes:
        """Fresh attributes: the inode's own, revalidated where the volume's time has run out."""
        return inode.attributes

    def setattr(
        self, inode: Inode, changes: SetAttributes, handle: Handle | None, caller: Caller
    ) -> Attributes:
        raise ReadOnly

    def readlink(self, inode: Inode) -> bytes:
        raise NotImplementedError

    # --- names ----------------------------------------------------------------------------------

    def mknod(self, parent: Inode, name: bytes, mode: int, rdev: int, caller: Caller) -> Inode:
        """A regular file, FIFO, socket or device node (``mode`` has the type)."""
        raise ReadOnly

    def mkdir(self, parent: Inode, name: bytes, mode: int, caller: Caller) -> Inode:
        raise ReadOnly

    def symlink(self, parent: Inode, name: bytes, target: bytes, caller: Caller) -> Inode:
        raise ReadOnly

    def link(self, inode: Inode, parent: Inode, name: bytes, caller: Caller) -> Inode:
        raise ReadOnly

    def unlink(self, parent: Inode, name: bytes, caller: Caller) -> None:
        raise ReadOnly

    def rmdir(self, parent: Inode, name: bytes, caller: Caller) -> None:
        raise ReadOnly

    def rename(
        self, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> None:
        """``flags``: 0, RENAME_NOREPLACE (1) or RENAME_EXCHANGE (2)."""
        raise ReadOnly

    # --- files and directories --------------------------------------------------------------------

    def open(self, inode: Inode, flags: int, caller: Caller) -> Handle:
        raise NotImplementedError

    def create(
        self, parent: Inode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Inode, Handle]:
        raise ReadOnly

    def opendir(self, inode: Inode) -> DirectoryHandle:
        raise NotImplementedError

    # --- extended attributes ----------------------------------------------------------------------

    def getxattr(self, inode: Inode, name: bytes) -> bytes:
        raise NoAttribute

    def setxattr(self, inode: Inode, name: bytes, value: bytes) -> None:
        raise ReadOnly

    def listxattr(self, inode: Inode) -> list[bytes]:
        return []

    def removexattr(self, inode: Inode, name: bytes) -> None:
        raise ReadOnly

"""Value types that cross layers. No I/O, no behaviour beyond construction.

Paths inside unifs are mount-relative ``str`` with surrogateescape ("" is the mount's root, no
leading slash); names are ``bytes`` in the driver, in SQLite and in the vfs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType, Protocol

Ino = NewType("Ino", int)
Fh = NewType("Fh", int)

#: A string that names one exact state of one object at its backend: a CID, an ETag, a commit.
Version = NewType("Version", str)

NAME_MAX_BYTES = 255
SYMLINK_MAX_BYTES = 4095


class Caller(Protocol):
    """Who makes a request. pyfuse3's RequestContext is one."""

    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def umask(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PlainCaller:
    """A caller that does not come from the kernel: control operations, tests."""

    uid: int = 0
    gid: int = 0
    pid: int = 0
    umask: int = 0o022


class Attributes(Protocol):
    """An inode's attributes, mutable, in the shape that the front end replies with.

    The driver hands the vfs a factory (``pyfuse3.EntryAttributes``), so that a hot inode *is* its
    reply and nothing is copied per request. Sizes in bytes, times in nanoseconds since the epoch,
    timeouts in seconds.
    """

    st_ino: int
    generation: int
    entry_timeout: float
    attr_timeout: float
    st_mode: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_rdev: int
    st_size: int
    st_blksize: int
    st_blocks: int
    st_atime_ns: int
    st_mtime_ns: int
    st_ctime_ns: int


@dataclass(slots=True)
class PlainAttributes:
    """The attributes of an inode where no kernel is involved."""

    st_ino: int = 0
    generation: int = 0
    entry_timeout: float = 0.0
    attr_timeout: float = 0.0
    st_mode: int = 0
    st_nlink: int = 1
    st_uid: int = 0
    st_gid: int = 0
    st_rdev: int = 0
    st_size: int = 0
    st_blksize: int = 1 << 20
    st_blocks: int = 0
    st_atime_ns: int = 0
    st_mtime_ns: int = 0
    st_ctime_ns: int = 0


@dataclass(frozen=True, slots=True)
class SetAttributes:
    """The attributes that one setattr changes; None leaves a field as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Node:
    """What a backend says of one object.

    ``mode`` holds the file type (``stat.S_IFREG`` …) and, where the backend knows them, permission
    bits; ``has_permissions`` tells which. ``version`` is None for directories of backends that have
    no version for them.
    """

    mode: int
    size_bytes: int = 0
    version: Version | None = None
    mtime_ns: int | None = None
    has_permissions: bool = False
    target: bytes | None = None
    rdev: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a remote directory."""

    name: bytes
    node: Node


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a remote directory. ``after`` is the cursor for the next page, None at the end."""

    entries: tuple[Entry, ...]
    after: str | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One change on its way to a backend, as ``Mount.commit`` receives it.

    ``verb`` is put, make, remove, rename or set_attributes; ``token`` names the daemon's start and
    the journal record.
    """

    verb: str
    path: str
    token: str
    new_path: str = ""
    node: Node | None = None
    base: Version | None = None
    attributes: SetAttributes = field(default_factory=SetAttributes)


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs answers, in bytes and counts."""

    total_bytes: int
    free_bytes: int
    available_bytes: int
    files: int
    files_free: int
    block_bytes: int = 4096
    name_max_bytes: int = NAME_MAX_BYTES

"""The operations that the model test compares, and how a real directory performs them.

Every subject (the model, a directory, the vfs) has these methods and raises ``OSError`` with the
errno that a system call would give. Paths are relative ``bytes``; a handle is what ``open`` gave.
"""

from __future__ import annotations

import ctypes
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Status:
    """What stat says of one inode. A time of 0 is not compared: it was not set."""

    kind: str
    permissions: int
    size_bytes: int
    nlink: int
    mtime_ns: int = 0


class Subject(Protocol):
    """A file system under comparison."""

    def open(self, path: bytes, flags: int) -> object: ...
    def close(self, handle: object) -> None: ...
    def pread(self, handle: object, offset: int, size: int) -> bytes: ...
    def pwrite(self, handle: object, offset: int, data: bytes) -> int: ...
    def ftruncate(self, handle: object, size: int) -> None: ...
    def fsync(self, handle: object) -> None: ...
    def fstat(self, handle: object) -> Status: ...
    def lstat(self, path: bytes) -> Status: ...
    def truncate(self, path: bytes, size: int) -> None: ...
    def listdir(self, path: bytes) -> list[bytes]: ...
    def mkdir(self, path: bytes) -> None: ...
    def rmdir(self, path: bytes) -> None: ...
    def unlink(self, path: bytes) -> None: ...
    def link(self, old: bytes, new: bytes) -> None: ...
    def symlink(self, target: bytes, path: bytes) -> None: ...
    def readlink(self, path: bytes) -> bytes: ...
    def rename(self, old: bytes, new: bytes, flags: int) -> None: ...
    def chmod(self, path: bytes, mode: int) -> None: ...
    def utime(self, path: bytes, mtime_ns: int) -> None: ...
    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None: ...
    def getxattr(self, path: bytes, name: str) -> bytes: ...
    def listxattr(self, path: bytes) -> list[str]: ...
    def removexattr(self, path: bytes, name: str) -> None: ...
    def remount(self) -> None: ...


def kind_of(mode: int) -> str:
    """Return file, dir or link."""
    if stat.S_ISDIR(mode):
        return "dir"
    return "link" if stat.S_ISLNK(mode) else "file"


class Directory:
    """A real directory, through system calls. ``renew`` unmounts and mounts again."""

    def __init__(self, root: bytes, renew: Callable[[], None] | None = None) -> None:
        self.root, self.renew = root, renew

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def open(self, path: bytes, flags: int) -> int:
        return os.open(self._at(path), flags | os.O_NOFOLLOW, 0o644)

    def close(self, handle: int) -> None:
        os.close(handle)

    def pread(self, handle: int, offset: int, size: int) -> bytes:
        return os.pread(handle, size, offset)

    def pwrite(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(handle, data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(handle, size)

    def fsync(self, handle: int) -> None:
        os.fsync(handle)

    def fstat(self, handle: int) -> Status:
        return self._status(os.fstat(handle))

    def lstat(self, path: bytes) -> Status:
        return self._status(os.lstat(self._at(path)))

    @staticmethod
    def _status(found: os.stat_result) -> Status:
        kind = kind_of(found.st_mode)
        nlink = found.st_nlink if kind != "dir" else 0
        size = found.st_size if kind != "dir" else 0
        return Status(kind, stat.S_IMODE(found.st_mode), size, nlink, found.st_mtime_ns)

    def truncate(self, path: bytes, size: int) -> None:
        os.truncate(self._at(path), size)

    def listdir(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(self._at(path)))

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self._at(path), 0o755)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def link(self, old: bytes, new: bytes) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._at(path))

    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        ends = AT_FDCWD, self._at(old), AT_FDCWD, self._at(new)
        if _LIBC.renameat2(*ends, flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(mtime_ns, mtime_ns))

    def setxattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags)

    def getxattr(self, path: bytes, name: str) -> bytes:
        return os.getxattr(self._at(path), name)

    def listxattr(self, path: bytes) -> list[str]:
        return sorted(name for name in os.listxattr(self._at(path)) if name.startswith("user."))

    def removexattr(self, path: bytes, name: str) -> None:
        os.removexattr(self._at(path), name)

    def remount(self) -> None:
        if self.renew is not None:
            self.renew()

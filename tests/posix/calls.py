"""The system calls of the matrix by name, each a function of a path or two. Run by ``caller``.

Opening never blocks (O_NONBLOCK), so that FIFOs answer at once.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import socket
import stat
from typing import TYPE_CHECKING, Any

from tests.posix.locking import Locks

if TYPE_CHECKING:
    from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_FOLLOW = -100, 0x400
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
#: 2001-09-09, long before any test.
OLD_NS = 10**18
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def checked(result: int) -> int:
    """The result of a C function; OSError where it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def rename2(old: str, new: str, flags: int) -> None:
    """renameat2(2)."""
    checked(_LIBC.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def linkat(old: str, new: str, flags: int) -> None:
    """linkat(2)."""
    checked(_LIBC.linkat(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags))


def utimens(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2) with (seconds, nanoseconds), the latter also UTIME_NOW or UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    checked(_LIBC.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def opened(path: str, flags: int, mode: int = 0o666) -> None:
    """open(2) and close(2)."""
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))


def opening(flags: int) -> Callable[[str], None]:
    """open(2) with these flags, as a function of the path."""
    return lambda path: opened(path, flags)


def execute(path: str) -> int:
    """execve(2) in a child; the exit status."""
    child = os.posix_spawn(path, ["program"], {})
    return os.waitpid(child, 0)[1]


def bind(path: str) -> None:
    """bind(2) of a unix socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)


def connect(path: str) -> None:
    """connect(2) to a unix socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(path)


def with_umask(mask: int, call: str, *arguments: Any) -> Any:
    """Make another call under this umask."""
    before = os.umask(mask)
    try:
        return CALLS[call](*arguments)
    finally:
        os.umask(before)


def write(path: str, data: bytes, flags: int = 0) -> int:
    """open(2) for writing, write(2), close(2)."""
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        return os.write(descriptor, data)
    finally:
        os.close(descriptor)


def read(path: str, size: int, offset: int = 0) -> bytes:
    """open(2), pread(2), close(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.pread(descriptor, size, offset)
    finally:
        os.close(descriptor)


def mapped(path: str, is_stored: bool) -> None:
    """mmap(2) shared, a load or a store, msync(2), munmap(2)."""
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        if is_stored:
            memory[0:1] = b"#"
            memory.flush()
        else:
            assert memory[0:1] == b"#"


def ftruncate(path: str, size: int) -> None:
    """open(2), ftruncate(2), close(2)."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def fsync(path: str) -> None:
    """open(2), fsync(2), close(2)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def chdir(path: str) -> None:
    """chdir(2), and back."""
    here = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
        os.fchdir(here)
    finally:
        os.close(here)


def status(path: str) -> tuple[int, int, int, int]:
    """lstat(2): mode, uid, gid, nlink."""
    found = os.lstat(path)
    return found.st_mode, found.st_uid, found.st_gid, found.st_nlink


def access(path: str, how: int) -> None:
    """access(2)."""
    checked(_LIBC.access(os.fsencode(path), how))


def get_raw(path: str, name: str, size: int) -> int:
    """getxattr(2) into a buffer of that size; what it returns."""
    buffer = ctypes.create_string_buffer(max(1, size))
    return checked(_LIBC.getxattr(os.fsencode(path), os.fsencode(name), buffer, size))


def list_raw(path: str, size: int) -> int:
    """listxattr(2) into a buffer of that size; what it returns."""
    buffer = ctypes.create_string_buffer(max(1, size))
    return checked(_LIBC.listxattr(os.fsencode(path), buffer, size))


def write_limited(path: str, limit: int, offset: int, size: int) -> int:
    """pwrite(2) under RLIMIT_FSIZE (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    descriptor = os.open(path, os.O_WRONLY)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        return os.pwrite(descriptor, bytes(size), offset)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        os.close(descriptor)


_LOCKS = Locks()
_CREATE = os.O_CREAT | os.O_WRONLY
_NOW = (0, UTIME_NOW)
_OMIT = (0, UTIME_OMIT)
_ONE = (1, 999_999_999)
_NOFOLLOW = 0x100

#: Name in the tables -> function. "new" stands for a second path that does not exist.
CALLS: dict[str, Callable[..., Any]] = {
    "open O_RDONLY": opening(os.O_RDONLY),
    "open O_WRONLY": opening(os.O_WRONLY),
    "open O_RDWR": opening(os.O_RDWR),
    "open O_CREAT": opening(_CREATE),
    "open O_CREAT|O_EXCL": opening(_CREATE | os.O_EXCL),
    "open O_CREAT|O_DIRECTORY": opening(os.O_CREAT | os.O_DIRECTORY),
    "open O_TRUNC": opening(os.O_WRONLY | os.O_TRUNC),
    "open O_RDONLY|O_TRUNC": opening(os.O_RDONLY | os.O_TRUNC),
    "open O_APPEND": opening(os.O_WRONLY | os.O_APPEND),
    "open O_SYNC": opening(os.O_WRONLY | os.O_SYNC),
    "open O_DSYNC": opening(os.O_WRONLY | os.O_DSYNC),
    "open O_DIRECTORY": opening(os.O_DIRECTORY),
    "open O_NOFOLLOW": opening(os.O_NOFOLLOW),
    "open O_PATH": opening(os.O_PATH),
    "open O_PATH|O_NOFOLLOW": opening(os.O_PATH | os.O_NOFOLLOW),
    "open O_DIRECT": opening(os.O_RDONLY | os.O_DIRECT),
    "open O_TMPFILE": opening(os.O_TMPFILE | os.O_RDWR),
    "open": opened,
    "write": write,
    "write some": lambda path: write(path, b"text"),
    "write nothing": lambda path: write(path, b""),
    "append": lambda path: write(path, b"text", os.O_APPEND),
    "read": lambda path: read(path, 4),
    "read at the end": lambda path: read(path, 4, 1 << 20),
    "read nothing": lambda path: read(path, 0),
    "mmap load": lambda path: mapped(path, is_stored=False),
    "mmap store": lambda path: mapped(path, is_stored=True),
    "ftruncate": lambda path: ftruncate(path, 1),
    "ftruncate same": lambda path: ftruncate(path, os.stat(path).st_size),
    "truncate same": lambda path: os.truncate(path, os.stat(path).st_size),
    "fsync": fsync,
    "stat": os.stat,
    "lstat": os.lstat,
    "status": status,
    "access F_OK": lambda path: access(path, os.F_OK),
    "access R_OK": lambda path: access(path, os.R_OK),
    "access W_OK": lambda path: access(path, os.W_OK),
    "access X_OK": lambda path: access(path, os.X_OK),
    "readlink": os.readlink,
    "statfs": os.statvfs,
    "chdir": chdir,
    "readdir": os.listdir,
    "execve": execute,
    "truncate": lambda path: os.truncate(path, 1),
    "truncate longer": lambda path: os.truncate(path, 100_000),
    "truncate -1": lambda path: os.truncate(path, -1),
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "mkfifo": os.mkfifo,
    "mknod file": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "mknod device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    "bind": bind,
    "connect": connect,
    "symlink": lambda path: os.symlink("target", path),
    "link": os.link,
    "link to new": lambda path: os.link(path, f"{path}.new", follow_symlinks=False),
    "link following": lambda path: linkat(path, f"{path}.new", AT_SYMLINK_FOLLOW),
    "rename": os.rename,
    "rename2": rename2,
    "rename to new": lambda path: os.rename(path, f"{path}.new"),
    "rename noreplace": lambda path: rename2(path, f"{path}.new", RENAME_NOREPLACE),
    "rename exchange": lambda path: rename2(path, f"{path}.new", RENAME_EXCHANGE),
    "rename onto itself": lambda path: os.rename(path, path),
    "chmod": lambda path: os.chmod(path, 0o777),
    "chmod to": os.chmod,
    "chown": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "chown -1 -1": lambda path: os.chown(path, -1, -1),
    "chown to": os.chown,
    "lchown": lambda path: os.lchown(path, os.getuid(), os.getgid()),
    "utimensat": lambda path: utimens(path, _ONE, _ONE),
    "utimensat NOW": lambda path: utimens(path, _NOW, _NOW),
    "utimensat OMIT": lambda path: utimens(path, _OMIT, _OMIT),
    "utimensat NOW OMIT": lambda path: utimens(path, _NOW, _OMIT),
    "utimensat nofollow": lambda path: utimens(path, _ONE, _ONE, _NOFOLLOW),
    "getxattr": lambda path: os.getxattr(path, "user.there"),
    "setxattr": lambda path: os.setxattr(path, "user.new", b"value"),
    "setxattr CREATE": lambda path: os.setxattr(path, "user.there", b"v", os.XATTR_CREATE),
    "setxattr REPLACE": lambda path: os.setxattr(path, "user.absent", b"v", os.XATTR_REPLACE),
    "listxattr": lambda path: os.listxattr(path),
    "removexattr": lambda path: os.removexattr(path, "user.there"),
    "removexattr absent": lambda path: os.removexattr(path, "user.absent"),
    "lsetxattr": lambda path: os.setxattr(path, "user.new", b"v", follow_symlinks=False),
    "lgetxattr": lambda path: os.getxattr(path, "user.there", follow_symlinks=False),
    "umask": with_umask,
    "read it": read,
    "truncate to": os.truncate,
    "xattr get": get_raw,
    "xattr list": list_raw,
    "xattr set": os.setxattr,
    "xattr remove": os.removexattr,
    "write limited": write_limited,
    "lock": _LOCKS.take,
    "locked by": _LOCKS.holder,
    "unlock all": _LOCKS.drop,
    "pid": os.getpid,
}

"""One name in one host directory: what is there, and changing it without losing anybody's file.

``HostTree`` calls these with a descriptor of the directory. The version of a file is
``device:inode:ctime:size``; directories have none.

An object is prepared under a temporary name derived from the token (a retry finds and replaces its
own leftovers; scans hide such names), then renamed. To replace or remove a file it is exchanged or
taken aside first and put back if it is not the one that was meant: between unifs and programs that
replace files, neither loses. What remains is a program that writes into that very file in place at
that moment.

The token is the xattr ``user.unifs.token``, where the host's file system and the object's type have
xattrs: files and directories. A symlink or special file that is there already counts as made if it
is the same; a repeated rename of one is NotFound.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Final

from unifs.errors import Conflict, InvalidArgument
from unifs.mounts.hostcalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from unifs.types import Node, Version

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKEN_ATTRIBUTE: Final = "user.unifs.token"
TEMPORARY_PREFIX: Final = b".unifs-put-"

_OBJECT: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: A token cannot be kept or is not there: no xattrs, not on that type, not our file, none.
_NO_TOKEN: Final = frozenset((errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA))


@dataclass(slots=True)
class Upload:
    """A file on its way: written under ``temporary``, to be renamed to ``name``."""

    directory: int
    name: bytes
    temporary: bytes
    fd: int

    def append(self, data: bytes) -> None:
        """Write all of ``data`` at the end."""
        view = memoryview(data)
        while view:
            view = view[os.write(self.fd, view) :]

    def close(self) -> None:
        """Give the upload up, or clean up behind a finished one; safe at any point."""
        unlink_if_there(self.directory, self.temporary)
        os.close(self.fd)
        os.close(self.directory)


# --- changing one name --------------------------------------------------------------------------


def replace_file(upload: Upload, there: os.stat_result) -> None:
    """Exchange the upload with the file that is ``there``; Conflict, undone, if it is another."""
    directory, name, temporary = upload.directory, upload.name, upload.temporary
    os.fchmod(upload.fd, stat.S_IMODE(there.st_mode))
    if os.geteuid() == 0:
        os.fchown(upload.fd, there.st_uid, there.st_gid)
    renameat2(directory, temporary, directory, name, RENAME_EXCHANGE)
    displaced = os.stat(temporary, dir_fd=directory, follow_symlinks=False)
    if not is_same(displaced, there):
        renameat2(directory, temporary, directory, name, RENAME_EXCHANGE)
        raise Conflict(os.fsdecode(name))


def remove_file(directory: int, name: bytes, there: os.stat_result, aside: bytes) -> None:
    try:
        renameat2(directory, name, directory, aside, RENAME_NOREPLACE)
    except FileNotFoundError:
        return
    if not is_same(os.stat(aside, dir_fd=directory, follow_symlinks=False), there):
        renameat2(directory, aside, directory, name, RENAME_NOREPLACE)
        raise Conflict(os.fsdecode(name))
    os.unlink(aside, dir_fd=directory)


def settle_removal(directory: int, name: bytes, base: Version | None, aside: bytes) -> None:
    """Finish or undo what a crash left of an earlier attempt to remove ``name``."""
    status = status_at(directory, aside)
    if status is None:
        return
    if base is not None and base.split(":")[:2] == version_of(status).split(":")[:2]:
        os.unlink(aside, dir_fd=directory)
    else:
        renameat2(directory, aside, directory, name, RENAME_NOREPLACE)


def is_same(one: os.stat_result, other: os.stat_result) -> bool:
    """Whether two looks were at one unchanged file; renaming changes ctime, so that is left out."""
    return (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns) == (
        other.st_dev,
        other.st_ino,
        other.st_size,
        other.st_mtime_ns,
    )


def make_at(directory: int, name: bytes, node: Node) -> None:
    if stat.S_ISDIR(node.mode):
        os.mkdir(name, 0o755, dir_fd=directory)
    elif stat.S_ISLNK(node.mode):
        if not node.target:
            raise InvalidArgument("a symlink has a target")
        os.symlink(node.target, name, dir_fd=directory)
    else:
        os.mknod(name, stat.S_IFMT(node.mode) | 0o644, node.rdev, dir_fd=directory)


def is_made(directory: int, name: bytes, node: Node, token: str) -> bool:
    with opened_at(directory, name) as fd:
        there = node_of(os.fstat(fd), fd, b"")
    if stat.S_IFMT(there.mode) != stat.S_IFMT(node.mode):
        return False
    if stat.S_ISDIR(node.mode):
        return token_at(directory, name) == token
    return (there.target, there.rdev) == (node.target, node.rdev)


# --- small things -------------------------------------------------------------------------------


@contextmanager
def opened_at(directory: int, name: bytes) -> Iterator[int]:
    fd = os.open(name, _OBJECT, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def status_at(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def node_of(status: os.stat_result, directory: int, name: bytes) -> Node:
    mode = status.st_mode
    return Node(
        mode,
        status.st_size if stat.S_ISREG(mode) else 0,
        None if stat.S_ISDIR(mode) else version_of(status),
        status.st_mtime_ns,
        has_permissions=True,
        target=os.readlink(name, dir_fd=directory) if stat.S_ISLNK(mode) else None,
        rdev=status.st_rdev,
    )


def version_of(status: os.stat_result) -> Version:
    return Version(f"{status.st_dev}:{status.st_ino}:{status.st_ctime_ns}:{status.st_size}")


def temporary_name(token: str) -> bytes:
    return TEMPORARY_PREFIX + blake2b(token.encode(), digest_size=16).hexdigest().encode()


def keep_token(fd: int, token: str) -> None:
    try:
        os.setxattr(f"/proc/self/fd/{fd}", TOKEN_ATTRIBUTE, token.encode())
    except OSError as error:
        if error.errno not in _NO_TOKEN:
            raise


def token_at(directory: int, name: bytes) -> str | None:
    try:
        with opened_at(directory, name) as fd:
            return os.getxattr(f"/proc/self/fd/{fd}", TOKEN_ATTRIBUTE).decode()
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno not in _NO_TOKEN:
            raise
        return None


def unlink_if_there(directory: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        os.rmdir(name, dir_fd=directory)


def sync_directory(directory: int) -> None:
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

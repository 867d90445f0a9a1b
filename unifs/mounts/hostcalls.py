"""System calls on host directories: renameat2 and getdents64, which Python's os module lacks, and
those that a setattr becomes.

``LocalMount`` and ``HostVolume`` call them. Names are bytes, errors are OSError. ctypes releases
the GIL for the time of each call.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unifs.types import SetAttributes

RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
#: ino, cookie of the next record, record length, type; the name follows.
_DIRENT: Final = struct.Struct("=QqHB")


def renameat2(source_fd: int, name: bytes, target_fd: int, new_name: bytes, flags: int) -> None:
    """rename(2) between two directories, with ``RENAME_NOREPLACE`` or ``RENAME_EXCHANGE``."""
    if flags == 0:
        os.rename(name, new_name, src_dir_fd=source_fd, dst_dir_fd=target_fd)
    elif _LIBC.renameat2(source_fd, name, target_fd, new_name, flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(new_name))


def getdents(directory_fd: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Fill ``buffer`` with directory records from the descriptor's position; 0 at the end."""
    count = _LIBC.getdents64(directory_fd, buffer, len(buffer))
    if count < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(count)


def dirents(records: bytes) -> Iterator[tuple[bytes, int]]:
    """Names in the records of one ``getdents``, each with the host's cookie for what follows it."""
    at = 0
    while at < len(records):
        _, cookie, length, _ = _DIRENT.unpack_from(records, at)
        start = at + _DIRENT.size
        yield records[start : records.index(b"\0", start)], cookie
        at += length


def set_owner(path: str, changes: SetAttributes) -> None:
    """Give a host object the owner and group of ``changes``; None keeps what it has."""
    uid = -1 if changes.uid is None else changes.uid
    os.chown(path, uid, -1 if changes.gid is None else changes.gid)


def set_times(path: str, changes: SetAttributes) -> None:
    """Give a host object the times of ``changes``; None keeps what it has."""
    if changes.atime_ns is None and changes.mtime_ns is None:
        return
    now = os.stat(path)
    atime_ns = now.st_atime_ns if changes.atime_ns is None else changes.atime_ns
    mtime_ns = now.st_mtime_ns if changes.mtime_ns is None else changes.mtime_ns
    os.utime(path, ns=(atime_ns, mtime_ns))
